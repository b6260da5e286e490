"""`llx bench`: scripted measuring runs."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import command
from llx.cli.generate import the_model
from llx.cli.parameters import ContextOption, ModelOption, OutputOption, UrlOption
from llx.cli.session import Session

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from llx.bench.fault_injector import Strike
    from llx.bench.run import Bench
    from llx.bench.run_directory import Run
    from llx.bench.scenario import Scenario
    from llx.bench.turns import Observe, Progress
    from llx.client import Cluster

app = typer.Typer(
    help="Measure a cluster, or any OpenAI server, by a script.", no_args_is_help=True
)

ScenarioArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A scenario; examples/bench/ has some.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="For the results; default: NAME-DATE in this directory."
    ),
]
SimulatorOption = Annotated[
    Path | None,
    typer.Option(
        "--simulator",
        metavar="SIM.yaml",
        help="In virtual time, on this file's cluster (examples/sim/), by its first policy.",
    ),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="FILE",
        help="In virtual time; engine and link as `llx calibrate` has measured them.",
    ),
]
SideArgument = Annotated[
    str, typer.Argument(metavar="DIR[:VARIANT]", help="A run directory, and which variant of it.")
]


@app.callback()
def _root() -> None:
    """Run, compare, report."""


@app.command("run")
@command
def run(
    file: ScenarioArgument,
    out: OutOption = None,
    model: ModelOption = None,
    output: OutputOption = None,
    url: UrlOption = None,
    context: ContextOption = None,
    simulator: SimulatorOption = None,
    profile: ProfileOption = None,
) -> None:
    """Run a scenario: send its requests when it says so, and keep what came of each.

    Example: llx bench run examples/bench/steady.yaml --out before

    Requests are sent on schedule whether or not the server keeps up, and latencies count from the
    planned time. Of a cluster of llx the load and the migrations are kept, too. Ctrl-C keeps what
    was measured. With --simulator all of it happens in virtual time, on the cluster of a file of
    `llx sim run`.
    """
    from llx.bench.run import run_bench
    from llx.bench.scenario import load_scenario
    from llx.errors import ConfigError

    scenario = load_scenario(file)
    asked = context is not None or url is not None
    if asked and (simulator is not None or profile is not None):
        raise ConfigError("--simulator and --profile ask no server: leave out --url and --context")
    if not asked:
        simulator = simulator or scenario.target.simulator
    if simulator is not None or profile is not None:
        _simulate(Session(output_name=output), scenario, simulator, profile, model, out)
        return
    session = Session(
        context_name=context if asked else scenario.target.context,
        output_name=output,
        url_flag=url if asked else scenario.target.url,
    )
    with contextlib.ExitStack() as stack:
        bench = _bench(session, scenario, model, out or _default_out(scenario), stack)
        _run_and_emit(session, bench.directory, lambda observe: run_bench(bench, observe))


def _simulate(
    session: Session,
    scenario: "Scenario",
    simulator: Path | None,
    profile: Path | None,
    model: str | None,
    out: Path | None,
) -> None:
    """Run it on the simulated cluster of a file, or the default one."""
    from llx.bench.simulated import SimulatedBench, run_simulated
    from llx.scheduling_settings import installed_policies
    from llx.sim.flags import Flags, planned

    plan = planned(simulator, Flags(profile=profile))
    bench = SimulatedBench(
        scenario,
        plan.variants[0].cluster,
        installed_policies(),
        out or _default_out(scenario),
        model or scenario.model or "simulated",
    )
    _run_and_emit(session, bench.directory, lambda observe: run_simulated(bench, observe))


def _run_and_emit(
    session: Session, directory: Path, run_all: "Callable[[Observe], list[Run]]"
) -> None:
    """Run it and print its results; those that there are, if it is interrupted."""
    from llx.bench.run_directory import read_results
    from llx.cli.bench_tables import emit_results
    from llx.errors import LlxError, NotFoundError

    session.err.print(f"results: {directory}", soft_wrap=True)
    try:
        with shown(session) as observe:
            run_all(observe)
    except KeyboardInterrupt as interrupt:
        with contextlib.suppress(NotFoundError):  # there was nothing to keep yet
            emit_results(session, read_results(directory))
        _tell_notes(session, interrupt)
        raise
    except LlxError as error:
        _tell_notes(session, error)
        raise
    emit_results(session, read_results(directory))


def _tell_notes(session: Session, error: BaseException) -> None:
    """What could not be put back as it was."""
    for each in getattr(error, "__notes__", ()):
        session.err.print(each, markup=False, soft_wrap=True)


def _bench(
    session: Session,
    scenario: "Scenario",
    model: str | None,
    out: Path,
    stack: contextlib.ExitStack,
) -> "Bench":
    """The scenario with its target: the cluster, unless a URL was given."""
    from llx.bench.generator import Target
    from llx.bench.run import Bench
    from llx.openai_client import OpenAIClient

    url, tls, control = session.options.url, None, None
    if url is None:
        control = stack.enter_context(session.control())
        url, tls = gateway_of(session, control)
    key = session.environment.api_key
    name = model or scenario.model
    if name is None:
        with OpenAIClient(url, key, tls=tls) as client:
            name = the_model(client, None)
    target = Target(url, name, key, silence_s=scenario.silence_s, tls=tls)
    strike = None if control is None else _strike(session, scenario, stack)
    return Bench(scenario, target, out, control, session.user, strike)


def _strike(session: Session, scenario: "Scenario", stack: contextlib.ExitStack) -> "Strike | None":
    """What does the faults that are done on hosts; None: there are none."""
    from llx.chaos.strike import Striker
    from llx.cli.grounds import grounds_of

    struck = [each for each in scenario.all_faults if each.is_struck]
    return Striker(grounds_of(session, stack), struck) if struck else None


def gateway_of(session: Session, control: "Cluster") -> "tuple[str, ssl.SSLContext | None]":
    """Where the cluster's gateway can be reached from here, without a tunnel; and its TLS.

    Raises:
        ConfigError: It cannot.
    """
    from llx.bootstrap.remote_control import needs_tunnel
    from llx.errors import ConfigError
    from llx.pinned_tls import trusting

    status = control.status()
    gateway = status.first_gateway
    if session.cluster().hosts and gateway is not None and needs_tunnel(gateway):
        raise ConfigError(
            f"{gateway.name} listens on its own host alone, and a tunnel would be measured, too",
            remedy="let the gateway listen on an address of the network, or run this on its host",
        )
    return status.url, None if gateway is None else trusting(gateway.certificate)


def _default_out(scenario: "Scenario") -> Path:
    import time

    return Path(f"{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}")


@contextlib.contextmanager
def shown(session: Session) -> "Iterator[Observe]":
    """A line that says how far it is; where there is no terminal, one for each run."""
    if not session.err.is_terminal:
        begun: set[tuple[int, bool]] = set()

        def say(progress: "Progress") -> None:
            if (progress.turn, progress.is_warmup) not in begun:
                begun.add((progress.turn, progress.is_warmup))
                session.err.print(_where(progress))

        yield say
        return
    with session.err.status("starting") as line:
        yield lambda progress: line.update(f"{_where(progress)}: {_how_far(progress)}")


def _where(progress: "Progress") -> str:
    kind = "warm-up" if progress.is_warmup else f"repetition {progress.repetition + 1}"
    return f"run {progress.turn} of {progress.num_turns}, {progress.variant}, {kind}"


def _how_far(progress: "Progress") -> str:
    words = [
        f"{progress.elapsed_s:.0f} s",
        f"{progress.done} of {progress.planned} done",
        f"{progress.in_flight} under way",
    ]
    if progress.failed:
        words.append(f"{progress.failed} failed")
    if progress.ttft_ms is not None:
        words.append(f"TTFT {progress.ttft_ms:.0f} ms")
    if progress.itl_ms is not None:
        words.append(f"ITL {progress.itl_ms:.1f} ms")
    if progress.elapsed_s > 0:
        words.append(f"goodput {progress.good / progress.elapsed_s:.1f}/s")
    return ", ".join(words)


@app.command("compare")
@command
def compare(
    base: SideArgument,
    other: SideArgument,
    bound: Annotated[
        list[str] | None,
        typer.Option(
            "--bound",
            metavar="FIGURE=RATIO",
            help="OTHER's figure may be so many times BASE's: p99_ttft=1.05; of a rate, at least.",
        ),
    ] = None,
    priority_class: Annotated[
        str | None,
        typer.Option("--class", metavar="CLASS", help="Only requests that asked for this one."),
    ] = None,
    output: OutputOption = None,
) -> None:
    """Compare two benchmarks of one scenario, or two variants of one: ratios and how sure they are.

    Example: llx bench compare before after --bound p99_ttft=1.05 --bound output_throughput=0.97

    Repetitions of one seed are paired; the interval is a 95% bootstrap. Exit code 8 if a bound is
    broken: if the whole interval lies beyond it. "unclear" are those that the interval contains:
    more repetitions tell.
    """
    from llx.bench.compare import Verdict, parse_bound
    from llx.bench.compare import compare as compare_runs
    from llx.cli.bench_tables import emit_ratios
    from llx.errors import CheckError

    session = Session(output_name=output)
    bounds = dict(parse_bound(each) for each in bound or ())
    ratios = compare_runs(_side(base), _side(other), bounds, priority_class)
    emit_ratios(session, ratios)
    broken = [each for each in ratios if each.verdict is Verdict.BROKEN]
    if broken:
        words = ", ".join(f"{e.name} {e.low:.3f} to {e.high:.3f}, bound {e.bound}" for e in broken)
        raise CheckError(f"beyond the bound: {words}")


def _side(text: str) -> "list[Run]":
    """The runs of ``DIR``, or of one variant of it, ``DIR:VARIANT``.

    Raises:
        ConfigError: Several variants, and none is named.
        NotFoundError: There is no such directory or variant.
    """
    from llx.bench.run_directory import read_results
    from llx.errors import ConfigError, NotFoundError

    path, _, variant = (text, "", "") if Path(text).is_dir() else text.rpartition(":")
    results = read_results(Path(path or text))
    names = results.variants
    if not variant and len(names) > 1:
        raise ConfigError(
            f"{text} has several variants: {', '.join(names)}", remedy=f"{text}:{names[0]}"
        )
    if variant and variant not in names:
        raise NotFoundError(f"{path} has no variant {variant}, but {', '.join(names)}")
    return results.of(variant or names[0])


@app.command("report")
@command
def report(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `llx bench run` has left.")
    ],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Default: DIR/report.html.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Also a .png, .svg or .pdf.")
    ] = None,
    output: OutputOption = None,
) -> None:
    """Show a benchmark: a table here, and a page with pictures in one file.

    Example: llx bench report before --picture before.png

    Pictures are latencies, figures by rate, and the course of each variant with load, migrations
    and faults. They need matplotlib (pip install 'llx[plots]'); without it the page has none.
    """
    from llx.bench.report import pictures, write_report
    from llx.bench.run_directory import read_results
    from llx.cli.bench_tables import emit_results
    from llx.errors import InstallError

    session = Session(output_name=output)
    results = read_results(directory)
    drawn: list[str] = []
    try:
        draw = pictures()
    except InstallError as error:
        if picture is not None:
            raise
        session.err.print(f"no pictures: {error.message}; {error.remedy}", markup=False)
    else:
        if picture is not None:
            draw.kind_of(picture)  # before the work
        parts = draw.drawings(results)
        drawn = [draw.as_svg(each) for each in parts]
        if picture is not None:
            draw.save(picture, parts)
    page = html or directory / "report.html"
    write_report(page, results, drawn)
    emit_results(session, results)
    session.err.print(f"page: {page}", soft_wrap=True)
