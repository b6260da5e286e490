"""`llx metrics`: what Prometheus scrapes, printed or passed on."""

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from llx.cli.failures import Interruptions, command
from llx.cli.parameters import ContextOption
from llx.cli.session import Session

if TYPE_CHECKING:
    from llx.bootstrap.scraping import Pages

_TIMEOUT_S = 10.0


@command
def metrics(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="head, or a gateway.", show_default=True)
    ] = "head",
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS:]PORT",
            help="Serve them here instead, until interrupted; on loopback if no address is given.",
            show_default=False,
        ),
    ] = None,
    context: ContextOption = None,
) -> None:
    """Print the metrics of the head or a gateway, or serve all of them to a Prometheus here.

    With `--listen`, `/targets` names all pages for `http_sd_configs`, whatever host they are on.

    Example: llx metrics --listen 9464
    """
    from llx.bootstrap.scraping import HEAD

    first = Session(context_name=context)
    session = Session(context_name=first.context().name)  # one cluster, whatever is chosen later
    with closing(_pages(session)) as pages:
        if listen is not None:
            _serve(session, pages, listen)
        else:
            page = pages.head() if name == HEAD else pages.gateway(name)
            session.out.file.write(page)


def _pages(session: Session) -> "Pages":
    from llx.bootstrap.scraping import Pages

    return Pages(
        session.control,
        lambda gateway: session.gateway_of(gateway, timeout_s=_TIMEOUT_S),
    )


def _serve(session: Session, pages: "Pages", listen: str) -> None:
    from llx.bootstrap.scraping import ScrapeServer, parse_address

    with ScrapeServer(parse_address(listen), pages) as server:
        pages.head()  # what is wrong now is said now
        host, port = server.server_address[:2]
        session.err.print(
            f"serving http://{host!s}:{port}/metrics, and /targets", markup=False, soft_wrap=True
        )
        with Interruptions("left at once").installed():
            server.serve_forever()
