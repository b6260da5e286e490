"""`llx req`: what is asked of the head, what is said."""

import json

import pytest
import yaml

from llx.api import NotChanged, RequestChangeReport, RequestList
from tests.cli.servers import request_status


def test_filters_and_pages_are_the_heads_to_apply(llx, head):
    words = "--instance m-0 --model m --state waiting --class urgent --movable --limit 2 --offset 4"
    assert llx("req", "ls", "abc", *words.split()).exit_code == 0
    path, _, query = head.asked[-1].partition("?")
    assert path == "GET /v1/requests"
    assert set(query.split("&")) == {
        "instance=m-0", "model=m", "state=waiting", "priority_class=urgent", "pinned=false",
        "limit=2", "offset=4", "match=abc",
    }  # fmt: skip


def test_a_page_says_which_it_is(llx, head):
    head.requests = RequestList(requests=[request_status("a"), request_status("b")], num_found=9)
    done = llx("req", "ls", "--limit", "2", "--offset", "4")
    assert "llx-a" in done.stdout
    assert done.stderr == "5 to 6 of 9\n"
    found = json.loads(llx("req", "ls", "--limit", "2", "-o", "json").stdout)
    assert (found["num_found"], len(found["requests"])) == (9, 2)


def test_all_of_them_need_no_word(llx, head):
    head.requests = RequestList(requests=[request_status("a")], num_found=1)
    done = llx("req", "ls")
    assert (done.exit_code, done.stderr) == (0, "")
    assert head.asked[-1] == "GET /v1/requests?limit=1000"
    llx("req", "ls", "--limit", "0")
    assert head.asked[-1] == "GET /v1/requests"


@pytest.mark.parametrize("given", ["llx-a", "cmpl-a-0-0123abcd"])
def test_one_in_full(llx, head, given):
    done = llx("req", "get", given)
    assert done.exit_code == 0
    assert yaml.safe_load(done.stdout)["num_blocks"] == 34
    found = RequestList.model_validate_json(llx("req", "get", given, "-o", "json").stdout)
    assert found.requests == head.requests.requests
    assert llx("req", "get", given, "-o", "name").stdout == "cmpl-a-0-0123abcd\n"


def test_none_of_that_id(llx, head):
    done = llx("req", "get", "llx-b")
    assert (done.exit_code, done.stdout) == (4, "")


def queued(key, position, **more):
    return request_status(
        key, instance="", state="queued", num_blocks=0, size_bytes=0, position=position, **more
    )


def test_what_waits_centrally_has_a_place_in_its_queue(llx, head):
    requests = [queued("a", 1, nominated="tiny-1"), queued("b", 2), request_status("c")]
    head.requests = RequestList(requests=requests, num_found=3)
    rows = [line.split() for line in llx("req", "ls").stdout.splitlines()[1:]]
    assert rows[0][:6] == ["llx-a", "for", "tiny-1", "normal", "queued", "1"]
    assert rows[1][:5] == ["llx-b", "-", "normal", "queued", "2"]
    assert rows[2][:4] == ["llx-c", "tiny-0", "normal", "running"]


VERBS = [
    (["cancel"], [], "cancelled"),
    (["set-priority"], ["urgent"], "of class urgent"),
    (["pin"], [], "pinned"),
    (["unpin"], [], "movable"),
]


@pytest.mark.parametrize(("verb", "more", "done"), VERBS)
def test_several_are_changed_at_once_and_it_is_said_what_they_are_now(llx, head, verb, more, done):
    changed = [request_status("a"), queued("b", 1)]
    head.changed = RequestChangeReport(changed=changed)
    found = llx("req", *verb, "llx-a", "llx-b", *more)
    assert (found.exit_code, found.stderr) == (0, "")
    assert found.stdout.splitlines() == [
        f"llx-a (running on tiny-0) is {done}", f"llx-b (queued) is {done}",
    ]  # fmt: skip
    ((asked, ask),) = head.changes
    assert (asked, ask.ids, ask.priority_class) == (*verb, ["llx-a", "llx-b"], "".join(more))
    assert ask.user
    names = llx("req", *verb, "llx-a", "llx-b", *more, "-o", "name").stdout
    assert names.split() == [each.id for each in changed]
    printed = llx("req", *verb, "llx-a", "llx-b", *more, "-o", "json").stdout
    assert RequestChangeReport.model_validate_json(printed) == head.changed


@pytest.mark.parametrize(("verb", "more", "done"), VERBS)
def test_a_dry_run_asks_the_head_to_change_nothing(llx, head, verb, more, done):
    found = llx("req", *verb, "llx-a", *more, "--dry-run")
    assert found.stdout == f"llx-a (running on tiny-0) would be {done}\n"
    assert (found.exit_code, found.stderr) == (0, "nothing was changed\n")
    assert head.changes[0][1].is_dry_run


NOT_FOUND = NotChanged(
    given="llx-x", error="not_found", reason='no request "llx-x": it has ended, or never was',
    remedy="llx req ls; did you mean llx-y?",
)  # fmt: skip
ENDED = NotChanged(given="llx-b", error="conflict", reason="llx-b has ended meanwhile")
SILENT = NotChanged(given="llx-c", error="unreachable", reason="llx-c may be with gateway-0")


@pytest.mark.parametrize(
    ("not_changed", "is_some", "code"),
    [
        ([NOT_FOUND], False, 4),
        ([ENDED], False, 5),
        ([SILENT], False, 3),
        ([ENDED, NOT_FOUND], False, 5),
        ([ENDED], True, 6),
        ([NOT_FOUND, SILENT], True, 6),
    ],
)
def test_what_was_not_done_is_said_and_told_by_the_exit_code(llx, head, not_changed, is_some, code):
    changed = [request_status("a")] if is_some else []
    head.changed = RequestChangeReport(changed=changed, not_changed=not_changed)
    found = llx("req", "pin", "a", "b")
    assert found.exit_code == code
    assert [line for line in found.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: {each.reason}" for each in not_changed
    ]
    assert ("did you mean llx-y?" in found.stderr) is (NOT_FOUND in not_changed)


def test_generations_of_one_answer_are_named_once(llx, head):
    both = [request_status("a"), request_status("a", id="1_cmpl-a-0-0123abcd")]
    head.changed = RequestChangeReport(changed=both)
    assert llx("req", "pin", "llx-a").stdout == "llx-a (running on tiny-0) is pinned\n"


def test_what_cannot_move_anyway_is_not_called_movable(llx, head):
    fixed = request_status("a", pinned="it has images or other media")
    head.changed = RequestChangeReport(changed=[fixed])
    assert "cannot move: it has images" in llx("req", "unpin", "llx-a").stdout
