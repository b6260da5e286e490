"""`llx migrate`, `mig` and `req` against a head that pretends."""

import json
from io import StringIO

import pytest
from rich.console import Console

from llx.api import (
    LeftOut,
    MigrateReport,
    MigrationStatus,
    MoveOutcome,
    PlannedMove,
    RequestList,
)
from llx.cli.move_progress import follow
from llx.cli.move_tables import (
    migration_columns,
    milliseconds,
    planned_columns,
    progress_text,
    request_columns,
    size_text,
)
from llx.cli.render import print_table, table
from tests.cli.servers import NOW, migration_status, request_status

MOVED = {"outcome": MoveOutcome.MOVED, "ended_at": NOW, "downtime_ms": 9.6, "itl_ms": 8.1}
KEPT = {"outcome": MoveOutcome.KEPT, "reason": "the target is full"}
PINNED = LeftOut(request="x", name="llx-x", instance="tiny-0", reason="pinned: it has a pooler")


@pytest.mark.golden
class TestTables:
    def write(self, golden, name, columns, rows):
        for width, is_wide in ((80, False), (200, True)):
            console = Console(file=StringIO(), width=width, color_system=None)
            print_table(console, table(columns, rows, is_wide=is_wide))
            golden(f"{name}-{width}.txt", console.file.getvalue())

    def test_requests(self, golden):
        rows = [
            request_status("a", name="llx-0123456789abcdef"),
            request_status("b", state="waiting", num_blocks=0, size_bytes=0),
            request_status("c", name="", pinned="it has a pooler", priority=3, priority_class=""),
            request_status("d", state="leaving", migration="m3-4", instance="tiny-1"),
        ]
        self.write(golden, "requests", request_columns(NOW), rows)

    def test_migrations(self, golden):
        rows = [
            migration_status(
                1,
                **MOVED,
                name="llx-0123456789abcdef",
                num_stages=3,
                blocks_reused=4,
                num_tokens=530,
                transport="nccl",
                transport_why="cuda-ipc: not within one host",
            ),
            migration_status(2, **KEPT, rate=0.0),
            migration_status(3, transport="cuda-ipc"),
            migration_status(4, state="ordered", blocks_copied=0, size_bytes=0, rate=0.0),
        ]
        self.write(golden, "migrations", migration_columns(NOW), rows)

    def test_plan(self, golden):
        rows = [
            PlannedMove(request=request_status("a"), target="tiny-1", copy_s=0.0356),
            PlannedMove(request=request_status("b", num_blocks=0), target="tiny-1"),
        ]
        self.write(golden, "planned", planned_columns(), rows)


class TestMigrate:
    def test_says_what_has_begun(self, llx, head):
        head.migrated = MigrateReport(migrations=[migration_status(1, state="ordered")])
        done = llx("migrate", "r1", "--to", "tiny-1", LOGNAME="ada")
        assert (done.exit_code, done.stderr) == (0, "")
        assert done.stdout == "m3-1 llx-r1 tiny-0 → tiny-1\n"
        (order,) = head.orders
        assert (order.request, order.source, order.target) == ("r1", "", "tiny-1")
        assert order.user.startswith("ada@")
        assert (order.is_dry_run, order.is_checked, order.is_blocking) == (False, False, False)
        assert llx("migrate", "r1", "--to", "tiny-1", "-o", "name").stdout == "m3-1\n"
        found = llx("migrate", "r1", "--to", "tiny-1", "-o", "json").stdout
        assert MigrateReport.model_validate_json(found) == head.migrated

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ("", (1, "shortest")),
            ("--count 3 --by oldest", (3, "oldest")),
            ("--all --by lowest-class", (None, "lowest-class")),
        ],
    )
    def test_some_of_an_instance(self, llx, head, words, expected):
        head.migrated = MigrateReport(migrations=[migration_status(n) for n in range(3)])
        done = llx("migrate", "--from", "tiny-0", "--to", "tiny-1", *words.split(), "--check")
        assert done.exit_code == 0
        (order,) = head.orders
        assert (order.count, order.by) == expected
        assert (order.source, order.request, order.is_checked) == ("tiny-0", "", True)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("r1", "where to?"),
            ("--to tiny-1", "either a request or --from"),
            ("r1 --from tiny-0 --to tiny-1", "either a request or --from"),
            ("r1 --to tiny-1 --count 2", "go with --from"),
            ("r1 --to tiny-1 --all", "go with --from"),
            ("--from tiny-0 --to tiny-1 --all --count 2", "not both"),
            ("--from tiny-0 --to tiny-1 --by size", 'no choice "size"'),
        ],
    )
    def test_what_makes_no_sense(self, llx, head, words, message):
        done = llx("migrate", *words.split())
        assert (done.exit_code, done.stdout, head.orders) == (2, "", [])
        assert message in done.stderr

    def test_a_dry_run_says_what_would_be(self, llx, head):
        planned = [PlannedMove(request=request_status("a"), target="tiny-1", copy_s=0.0356)]
        head.migrated = MigrateReport(planned=planned, left_out=[PINNED])
        done = llx("migrate", "--from", "tiny-0", "--to", "tiny-1", "--all", "--dry-run")
        assert done.exit_code == 6
        assert head.orders[0].is_dry_run
        assert done.stdout.splitlines()[1].split() == [
            "llx-a", "tiny-0", "tiny-1", "running", "530", "34", "8.5", "MiB", "36", "ms",
        ]  # fmt: skip
        assert done.stderr.splitlines() == [
            "downtime of each: about one decode step (no move was measured yet)",
            "nothing was changed",
            "does not move: llx-x on tiny-0 pinned: it has a pooler",
        ]
        measured = [planned[0].model_copy(update={"downtime_ms": 8.94})]
        head.migrated = MigrateReport(planned=measured, num_seen=12)
        done = llx("migrate", "a", "--to", "tiny-1", "--dry-run")
        assert done.exit_code == 0
        assert "downtime of each: about 8.9 ms, as of the last 12 moves" in done.stderr

    @pytest.mark.parametrize(
        ("words", "report", "code"),
        [
            ("r1", MigrateReport(left_out=[PINNED]), 1),
            ("--from tiny-0 --all", MigrateReport(left_out=[PINNED]), 1),
            ("--from tiny-0 --all", MigrateReport(), 0),
            ("--from tiny-0", MigrateReport(), 1),
            ("--from tiny-0 --count 2", MigrateReport(migrations=[migration_status(1)]), 6),
            (
                "--from tiny-0 --all",
                MigrateReport(migrations=[migration_status(1)], left_out=[PINNED]),
                6,
            ),
        ],
    )
    def test_how_it_ends_when_not_all_moves(self, llx, head, words, report, code):
        head.migrated = report
        done = llx("migrate", *words.split(), "--to", "tiny-1")
        assert done.exit_code == code
        if report.left_out:
            assert "does not move: llx-x on tiny-0 pinned: it has a pooler\n" in done.stderr
        elif not report.migrations:
            assert done.stderr == "tiny-0 has no requests\n"


class TestWait:
    def wait(self, llx, head, *later, count=1, words=("r1",)):
        begun = [migration_status(n + 1, state="ordered", stage=0) for n in range(count)]
        head.migrated = MigrateReport(migrations=begun)
        head.later = list(later)
        return llx("migrate", *words, "--to", "tiny-1", "--wait")

    def test_shows_how_it_gets_on_and_the_downtime(self, llx, head):
        reserving = {"m3-1": {"state": "reserving", "blocks_copied": 0}}
        copying = {"m3-1": {"state": "copying", "stage": 1, "blocks_copied": 30}}
        over = {"m3-1": {**MOVED, "stage": 2, "downtime_ms": None}}
        done = self.wait(llx, head, reserving, copying, over, {}, {"m3-1": MOVED})
        assert done.exit_code == 0
        what = "m3-1 llx-r1 tiny-0 → tiny-1"
        end = f"{what}: moved; 30 blocks, 7.5 MiB in 41 ms, downtime 9.6 ms (ITL 8.1 ms)"
        assert done.stderr.splitlines() == [
            f"{what}: reserving",
            f"{what}: copying, stage 1, 30 blocks, 7.5 MiB, 238 MiB/s",
            end,
        ]
        assert done.stdout == f"{end}\n"

    def test_some_moved(self, llx, head):
        some = {"m3-1": MOVED, "m3-2": KEPT}
        done = self.wait(llx, head, some, count=2, words=("--from", "tiny-0", "--count", "2"))
        assert done.exit_code == 6
        assert "m3-2 llx-r2 tiny-0 → tiny-1: kept: the target is full; 30 blocks" in done.stdout

    def test_none_moved(self, llx, head):
        assert self.wait(llx, head, {"m3-1": KEPT}).exit_code == 1

    def test_what_has_ended_is_no_failure_beside_what_moved(self, llx, head):
        ends = {"m3-1": MOVED, "m3-2": {"outcome": MoveOutcome.GONE, "reason": "it has ended"}}
        done = self.wait(llx, head, ends, count=2, words=("--from", "tiny-0", "--all"))
        assert done.exit_code == 0
        gone = {"m3-1": {"outcome": MoveOutcome.GONE, "reason": "it has ended"}}
        assert self.wait(llx, head, gone).exit_code == 1

    def test_a_new_head_does_not_know_how_it_ended(self, llx, head):
        head.migrated = MigrateReport(migrations=[migration_status(1)])
        head.forgets = True
        done = llx("migrate", "r1", "--to", "tiny-1", "--wait")
        assert done.exit_code == 1
        assert "unknown: the head has no record of it any more" in done.stdout

    def test_on_a_terminal_it_is_one_picture(self):
        console = Console(file=StringIO(), width=90, force_terminal=True, color_system=None)
        states = [
            [migration_status(1)],
            [migration_status(1, **{**MOVED, "downtime_ms": None})],
        ]
        clock = iter(range(100))
        found = follow(
            console,
            lambda _: states.pop(0) if len(states) > 1 else states[0],
            [migration_status(1)],
            clock=lambda: next(clock),
            sleep=lambda _: None,
        )
        assert found[0].outcome is MoveOutcome.MOVED, "a gateway that tells nothing holds up nobody"
        shown = console.file.getvalue()
        assert "copying, stage 2, 30 blocks, 7.5 MiB, 238 MiB/s" in shown
        assert "1 of 1 over" in shown


class TestMigrations:
    def test_ls(self, llx, head):
        head.moves = [migration_status(1, **MOVED), migration_status(2)]
        lines = llx("mig", "ls").stdout.splitlines()
        assert lines[0].split()[:5] == ["ID", "REQUEST", "SOURCE", "TARGET", "STATE"]
        assert [line.split()[4] for line in lines[1:]] == ["moved", "copying"]
        assert llx("mig", "ls", "--open", "-o", "name").stdout == "m3-2\n"
        found = json.loads(llx("mig", "ls", "-o", "json").stdout)
        assert [MigrationStatus.model_validate(each) for each in found] == head.moves

    def test_get_and_cancel(self, llx, head):
        head.moves = [migration_status(1), migration_status(2, **MOVED)]
        assert llx("mig", "get", "m3-1").stdout.startswith("api_version: v1\nid: m3-1\n")
        done = llx("mig", "get", "m3-9")
        assert (done.exit_code, done.stderr) == (4, 'error: no "m3-9"\nremedy: look\n')
        done = llx("mig", "cancel", "m3-1", "--dry-run")
        assert (done.exit_code, done.stderr) == (0, "nothing was changed\n")
        assert llx("mig", "cancel", "m3-2", "--dry-run").exit_code == 5
        assert not [each for each in head.asked if each.startswith("POST")]
        assert llx("mig", "cancel", "m3-1", "-o", "name").stdout == "m3-1\n"
        assert [each for each in head.asked if "POST /v1/migrations/m3-1/cancel?user=" in each]


class TestRequests:
    def test_ls(self, llx, head):
        head.requests = RequestList(
            requests=[request_status("a")], not_asked=["tiny-1: no answer in 3 s"]
        )
        done = llx("req", "ls")
        assert done.exit_code == 0
        assert done.stdout.splitlines()[1].split()[:4] == ["llx-a", "tiny-0", "normal", "running"]
        assert done.stderr == "not known: the requests of tiny-1: no answer in 3 s\n"
        assert llx("req", "ls", "-o", "name").stdout == "cmpl-a-0-0123abcd\n"
        found = RequestList.model_validate_json(llx("req", "ls", "-o", "json").stdout)
        assert found == head.requests


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0 ms"), (0.42, "0.42 ms"), (9.64, "9.6 ms"), (41.0, "41 ms"),
     (3400.0, "3.4 s")],
)  # fmt: skip
def test_milliseconds(value, text):
    assert milliseconds(value) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (1024, "1.0 KiB"), (8_912_896, "8.5 MiB"), (12 << 30, "12 GiB"),
     (1 << 52, "4096 TiB")],
)  # fmt: skip
def test_sizes(size, text):
    assert size_text(size) == text


def test_a_line_of_an_end_without_figures():
    gone = migration_status(1, outcome=MoveOutcome.UNKNOWN, reason="tiny-0: disconnected")
    assert progress_text(gone).endswith(
        ": unknown: tiny-0: disconnected; 30 blocks, 7.5 MiB in 41 ms"
    )
