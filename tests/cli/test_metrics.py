"""`llx metrics`: printed, and passed on to a Prometheus here."""

import threading
from contextlib import closing

import httpx
import pytest

from llx.api import GatewayStatus, InstanceState
from llx.bootstrap.scraping import Pages, ScrapeServer, parse_address, targets
from llx.cli.session import Session
from llx.errors import ConfigError, ConflictError, ExitCode


def test_the_heads_page_and_a_gateways(llx, head, gateway):
    assert llx("metrics").stdout == "llx:term 3.0\n"
    assert llx("metrics", "gateway-0").stdout == "llx:requests_total 1.0\n"
    wrong = llx("metrics", "tiny-0")
    assert wrong.exit_code == ExitCode.NOT_FOUND
    assert "there are: head, gateway-0" in wrong.stderr


@pytest.fixture
def pages(llx, head):
    session = Session()
    session.environment = llx.environment
    found = Pages(session.control, lambda each: session.gateway_of(each, timeout_s=5))
    with closing(found):
        yield found


@pytest.fixture
def served(pages):
    with ScrapeServer(("127.0.0.1", 0), pages) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_all_pages_are_named_and_there(served, head):
    found = httpx.get(f"{served}/targets").json()
    pages = {
        each["labels"]["process"]: httpx.get(
            f"http://{each['targets'][0]}{each['labels']['__metrics_path__']}"
        ).text
        for each in found
    }
    assert pages == {"head": "llx:term 3.0\n", "gateway-0": "llx:requests_total 1.0\n"}


def test_what_there_is_not_and_what_does_not_answer(served, head):
    assert httpx.get(f"{served}/metrics").status_code == 200
    assert httpx.get(f"{served}/nothing").status_code == 404
    assert httpx.get(f"{served}/gateways/gone/metrics").status_code == 404
    assert httpx.post(f"{served}/metrics").status_code == 501
    broken = head.found.gateways[0].model_copy(
        update={"name": "gateway-1", "url": "", "state": InstanceState.STARTING}
    )
    head.found = head.found.model_copy(update={"gateways": [broken]})
    answer = httpx.get(f"{served}/gateways/gateway-1/metrics")
    assert (answer.status_code, answer.text.startswith("gateway-1 is starting")) == (502, True)


def test_a_head_that_comes_back_with_another_token_is_asked_anew(served, head, llx):
    assert httpx.get(f"{served}/metrics").status_code == 200
    head.token = "another-token"
    assert httpx.get(f"{served}/metrics").status_code == 502
    (llx.environment.cluster_dir("local") / "token").write_text("another-token")
    assert httpx.get(f"{served}/metrics").status_code == 200


def test_a_gateway_that_is_elsewhere_is_found_again(served, head):
    path = "gateways/gateway-0/metrics"
    assert httpx.get(f"{served}/{path}").status_code == 200
    good = head.found
    nowhere = good.gateways[0].model_copy(update={"url": "http://127.0.0.1:1"})
    head.found = good.model_copy(update={"gateways": [nowhere]})
    assert httpx.get(f"{served}/{path}").status_code == 200  # the connection that is kept


def test_a_port_that_is_taken(served, pages):
    port = int(served.rpartition(":")[2])
    with pytest.raises(ConflictError, match=f"127.0.0.1 port {port}"):
        ScrapeServer(("127.0.0.1", port), pages)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("[::1]:9464", ("::1", 9464)),
    ],
)
def test_addresses(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "x", ":1", "1.2.3.4:", "1.2.3.4:99999", "-1"])
def test_what_is_no_address(text):
    with pytest.raises(ConfigError):
        parse_address(text)


def test_names_are_quoted_in_paths():
    (_, found) = targets("h:1", ["a b"])
    assert found["labels"]["__metrics_path__"] == "/gateways/a%20b/metrics"


def test_gateways_of_one_url_on_the_loopbacks_of_two_hosts_are_told_apart(hosts):
    hosts.know()
    reached = []
    shell = hosts.shell
    hosts.shell = lambda name: reached.append(name) or shell(name)
    for host in ("h2", "h1"):
        gateway = GatewayStatus(
            name=f"gateway-{host}", host=host, url="http://127.0.0.1:8000",
            state=InstanceState.READY,
        )  # fmt: skip
        hosts.session().gateway_of(gateway, timeout_s=1).close()
    assert reached == ["h2", "h1"]
