"""``llx policy set --dry-run``: what other rules would have decided lately."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.api import PolicyList
    from llx.client import Cluster
    from llx.core.scheduler.config import PoolConfig
    from llx.sim.policy_change import Decided, Elsewhere, PolicyComparison

_LIMITS = (
    "An open loop: loads are those that followed from what was done in fact; what would have come\n"
    "of these rules' own decisions they never met. `llx sim run` simulates that."
)


def compare_lately(
    session: Session, control: "Cluster", wanted: "PolicyList", over_s: float
) -> "PolicyComparison | None":
    """Other rules on what the cluster's scheduler has recorded; None, said why, if that fails.

    Args:
        session: For progress, and for why not.
        control: Of the cluster.
        wanted: Each model's rules, as they would be.
        over_s: How much time to look at.
    """
    from tempfile import NamedTemporaryFile

    from llx.cli.sim_output import progress
    from llx.errors import LlxError
    from llx.recording import Recording
    from llx.scheduling_settings import installed_policies
    from llx.sim.policy_change import compare_rules

    try:
        with NamedTemporaryFile(prefix="llx-recording-", suffix=".jsonl") as file:
            size = control.recording(over_s, file)
            file.flush()
            if not size:
                session.err.print("not compared: nothing is recorded yet", markup=False)
                return None
            present = control.policies()
            with progress(session.err, None, "events") as bar:
                return compare_rules(
                    Recording(Path(file.name)),
                    installed_policies(),
                    _change(present, wanted),
                    over_s,
                    _concerned(present, wanted),
                    lambda count: bar("recording", count),
                )
    except LlxError as error:
        session.err.print(f"not compared: {error.message}", markup=False, soft_wrap=True)
        return None


def show_comparison(session: Session, found: "PolicyComparison", over_s: float) -> None:
    """In words and tables, its limits too."""
    from llx.cli.render import Column, print_table, table
    from llx.figures import span

    out = session.out
    less = f" (of {span(over_s)}: more is not recorded)" if found.is_all else ""
    num_both = found.same + found.elsewhere
    share = f" ({100 * found.elsewhere / num_both:.0f}%)" if num_both else ""
    out.print(
        f"\nOver the last {span(found.over_s)}{less} these rules would have sent {found.elsewhere} "
        f"of {num_both} requests{share} elsewhere"
        + _apart(found.only_in_force, found.only_other)
        + ".",
        markup=False,
        highlight=False,
    )
    rows = _rows(found)
    columns: list[Column[_Row]] = [
        Column("", lambda row: row.title),
        Column("these rules", lambda row: row.other, is_number=True),
        Column("those in force", lambda row: row.in_force, is_number=True),
        Column("in fact", lambda row: row.recorded, is_number=True),
    ]
    print_table(out, table(columns, rows))
    if found.examples:
        examples: list[Column[Elsewhere]] = [
            Column("request", lambda row: row.request),
            Column("ago", lambda row: span(row.ago_s), is_number=True),
            Column("in force", lambda row: row.in_force),
            Column("these rules", lambda row: row.other),
        ]
        print_table(out, table(examples, found.examples))
    out.print(f"{_LIMITS}\n{_trust(found)}", markup=False, highlight=False)


def _apart(only_in_force: int, only_other: int) -> str:
    words = []
    if only_other:
        words.append(f"{only_other} that the rules in force keep waiting or refuse")
    if only_in_force:
        words.append(f"and keep waiting or refuse {only_in_force} that those send")
    return f", {', '.join(words)}" if words else ""


def _trust(found: "PolicyComparison") -> str:
    if not found.repeatable:
        return "No dispatch was made in that time that the rules in force could be checked by."
    share = 100 * found.repeated / found.repeatable
    return (
        f"Those in force are asked anew as well: {found.repeated} of {found.repeatable} "
        f"dispatches ({share:.0f}%) come out as they were made."
    )


class _Row(BaseModel):
    title: str
    other: str
    in_force: str
    recorded: str


def _rows(found: "PolicyComparison") -> list[_Row]:
    sides = (found.other, found.in_force, found.recorded)

    def row(title: str, said: "Callable[[Decided], str]") -> _Row:
        first, second, third = (said(each) for each in sides)
        return _Row(title=title, other=first, in_force=second, recorded=third)

    rules = sorted({rule for each in sides for rule in each.moves})
    rows = [
        row("requests dispatched", lambda each: str(each.dispatched)),
        row("… after waiting", lambda each: str(each.waited)),
        row("… on average", lambda each: f"{each.waited_mean_s:.3g} s" if each.waited else "-"),
        row("… at most", lambda each: f"{each.waited_max_s:.3g} s" if each.waited else "-"),
        row("waiting at the end", lambda each: str(each.waiting)),
        row("refused", lambda each: str(each.refused)),
        row("moves ordered", lambda each: str(sum(each.moves.values()))),
    ]
    rows += [
        row(f"… by {rule}", lambda each, rule=rule: str(each.moves.get(rule, 0)))  # type: ignore[misc]
        for rule in rules
    ]
    if any(each.instances_added or each.instances_ended for each in sides):
        rows += [
            row("instances added", lambda each: str(each.instances_added)),
            row("instances ended", lambda each: str(each.instances_ended)),
        ]
    return rows


def _concerned(present: "PolicyList", wanted: "PolicyList") -> "Callable[[str], bool]":
    """Whether a pool would be scheduled otherwise; if none would be: every one."""
    from llx.specs import model_of_pool

    before = {each.model: each.scheduling for each in present.policies}
    others = {each.model for each in wanted.policies if before.get(each.model) != each.scheduling}
    return lambda pool: not others or model_of_pool(pool) in others


def _change(present: "PolicyList", wanted: "PolicyList") -> "Callable[[PoolConfig], PoolConfig]":
    """A pool under the wanted rules of its model; unchanged if they are the present ones."""
    from llx.errors import RemoteError
    from llx.scheduling_settings import SchedulingSettings, with_rules
    from llx.specs import model_of_pool

    before = {each.model: each.scheduling for each in present.policies}
    after = {each.model: each.scheduling for each in wanted.policies}

    def change(pool: "PoolConfig") -> "PoolConfig":
        model = model_of_pool(pool.name)
        if model not in after or after[model] == before.get(model):
            return pool
        try:
            new = SchedulingSettings.model_validate(after[model])
            now = SchedulingSettings.model_validate(before.get(model, after[model]))
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise RemoteError(
                f"the head schedules {model} by rules that are not known here: {message}",
                remedy="run the same llx version here and on the head",
            ) from None
        # Rules that the pool goes without: its instances cannot move requests.
        can_move = bool(pool.rescheduling.steps) or not now.rescheduling.steps
        return with_rules(pool, new, can_move=can_move)

    return change
