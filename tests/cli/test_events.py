"""`llx events` against a head that pretends."""

import json
import os
import signal
import subprocess
import sys

from llx.api import EventList, EventStatus
from tests.cli.servers import NOW

FAILED = EventStatus(
    at=NOW, kind="instance.failed", fields={"name": "m-0", "reason": "exit code 1", "host": None}
)
ASKED = EventStatus(
    at=NOW + 1, kind="instance.drain_asked", user="ann", fields={"name": "m-1", "deadline_s": 60.0}
)


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


def test_following_goes_on_until_interrupted(llx, head, tmp_path):
    head.events = [
        EventList(events=[FAILED], cursor="1:5"),
        EventList(events=[], cursor="1:5"),
        EventList(events=[ASKED], cursor="1:9"),
        EventList(events=[], cursor="1:9"),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "llx", "events", "-f", "-o", "json"],
        env={**os.environ, **llx.variables}, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            lines = [json.loads(process.stdout.readline()) for _ in range(2)]
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
        finally:
            process.kill()
    assert [each["kind"] for each in lines] == ["instance.failed", "instance.drain_asked"]
    asked = [each for each in head.asked if "after=1%3A5" in each]
    assert asked, "it goes on from where it was"
