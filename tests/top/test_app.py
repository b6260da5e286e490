"""The screen, driven by keys: what is shown, and what the cluster is asked to do."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager

import pytest

from llx.errors import UnreachableError
from llx.top.app import TopApp
from llx.top.panes import Pane
from llx.top.screens import ConfirmScreen, DetailScreen
from tests.top.cluster import FakeControl, migration, request, snapshot
from tests.top.driving import WAIT_S, screen_text, shown, until

REQUEST = request(1).id
LIVE = "live 08:00:00"


@pytest.fixture
def control():
    return FakeControl()


@asynccontextmanager
async def opened(control, size=(80, 24)):
    """The application at work, with a first picture."""
    app = TopApp(control.connect, interval_s=0.2, user="ann")
    async with app.run_test(size=size, notifications=True) as pilot:
        await shown(pilot, LIVE)
        yield pilot


async def settled(pilot, control, words):
    """The screen with `words` on it, at rest: two looks change nothing, and it is of now."""
    before, text = "", await shown(pilot, words)
    end = time.monotonic() + 4 * WAIT_S  # a look may take as long as one of these
    while text != before or LIVE not in text:
        assert time.monotonic() < end, f"it never rests:\n{text}"
        await looked(pilot, control)
        before, text = text, _without_past(screen_text(pilot.app))
    return text


async def looked(pilot, control):
    """Waits until a look that began from now on has been shown, or whatever is done with it."""
    begun = len(control.matches)
    # The poller hands over what it has found before it begins the next look.
    await until(pilot, lambda: len(control.matches) >= begun + 2)
    await pilot.pause()


async def asked(pilot, control, what):
    """Waits until the cluster was asked for something."""
    await until(pilot, lambda: what in control.asked)


@pytest.mark.golden
@pytest.mark.parametrize("size", [(80, 24), (160, 50), (250, 60)])
async def test_the_screen(golden, control, size):
    async with opened(control, size) as pilot:
        control.found = snapshot(num_requests=40)
        text = await settled(pilot, control, "requests 40")
        golden(f"top/screen-{size[0]}x{size[1]}.txt", text)


def _without_past(text):
    """How many looks there were, of which the lines of the past tell, is chance."""
    head, totals, rest = text.split("\n", 2)
    return "\n".join((head, totals.replace("▁", "").replace("▅", ""), rest))


@pytest.mark.parametrize("size", [(20, 5), (60, 10), (400, 120)])
async def test_any_size_will_do(control, size):
    app = TopApp(control.connect, interval_s=0.05)
    async with app.run_test(size=size) as pilot:
        await shown(pilot, "instances 3")
        await pilot.resize_terminal(80, 24)
        await shown(pilot, "requests 12")


class TestSeeing:
    async def test_panes_by_number(self, control):
        async with opened(control) as pilot:
            assert "hosts 2" not in screen_text(pilot.app)
            await pilot.press("5")
            assert "10.0.0.2" in await shown(pilot, "5 hosts 2")
            await pilot.press("2")
            await shown(pilot, "2 requests 12", without="hosts 2")

    async def test_a_pane_alone(self, control):
        control.found = snapshot(num_requests=20)
        async with opened(control) as pilot:
            await pilot.press("2", "z")
            await shown(pilot, "llx-0000000000000013", without="instances 3")
            await pilot.press("z")
            await shown(pilot, "instances 3")

    async def test_sorting(self, control):
        async with opened(control) as pilot:
            await pilot.press("r")
            text = await settled(pilot, control, "name▼")
            rows = [line.split()[0] for line in text.splitlines() if line.startswith(" tiny-")]
            assert rows == ["tiny-2", "tiny-1", "tiny-0"]
            await pilot.press("s")
            await shown(pilot, "state▲")

    async def test_the_cursor_stays_on_the_same_request(self, control):
        async with opened(control) as pilot:
            await pilot.press("2", "down", "down", "j", "k")
            table = pilot.app.table(Pane.REQUESTS)
            key = control.found.requests.requests[2].id
            await until(pilot, lambda: table.selected_key == key)
            rest = control.found.requests.requests[1:]
            less = control.found.requests.model_copy(update={"requests": rest, "num_found": 11})
            control.found = snapshot(requests=less)
            await shown(pilot, "requests 11")
            await until(pilot, lambda: (table.selected_key, table.cursor_row) == (key, 1))

    async def test_a_filter_reaches_the_cluster_and_every_pane(self, control):
        async with opened(control) as pilot:
            await pilot.press("slash", *"tiny-1", "enter")
            words = 'instances 1 of 3   filter "tiny-1"'
            await shown(pilot, words, without="tiny-0  ready")
            await until(pilot, lambda: control.matches[-1] == "tiny-1")
            await until(pilot, lambda: pilot.app.focused is pilot.app.table(Pane.INSTANCES))
            await pilot.press("escape")
            await shown(pilot, "instances 3\n")

    async def test_one_thing_in_detail_goes_on_living(self, control):
        async with opened(control, (120, 40)) as pilot:
            await pilot.press("3", "enter")
            await shown(pilot, "blocks copied  30")
            assert isinstance(pilot.app.screen, DetailScreen)
            moves = [*control.found.migrations[:-1], migration(9, blocks_copied=77)]
            control.found = snapshot(migrations=moves)
            await shown(pilot, "blocks copied  77")
            control.found = snapshot(migrations=[])
            text = await shown(pilot, "migration m3-9: not there any more")
            assert "blocks copied  77" in text, "what was last known of it stays"
            await pilot.press("escape")
            await shown(pilot, "instances 3")

    async def test_help_names_every_key(self, control):
        async with opened(control, (80, 30)) as pilot:
            await pilot.press("question_mark")
            text = await shown(pilot, "migrate a request")
            for words in (
                "cordon or uncordon",
                "drain an instance",
                "sort by",
                "only what contains",
            ):
                assert words in text
            await pilot.press("escape")
            await shown(pilot, "instances 3", without="migrate a request")

    async def test_held_still(self, control):
        async with opened(control) as pilot:
            await pilot.press("space")
            await shown(pilot, "held still")
            control.found = snapshot(num_requests=30)
            await looked(pilot, control)
            assert "requests 12" in screen_text(pilot.app)
            await pilot.press("space")
            await shown(pilot, "requests 30")


@pytest.mark.slow
class TestLosingTheCluster:
    async def test_the_last_picture_stays_until_somebody_answers(self, control):
        async with opened(control) as pilot:
            control.error = UnreachableError("the head is not running")
            assert "tiny-0" in await shown(pilot, "reconnecting")
            control.error = None
            control.found = snapshot(num_requests=30)
            await shown(pilot, "requests 30", without="reconnecting")

    async def test_a_look_that_hangs_is_not_called_live(self, control):
        hanging = threading.Event()
        async with opened(control) as pilot:
            control.pause = hanging.wait
            assert "tiny-0" in await shown(pilot, "no answer for")
            control.pause = None
            hanging.set()
            await shown(pilot, LIVE)

    async def test_nobody_has_answered_yet(self, control):
        control.error = UnreachableError("the head is not running yet")
        app = TopApp(control.connect, interval_s=0.05)
        async with app.run_test(size=(80, 24)) as pilot:
            await shown(pilot, "the head is not running yet")
            control.error = None
            await shown(pilot, "instances 3")


@pytest.mark.slow
class TestActing:
    async def test_a_request_moves_where_it_is_told_after_a_yes(self, control):
        async with opened(control) as pilot:
            await pilot.press("2", "m")
            assert "tiny-1" in await shown(pilot, "Where to?")
            await pilot.press("enter")
            await shown(pilot, "Move llx-0000000000000001 (35 blocks) from tiny-0 to tiny-1?")
            assert control.asked == []
            await pilot.press("y")
            await asked(
                pilot, control, ("migrate", control.found.requests.requests[0].id, "tiny-1")
            )
            await shown(pilot, "1 on their way")

    async def test_all_of_an_instance_move(self, control):
        async with opened(control) as pilot:
            await pilot.press("m")
            await shown(pilot, "Where to?")
            await pilot.press("enter")
            await shown(pilot, "Move all 27 requests from tiny-0 to tiny-1?")
            await pilot.press("y")
            await asked(pilot, control, ("migrate", "tiny-0", "tiny-1"))

    async def test_what_cannot_move_says_why(self, control):
        async with opened(control) as pilot:
            await pilot.press("2", "down", "down", "m")
            await shown(pilot, "it is pinned: has a grammar")
            assert not isinstance(pilot.app.screen, ConfirmScreen)

    @pytest.mark.parametrize("key", ["n", "escape"])
    async def test_a_no_changes_nothing(self, control, key):
        async with opened(control) as pilot:
            await pilot.press("d")
            await shown(pilot, "Drain tiny-0?")
            await pilot.press(key)
            await shown(pilot, "instances 3", without="Drain")
            await looked(pilot, control)
            assert control.asked == []

    async def test_other_keys_are_no_answer(self, control):
        async with opened(control) as pilot:
            await pilot.press("d")
            await shown(pilot, "Drain tiny-0?")
            await pilot.press("c", "enter", "space", "x")
            assert isinstance(pilot.app.screen, ConfirmScreen)
            assert control.asked == []

    async def test_drain_an_instance(self, control):
        async with opened(control) as pilot:
            await pilot.press("d")
            await shown(pilot, "its 27 requests move")
            await pilot.press("y")
            await asked(pilot, control, ("drain", "tiny-0", 60.0, "ann"))
            await shown(pilot, "26 moved, 1 finished")

    async def test_a_host_that_cannot_be_drained_says_why(self, control):
        async with opened(control) as pilot:
            await pilot.press("5", "d")
            await shown(pilot, "Drain host gpu1?")
            await pilot.press("y")
            await shown(pilot, "gpu1 is the only host in use")

    async def test_cordon_and_uncordon(self, control):
        async with opened(control) as pilot:
            await pilot.press("c")
            await shown(pilot, "Give tiny-0 nothing new from now on?")
            await pilot.press("y")
            await asked(pilot, control, ("cordon", "tiny-0", True, "ann"))
            await pilot.press("down", "c")
            await shown(pilot, "Use tiny-1 again?")
            await pilot.press("y")
            await asked(pilot, control, ("cordon", "tiny-1", False, "ann"))
            await pilot.press("5", "c")
            await shown(pilot, "Give gpu1 nothing new")
            await pilot.press("y")
            await asked(pilot, control, ("cordon host", "gpu1", True, "ann"))

    async def test_a_migration_is_given_up(self, control):
        async with opened(control) as pilot:
            await pilot.press("3", "down", "x")
            await shown(pilot, "that migration is over")
            await pilot.press("up", "x")
            await shown(pilot, "Give up m3-9?")
            await pilot.press("y")
            await asked(pilot, control, ("cancel", "m3-9", "ann"))

    async def test_a_request_is_cancelled(self, control):
        async with opened(control) as pilot:
            await pilot.press("2", "x")
            await shown(pilot, "Its client gets an error.")
            await pilot.press("n")
            await shown(pilot, "2 requests 12", without="Its client")
            await pilot.press("x")
            await shown(pilot, "Its client gets an error.")
            await pilot.press("y")
            await asked(pilot, control, ("cancel", REQUEST, "", "ann"))
            await shown(pilot, "is cancelled")

    async def test_a_request_gets_another_class(self, control):
        async with opened(control) as pilot:
            await pilot.press("p")
            await shown(pilot, "select a request for another class")
            await pilot.press("2", "p")
            await shown(pilot, "Which class?")
            await pilot.press("enter")
            await shown(pilot, "as urgent from now on?")
            await pilot.press("y")
            await asked(pilot, control, ("set-priority", REQUEST, "urgent", "ann"))
            await shown(pilot, "it has ended meanwhile")

    async def test_keys_act_on_what_is_in_detail(self, control):
        async with opened(control, (100, 40)) as pilot:
            await pilot.press("down", "enter")
            await shown(pilot, "instance tiny-1")
            await pilot.press("d")
            await shown(pilot, "Drain tiny-1?")
            await pilot.press("y")
            await asked(pilot, control, ("drain", "tiny-1", 60.0, "ann"))


async def test_no_colour_where_none_is_wanted(control, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    async with opened(control) as pilot:
        await asyncio.sleep(0)
        styles = {
            segment.style
            for strip in pilot.app.screen._compositor.render_strips()
            for segment in strip.apply_filter(
                pilot.app._filters[-1], pilot.app.background_colors[0]
            )
        }
        colours = {each.color.name for each in styles if each and each.color}
        assert colours <= {"default"}
