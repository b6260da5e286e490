"""`llx req`: what is asked of the head, what is said."""

import json

import pytest
import yaml

from llx.api import RequestList
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
