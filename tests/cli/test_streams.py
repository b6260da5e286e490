"""Several chats at once, and how they are shown."""

from io import StringIO

import pytest
from rich.console import Console

from llx.cli.streams import StreamBoard, StreamRow, run_streams
from llx.openai_client import OpenAIClient


def board():
    now = 20.0
    return StreamBoard(
        [
            StreamRow("a", 100, "tiny-0", "the river " * 20, 50, 10.0, 10.5),
            StreamRow("b", 100, "tiny-1", "short", 100, 10.0, 11.0, 15.0),
            StreamRow("c", 100),
            StreamRow("d", 100, "tiny-1", "it be", 2, 10.0, 10.2, 12.0, "the answer broke off"),
        ],
        clock=lambda: now,
    )


@pytest.mark.golden
@pytest.mark.parametrize("width", [80, 100])
def test_board(golden, width):
    console = Console(file=StringIO(), width=width, color_system=None)
    found = board()
    console.print(found.render(width))
    console.print(found.summary())
    golden(f"streams-{width}.txt", console.file.getvalue())


def test_each_instance_has_a_colour():
    found = board()
    assert found.instances == ["tiny-0", "tiny-1"]
    assert found.style("tiny-0") != found.style("tiny-1")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_streams_run_side_by_side(gateway, is_terminal):
    console = Console(file=StringIO(), width=100, force_terminal=is_terminal)
    with OpenAIClient(gateway.url) as client:
        found = run_streams(console, client, model="tiny", num_streams=4, max_tokens=5)
    assert [each.is_done for each in found.streams] == [True] * 4
    assert [each.tokens for each in found.streams] == [5] * 4
    assert sorted(each.instance for each in found.streams) == ["tiny-0"] * 2 + ["tiny-1"] * 2
    assert "INSTANCE" in console.file.getvalue()


def test_a_gateway_that_is_not_there():
    console = Console(file=StringIO(), width=100)
    with OpenAIClient("http://127.0.0.1:9") as client:
        found = run_streams(console, client, model="tiny", num_streams=2, max_tokens=5)
    assert all("no gateway answers" in each.error for each in found.streams)
    assert not any(each.is_done for each in found.streams)
