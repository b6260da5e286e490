"""The client's reading of a stream, from a server that sends it in the oddest pieces."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llx.errors import RemoteError
from llx.openai_client import CompletionRequest, OpenAIClient

TEXTS = ["a\u2028b", "\u2029", "x\x85y\x1c", "\x0b\x0c", "é\U0001f40e", "\r\n", "\\u00"]
"""Characters at which `str.splitlines` breaks, which JSON may carry as they are."""


def events(*, is_ended: bool = True) -> bytes:
    choices = [
        {"choices": [{"index": 0, "text": text, "token_ids": [number]}]}
        for number, text in enumerate(TEXTS)
    ]
    data = [json.dumps(each, ensure_ascii=False) for each in choices] + ["[DONE]"] * is_ended
    return "".join(f": a comment\r\ndata: {each}\n\n" for each in data).encode()


@contextmanager
def serving(body: bytes, piece: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            for at in range(0, len(body), piece):
                self.wfile.write(body[at : at + piece])
                self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_text_may_have_characters_that_look_like_ends_of_lines(piece: int) -> None:
    with serving(events(), piece) as url, OpenAIClient(url) as client:
        found = list(client.stream_completion(CompletionRequest("m", (1, 2), 9)))
    assert [each.text for each in found] == TEXTS
    assert [each.token_ids for each in found] == [(number,) for number in range(len(TEXTS))]


def test_a_stream_without_its_end_is_an_error() -> None:
    with serving(events(is_ended=False), 100) as url, OpenAIClient(url) as client:
        pieces = client.stream_completion(CompletionRequest("m", (1, 2), 9))
        for text in TEXTS:
            assert next(pieces).text == text
        with pytest.raises(RemoteError, match=r"ended before \[DONE\]"):
            next(pieces)
