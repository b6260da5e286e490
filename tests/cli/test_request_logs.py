"""One request's story out of the logs of two hosts."""

import re
import subprocess
from collections import Counter

import pytest

from llx.bootstrap.request_story import (
    SEARCH,
    StoryLine,
    check_id,
    ids_in,
    lines_of,
    pattern_of,
)
from llx.cli import request_logs
from llx.cli.request_logs import show_request_logs, unseen
from llx.errors import ConfigError, DeadlineError, ExitCode, LlxError, NotFoundError

T = "2026-11-28T10:00:0"
GATEWAY = f"""{T}1.000Z INFO pool.accepted request=cmpl-mine-0-aa name=llx-01 client=mine model=tiny
{T}1.001Z INFO pool.accepted request=cmpl-mine2-0-bb name=llx-02 client=mine2 model=tiny
{T}1.200Z INFO pool.dispatched request=cmpl-mine-0-aa instance=tiny-0 epoch=1
{T}5.000Z INFO pool.finished request=cmpl-mine-0-aa reason=stop num_outputs=9
"""
SOURCE = f"""{T}1.300Z INFO request.added request=cmpl-mine-0-aa name=llx-01 epoch=1
{T}2.000Z INFO migration.begins migration=m1-4 request=cmpl-mine-0-aa target=tiny-1
{T}2.100Z INFO kv.sent migration=m1-4 blocks=4
{T}2.100Z INFO kv.sent migration=m1-40 blocks=4
    a line of a traceback with request=cmpl-mine-0-aa in it
"""
HEAD = f'{T}1.100Z INFO scheduler.placed request=cmpl-mine-0-aa name=llx-01 why="freest, 2 of 2"\n'
STORY = [
    f"{T}1.000Z h1 gateway-0 INFO pool.accepted",
    f"{T}1.100Z h1 head INFO scheduler.placed",
    f"{T}1.200Z h1 gateway-0 INFO pool.dispatched",
    f"{T}1.300Z h2 tiny-0 INFO request.added",
    f"{T}2.000Z h2 tiny-0 INFO migration.begins",
    f"{T}2.100Z h2 tiny-0 INFO kv.sent",
    f"{T}5.000Z h1 gateway-0 INFO pool.finished",
]


class TestOnHosts:
    @pytest.fixture(autouse=True)
    def logs(self, hosts, capsys):
        hosts.know("down.yaml")
        hosts.procs("h1", gateway_0=GATEWAY, head=HEAD)
        hosts.procs("h2", tiny_0=SOURCE)
        self.hosts = hosts

        def show(request, tail=200):
            show_request_logs(hosts.session(), request, tail, is_following=False)
            return capsys.readouterr().out.splitlines()

        self.show = show

    @pytest.mark.parametrize("given", ["mine", "llx-01", "cmpl-mine-0-aa", "m1-4"])
    def test_whichever_id_is_given_all_of_it_is_found_in_order(self, given):
        assert [" ".join(each.split()[:5]) for each in self.show(given)] == STORY

    def test_the_newest_lines_of_it(self):
        assert [" ".join(each.split()[:5]) for each in self.show("mine", 2)] == STORY[-2:]
        assert self.show("mine", 0) == []

    def test_what_was_moved_out_of_a_full_log_comes_before_the_rest(self):
        place = self.hosts.home("h1") / ".llx/clusters/c/procs/gateway-0"
        first, rest = GATEWAY.split("\n", 1)
        (place / "log.1").write_text(first + "\n")
        (place / "log").write_text(rest)
        assert [" ".join(each.split()[:5]) for each in self.show("mine")] == STORY

    def test_a_request_that_nothing_is_known_of(self):
        with pytest.raises(NotFoundError) as caught:
            self.show("min")
        assert caught.value.message == 'no log tells of a request "min"'
        assert "logs are kept of" in caught.value.remedy

    def test_a_host_out_of_reach_is_named_and_the_rest_is_shown(self, capsys):
        self.hosts.off = {"h2"}
        with pytest.raises(LlxError) as caught:
            self.show("mine")
        assert caught.value.exit_code is ExitCode.PARTIAL
        assert caught.value.message.startswith("not searched: h2; lines of theirs are missing")
        said = capsys.readouterr().out.splitlines()
        assert [" ".join(each.split()[:5]) for each in said] == [
            each for each in STORY if " h1 " in each
        ]

    def test_no_host_can_be_reached(self):
        self.hosts.off = {"h1", "h2"}
        with pytest.raises(LlxError) as caught:
            self.show("mine")
        assert caught.value.exit_code is ExitCode.UNREACHABLE


@pytest.mark.parametrize(
    "given",
    ["a b", 'a"b', "a.b*", "a|b", "(a)", "[a", "a\\b", "a/b", "^$", "{2}", "ü", "a=b", "-e", "a+?"],
)
def test_any_id_finds_itself_and_no_other(tmp_path, given):
    from llx.log import quoted_field

    place = tmp_path / "x"
    place.mkdir()
    (place / "log").write_text(
        f"{T}1.000Z INFO a request={quoted_field(given)} x=1\n"
        f"{T}2.000Z INFO b request={given}\n"
        f"{T}3.000Z INFO c request=other-{given}\n"
        f"{T}4.000Z INFO d request=axb\n"
    )
    argv = ["sh", "-c", SEARCH, "sh", str(tmp_path), pattern_of([given]), "10"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert [each.text.split()[1] for each in lines_of("h", done.stdout)] == ["a", "b"]


def test_ids_are_learnt_as_they_were_given_to_the_log(tmp_path):
    line = lines_of("h", f'g/log:1:{T}1.000Z INFO a client=x name="a \\"b" request=r migration=-')
    assert ids_in(line, ["x"]) == ["x", 'a "b', "r"]


@pytest.mark.parametrize("given", ["", "  ", "a\nb", "x" * 257])
def test_what_is_no_id(given):
    with pytest.raises(ConfigError):
        check_id(given)


def test_either_a_process_or_a_request(llx):
    for words in ((), ("head", "--request", "x")):
        done = llx("logs", *words)
        assert done.exit_code == ExitCode.USAGE
        assert re.search("either NAME or --request ID", done.stderr)


def test_a_line_is_shown_once_though_its_log_is_moved_and_twice_if_it_was_said_twice():
    def line(text: str, *, is_present: bool, number: int) -> StoryLine:
        return StoryLine("2026-11-28T10:00:00.000Z", "h1", "m-0", is_present, number, text)

    shown: Counter[tuple[str, str, str, str]] = Counter()
    first = [line("a", is_present=True, number=1), line("b", is_present=True, number=2)]
    assert unseen(first, shown) == first
    moved = [line("a", is_present=False, number=1), line("b", is_present=False, number=2)]
    assert unseen(moved, shown) == []
    again = line("b", is_present=True, number=1)
    assert unseen([*moved, again], shown) == [again]
    assert unseen([*moved, again], shown) == []


def rows(host, text):
    return lines_of(
        host, "".join(f"m-0/log:{n}:{each}\n" for n, each in enumerate(text.split("\n")))
    )


def test_a_host_that_hangs_is_asked_once_in_a_search_and_again_in_the_next():
    asked = []

    def search(pattern, without):
        hosts = [each for each in ("h1", "h2") if each not in without]
        asked.append(hosts)
        hung = DeadlineError("h2: searching: took longer than 60 s")
        return {each: hung if each == "h2" else rows("h1", GATEWAY) for each in hosts}

    for _ in range(2):
        lines, ids, missed = request_logs._story(search, ["mine"])
        assert "cmpl-mine-0-aa" in ids
        assert len(lines) == 4
        assert missed.message.startswith("not searched: h2;")
        assert missed.exit_code is ExitCode.PARTIAL
    assert asked[0] == ["h1", "h2"]
    assert asked[1 : len(asked) // 2] == [["h1"]] * (len(asked) // 2 - 1)
    assert len(asked) >= 4


def test_who_is_not_searched_is_said_once_while_it_is_the_same(monkeypatch, capsys):
    hosts = iter([["h2"], ["h2"], [], ["h2"], ["h2", "h3"]])

    def search(_pattern, _without):
        try:
            down = next(hosts)
        except StopIteration:
            raise KeyboardInterrupt from None
        why = {each: DeadlineError(f"{each}: took {id(down)} s") for each in down}
        return {"h1": [], **why}

    monkeypatch.setattr(request_logs, "_POLL_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        request_logs._show(search, "mine", 10, is_following=True)
    said = [each for each in capsys.readouterr().err.splitlines() if "not searched" in each]
    assert [each.partition(";")[0] for each in said] == [
        "(not searched: h2", "(not searched: h2", "(not searched: h2, h3",
    ]  # fmt: skip
