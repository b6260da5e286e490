"""`llx upgrade`: a running cluster is brought to this release of llx."""

from typing import Annotated

import typer

from llx.cli.failures import command
from llx.cli.parameters import ContextOption, DryRunOption, YesOption, parse_duration
from llx.cli.session import Session

EXAMPLE = "Example: pip install -U llx && llx upgrade --dry-run && llx upgrade -y"


@command
def upgrade(
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline",
            parser=parse_duration,
            metavar="DURATION",
            help="So long what is replaced may have requests; then they are cut.",
            show_default="10m",
        ),
    ] = 600.0,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    context: ContextOption = None,
) -> None:
    """Bring the running cluster on hosts to this release of llx; streams go on.

    Each host gets the node environment of this llx beside the former one, and head and agents begin
    anew under it. Then each model's instances are replaced one by one, their requests move off
    first, and the gateways, one after the other. Interrupted, it is gone on with by another.
    """
    from llx.cli.hosts import converge
    from llx.errors import ConfigError

    session = Session(context_name=context)
    settings = session.cluster()
    if not settings.hosts:
        raise ConfigError(
            f"cluster {settings.cluster} is on this machine alone",
            remedy=f"llx down --context {settings.cluster}, then llx up",
        )
    converge(
        session,
        settings,
        verb="upgrade",
        is_yes=yes,
        is_dry_run=dry_run,
        keeps_settings=True,
        upgrade_deadline_s=deadline,
    )
