"""The pure part: bars, rates, tables, which panes fit."""

from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llx.api import RequestList
from llx.cli.render import print_table
from llx.top.actions import Refusal, Selected, targets
from llx.top.columns import class_lines
from llx.top.detail import describe
from llx.top.drawing import bar, count_text, shortened, sparkline
from llx.top.headline import cluster_line, totals_line
from llx.top.layout import LEFT, RIGHT, WIDE, plan_layout
from llx.top.panes import PANES, Pane, sheet_of
from llx.top.plain import pane_title, plain_parts
from llx.top.table import Sorting
from llx.top.trend import MAX_POINTS, Trend
from tests.top.cluster import NOW, cluster, request, snapshot


def text_of(part, width=100):
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(part)
    return console.file.getvalue()


class TestDrawing:
    @pytest.mark.parametrize(
        ("share", "drawn"),
        [(0.0, "····"), (0.001, "▏···"), (0.5, "██··"), (0.53, "██▏·"), (1.0, "████"), (7, "████")],
    )
    def test_bars(self, share, drawn):
        assert bar(share, 4).plain == drawn

    @given(st.floats(-1, 2), st.integers(1, 60))
    def test_a_bar_is_as_wide_as_asked(self, share, width):
        assert len(bar(share, width).plain) == width

    def test_a_full_bar_is_red(self):
        assert [bar(share, 4).spans[0].style for share in (0.5, 0.85, 0.97)] == [
            "green", "yellow", "red",
        ]  # fmt: skip

    def test_lines_of_the_past(self):
        assert sparkline([0, 1, 4, 8], 6).plain == "  ▁▁▄█"
        assert sparkline([1, 1], 2, top=2.0).plain == "▄▄"
        assert sparkline([9, 9, 1, 2], 2).plain == "▄█", "only what is shown counts"
        assert sparkline([], 3).plain == "   "

    @pytest.mark.parametrize(
        ("value", "text"),
        [(0, "0"), (9410, "9410"), (35_400, "35k"), (2.1e6, "2.1M"), (7.2e10, "72G")],
    )
    def test_counts(self, value, text):
        assert count_text(value) == text

    def test_the_middle_of_what_is_long_is_left_out(self):
        assert shortened("abcdefghij", 10) == "abcdefghij"
        assert shortened("abcdefghijk", 6) == "ab…ijk"


def trend(*points):
    found = Trend()
    for at, tokens in points:
        found = found.then(snapshot(at=at, tokens=tokens))
    return found


class TestTrend:
    def test_tokens_per_second(self):
        assert Trend().tokens_per_s is None
        assert trend((0, 100)).tokens_per_s is None
        assert trend((0, 100), (1, 150)).tokens_per_s == 50
        assert trend((0, 0), (1, 900), (4, 930), (5, 940)).tokens_per_s == 10, "of the last 3 s"
        assert trend((0, 100), (2, 300), (3, 300)).token_rates == [100, 0]

    def test_a_gateway_that_began_anew(self):
        assert trend((0, 1000), (1, 30)).tokens_per_s == 30

    def test_a_gateway_that_is_new_tells_nothing_yet(self):
        none = cluster().model_copy(update={"gateways": []})
        found = Trend().then(snapshot(at=0, status=none)).then(snapshot(at=1, tokens=999))
        assert found.tokens_per_s == 0

    def test_it_is_bounded(self):
        found = trend(*((n, n) for n in range(MAX_POINTS + 9)))
        assert len(found.points) == MAX_POINTS
        assert found.points[-1].at == MAX_POINTS + 8


class TestPanes:
    def keys(self, pane, **options):
        return [row.key for row in sheet_of(pane, snapshot(), width=300, **options).rows]

    def test_sorted_by_any_column(self):
        by = {"kv": ["tiny-2", "tiny-1", "tiny-0"], "free": ["tiny-2", "tiny-0", "tiny-1"]}
        for title, keys in by.items():
            assert self.keys(Pane.INSTANCES, sorting=Sorting(title)) == keys
        found = self.keys(Pane.INSTANCES, sorting=Sorting("kv", is_reversed=True))
        assert found == ["tiny-0", "tiny-1", "tiny-2"]
        assert self.keys(Pane.MIGRATIONS) == ["m3-9", "m3-2", "m3-1"], "open first, then the last"

    @pytest.mark.parametrize("pane", list(PANES))
    def test_every_column_sorts(self, pane):
        for title in sheet_of(pane, snapshot(), width=300).titles:
            assert len(self.keys(pane, sorting=Sorting(title, is_reversed=True)))

    def test_filtered_by_any_cell(self):
        assert self.keys(Pane.INSTANCES, match="CORDON") == ["tiny-1"]
        assert self.keys(Pane.MIGRATIONS, match="no room") == ["m3-2"]
        sheet = sheet_of(Pane.REQUESTS, snapshot(), width=80, match="urgent")
        assert (len(sheet.rows), sheet.num_all) == (1, 12)

    def test_a_hidden_column_is_filtered_by_as_well(self):
        narrow = sheet_of(Pane.INSTANCES, snapshot(), width=80, match="gpu2")
        assert "host" not in narrow.titles
        assert [row.key for row in narrow.rows] == ["tiny-1", "tiny-2"]

    def test_moves_in_and_out(self):
        sheet = sheet_of(Pane.INSTANCES, snapshot(), width=80)
        at = sheet.titles.index("moves")
        assert [row.cells[at].plain for row in sheet.rows] == ["↑1", "↓1", ""]

    def test_classes_with_the_longest_wait(self):
        urgent, normal = class_lines(snapshot())
        assert (urgent.name, urgent.running, urgent.waiting) == ("urgent", 0, 1)
        assert urgent.oldest_waiting_at == NOW - 88
        assert (normal.running, normal.waiting, normal.preempted) == (10, 0, 1)
        assert normal.oldest_waiting_at is None

    def test_what_waits_centrally(self):
        queued = request(
            1, instance="", state="queued", position=1, nominated="tiny-1", num_blocks=0
        )
        found = snapshot(requests=RequestList(requests=[queued], num_found=1))
        sheet = sheet_of(Pane.REQUESTS, found, width=80)
        cells = dict(zip(sheet.titles, sheet.rows[0].cells, strict=True))
        assert (cells["instance"].plain, cells["state"].plain) == ("for tiny-1", "queued 1")
        (line,) = class_lines(found)
        assert (line.waiting, line.oldest_waiting_at) == (1, queued.arrived_at)
        refused = targets(found, Selected(Pane.REQUESTS, queued.id))
        assert refused == Refusal("it waits for an instance in the central queue")

    def test_titles_say_what_is_not_shown(self):
        less = RequestList(requests=[], num_found=700, not_asked=["tiny-2: no answer in 3 s"])
        found = snapshot(requests=less)
        sheet = sheet_of(Pane.REQUESTS, found, width=80)
        assert pane_title(Pane.REQUESTS, sheet, found) == (
            "requests 0 of 700 (not known: those of tiny-2)"
        )
        sheet = sheet_of(Pane.INSTANCES, found, width=80, match="tiny-1")
        assert pane_title(Pane.INSTANCES, sheet, found) == "instances 1 of 3"


class TestHeadline:
    @given(st.integers(1, 300))
    def test_lines_are_never_too_long(self, width):
        found = snapshot()
        assert cluster_line(found, width).cell_len <= width
        assert totals_line(found, Trend().then(found), width).cell_len <= width


ROWS = st.fixed_dictionaries({each: st.integers(0, 2000) for each in Pane})


class TestLayout:
    @given(st.integers(60, 300), st.integers(8, 120), ROWS, st.sampled_from(Pane), st.booleans())
    def test_every_column_is_filled_and_the_focused_pane_is_there(
        self, width, height, rows, focused, is_zoomed
    ):
        found = plan_layout(width, height, rows, focused, is_zoomed=is_zoomed)
        assert found.heights[focused] >= 3
        columns = [LEFT, RIGHT] if found.is_wide else [(*LEFT, *RIGHT)]
        assert found.is_wide is (width >= WIDE and not is_zoomed)
        for column in columns:
            assert sum(found.heights.get(pane, 0) for pane in column) == height
        assert all(lines >= 3 for lines in found.heights.values())

    def test_a_small_terminal_has_the_first_panes_and_the_focused_one(self):
        rows = dict.fromkeys(Pane, 5)
        first = plan_layout(80, 21, rows, Pane.INSTANCES).heights
        assert list(first) == [Pane.INSTANCES, Pane.REQUESTS, Pane.MIGRATIONS]
        then = plan_layout(80, 21, rows, Pane.HOSTS).heights
        assert list(then) == [Pane.INSTANCES, Pane.REQUESTS, Pane.HOSTS]

    def test_a_large_one_has_all(self):
        assert set(plan_layout(160, 47, dict.fromkeys(Pane, 5), Pane.HOSTS).heights) == set(Pane)


class TestDetail:
    @pytest.mark.parametrize(
        ("pane", "key", "words"),
        [
            (Pane.INSTANCES, "tiny-0", ["blocks used", "1988", "requests 11", "migrations 3"]),
            (Pane.REQUESTS, f"chatcmpl-{3:016x}-0123abcd", ["has a grammar", "priority class"]),
            (Pane.MIGRATIONS, "m3-2", ["tiny-1 has no room", "asked for"]),
            (Pane.CLASSES, "tiny/0", ["urgent", "requests 1"]),
            (Pane.HOSTS, "gpu2", ["lost", "10.0.0.2"]),
            (Pane.GATEWAYS, "gateway-0", ["54321"]),
        ],
    )
    def test_everything_about_one_thing(self, pane, key, words):
        text = text_of(describe(snapshot(), Selected(pane, key), 100))
        for word in words:
            assert word in text

    def test_what_is_gone(self):
        assert describe(snapshot(), Selected(Pane.INSTANCES, "tiny-9"), 100) is None


@pytest.mark.golden
@pytest.mark.parametrize("width", [80, 160, 250])
def test_one_look(golden, width):
    found = snapshot(at=NOW, tokens=54321)
    before = snapshot(at=NOW - 1, tokens=53321)
    console = Console(file=StringIO(), width=width, color_system=None)
    for part in plain_parts(found, Trend().then(before).then(found), width):
        print_table(console, part)
    golden(f"top/once-{width}.txt", console.file.getvalue())
