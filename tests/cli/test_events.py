"""`llx events` against a head that pretends."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from llx.api import EventList, EventStatus
from llx.cli.events import follow_events
from llx.cli.session import Session
from llx.errors import NotFoundError, RemoteError, UnreachableError
from tests.cli.servers import NOW

FAILED = EventStatus(
    at=NOW, kind="instance.failed", fields={"name": "m-0", "reason": "exit code 1", "host": None}
)
ASKED = EventStatus(
    at=NOW + 1, kind="instance.drain_asked", user="ann", fields={"name": "m-1", "deadline_s": 60.0}
)


@contextmanager
def follow(llx, *options):
    """`llx events -f` as a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "llx", "events", "-f", *options],
        env={**os.environ, **llx.variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def test_events_are_shown_a_line_each(llx, head):
    head.events = [EventList(events=[FAILED, ASKED], num_found=5, cursor="1:9")]
    done = llx("events")
    first, second = done.stdout.splitlines()
    assert first.split("  ", 1)[1] == 'instance.failed        name=m-0 reason="exit code 1"'
    assert second.endswith("instance.drain_asked   name=m-1 deadline_s=60  by ann")
    assert "3 earlier ones are not shown" in done.stderr
    found = json.loads(llx("events", "-o", "json").stdout)
    assert [each["kind"] for each in found["events"]] == ["instance.failed", "instance.drain_asked"]
    assert llx("events", "-o", "name").stdout == "instance.failed\ninstance.drain_asked\n"


def test_what_is_wanted_is_asked_for(llx, head):
    llx("events", "--since", "1h", "--kind", "host", "--kind", "instance.failed", "--limit", "7")
    [asked] = [each for each in head.asked if each.startswith("GET /v1/events")]
    assert "kind=host&kind=instance.failed" in asked
    assert "limit=7" in asked
    assert "last_s=3600" in asked, "what it is then is the head's to say: clocks differ"
    assert llx("events", "--since", "soon").exit_code == 2


@pytest.mark.slow
def test_following_goes_on_until_interrupted(llx, head, tmp_path):
    head.events = [
        EventList(events=[FAILED], cursor="1:5"),
        EventList(events=[], cursor="1:5"),
        EventList(events=[ASKED], cursor="1:9"),
        EventList(events=[], cursor="1:9"),
    ]
    with follow(llx, "-o", "json") as process:
        lines = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert [each["kind"] for each in lines] == ["instance.failed", "instance.drain_asked"]
    asked = [each for each in head.asked if "after=1%3A5" in each]
    assert asked, "it goes on from where it was"


class TestFollowing:
    """Past what the head does, and to what end."""

    @pytest.fixture
    def place(self, llx):
        return llx.environment.cluster_dir("local")

    @pytest.fixture
    def following(self, llx, head):
        """`head` has answered once; it gives up soon."""
        head.events = [EventList(events=[FAILED], cursor="1:5")]
        session = Session(context_name="local")
        session.environment = llx.environment
        found = follow_events(session, "1:0", give_up_s=0.3)
        assert next(found) == [FAILED]
        return found

    def test_a_cluster_that_is_taken_down_ends_it(self, following, head, place):
        (place / "cluster.yaml").unlink()
        head.token = "none is right any more"
        with pytest.raises(UnreachableError, match=r"^cluster local is down") as caught:
            next(following)
        assert caught.value.exit_code == 3

    def test_a_cluster_that_is_purged_ends_it(self, following, head, place):
        shutil.rmtree(place)
        head.token = "none is right any more"
        with pytest.raises(NotFoundError, match=r'^no cluster "local"') as caught:
            next(following)
        assert caught.value.exit_code == 4

    def test_a_token_that_is_refused_though_just_read_ends_it(self, following, head):
        head.token = "another"
        with pytest.raises(RemoteError, match=r"^no$"):
            next(following)

    def test_a_token_that_has_changed_does_not(self, following, head, place):
        head.token = "another"
        (place / "token").write_text("another")
        assert next(following) == [FAILED]

    def test_a_head_that_stays_away_ends_it(self, following, head):
        head.is_gone = True
        with pytest.raises(UnreachableError, match=r"^no answer for 0.3 s: ") as caught:
            next(following)
        assert (caught.value.exit_code, caught.value.remedy) == (3, "llx up")

    def test_a_head_that_comes_back_does_not(self, following, head, capsys):
        """It is away for as long as one question takes."""
        answer = head.answer

        def fail_once(handler, _body):
            head.answer = answer
            handler.close_connection = True

        head.answer = fail_once
        assert next(following) == [FAILED]
        assert capsys.readouterr().err.endswith("; reconnecting\n")

    @pytest.mark.slow
    def test_it_ends_with_its_cluster_though_another_is_up(self, llx, head, place):
        head.events = [EventList(events=[each]) for each in (FAILED, ASKED)] + [
            EventList(events=[])
        ]
        with follow(llx) as process:
            assert "instance.failed" in process.stdout.readline()
            assert "instance.drain_asked" in process.stdout.readline()
            head.token = "another"
            head.register(llx.environment.cluster_dir("other"))
            (place / "cluster.yaml").unlink()
            _, said = process.communicate(timeout=60)
        assert process.returncode == 3
        assert "error: cluster local is down\nremedy: llx up\n" in said
