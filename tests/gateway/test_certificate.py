"""TLS at a gateway: real connections, a certificate that is replaced under them, who is trusted."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from llx.bootstrap.gateway_tls import made_here
from llx.errors import ConfigError, UnreachableError
from llx.gateway.certificate import Certificate
from llx.http_server import BoundedServer
from llx.openai_client import OpenAIClient
from llx.pinned_tls import fingerprint, trusting


def lay_out(path: Path, text: str = "") -> None:
    """As `up` does it: another file takes the place of the former."""
    new = path.with_suffix(".new")
    new.write_text(text or made_here("127.0.0.1", "").reveal())
    new.replace(path)


@pytest.fixture
def path(tmp_path) -> Path:
    lay_out(tmp_path / "gateway.pem")
    return tmp_path / "gateway.pem"


class App:
    """Answers at once, but for ``/stream``: that goes on until it is told to end."""

    def __init__(self) -> None:
        self.is_over = asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/stream":
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            await self.is_over.wait()
        body = b'{"data": [{"id": "m"}]}' if scope["path"] == "/v1/models" else b"b"
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(certificate: Certificate) -> AsyncIterator[tuple[str, App]]:
    app = App()
    config = uvicorn.Config(
        app, host="0.0.0.0", port=0, lifespan="off", log_config=None,
        ssl_context_factory=lambda *_: certificate.context,
    )  # fmt: skip
    server = BoundedServer(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"https://127.0.0.1:{port}", app
    finally:
        server.should_exit = server.force_exit = True
        await task


async def shown(url: str) -> str:
    """The certificate that a new connection is shown."""
    port = httpx.URL(url).port
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return ssl.DER_cert_to_PEM_cert(found)


async def test_new_connections_see_another_certificate_and_streams_go_on(path):
    certificate = Certificate(path)
    first = certificate.pem
    async with (
        serving(certificate) as (url, app),
        httpx.AsyncClient(base_url=url, verify=trusting(first), trust_env=False) as client,
    ):
        assert await shown(url) == first
        async with client.stream("GET", "/stream") as stream:
            pieces = stream.aiter_bytes()
            assert await anext(pieces) == b"a"
            lay_out(path)
            certificate.look()
            assert certificate.pem != first
            assert await shown(url) == certificate.pem
            app.is_over.set()
            assert [each async for each in pieces] == [b"b"]
        async with httpx.AsyncClient(verify=trusting(first), trust_env=False) as former:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await former.get(url)


@pytest.mark.parametrize("text", ["rubbish", "half", "gone"])
async def test_a_file_that_cannot_be_used_changes_nothing_until_it_can(path, text, caplog):
    certificate = Certificate(path)
    first = certificate.pem
    async with serving(certificate) as (url, _):
        match text:
            case "rubbish":
                lay_out(path, text)
            case "half":  # a certificate without its key
                lay_out(path, made_here("127.0.0.1", "").reveal().partition("-----BEGIN PRIV")[0])
            case _:
                path.unlink()
        certificate.look()
        certificate.look()
        assert await shown(url) == certificate.pem == first
        assert caplog.text.count("gateway.certificate_refused") == 1
        lay_out(path)
        certificate.look()
        assert await shown(url) == certificate.pem != first


def test_a_gateway_does_not_start_without_one(tmp_path):
    with pytest.raises(ConfigError, match=r"gateway\.pem: no usable certificate"):
        Certificate(tmp_path / "gateway.pem")


async def test_llxs_own_client_trusts_the_one_it_was_told_of_under_any_name(path):
    certificate = Certificate(path)

    def models(url: str, pem: str) -> list[str]:
        with OpenAIClient(url, tls=trusting(pem)) as client:
            return client.models()

    async with serving(certificate) as (url, _):
        unnamed = url.replace("127.0.0.1", "127.0.0.2")
        assert await asyncio.to_thread(models, unnamed, certificate.pem) == ["m"]
        lay_out(path)
        with pytest.raises(UnreachableError, match="is not trusted"):
            await asyncio.to_thread(models, url, Certificate(path).pem)
        with pytest.raises(UnreachableError, match="is not trusted"):
            await asyncio.to_thread(lambda: OpenAIClient(url).models())


def test_a_fingerprint_reads_as_openssl_prints_it(path):
    text = fingerprint(Certificate(path).pem)
    assert len(text) == 95
    assert set(text) <= set("0123456789ABCDEF:")
    assert trusting("") is None
