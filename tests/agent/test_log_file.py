"""Reading parts of a log."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.agent.log_file import read_log
from llx.errors import NotFoundError


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_text("one\ntwo\nthree\n")
    return path


@pytest.mark.parametrize(
    ("tail", "text"),
    [
        (0, ""),
        (1, "three\n"),
        (2, "two\nthree\n"),
        (3, "one\ntwo\nthree\n"),
        (9, "one\ntwo\nthree\n"),
    ],
)
def test_the_last_lines(log: Path, tail: int, text: str) -> None:
    part = read_log(log, None, tail=tail)
    assert (part.text, part.next_offset) == (text, 14)


def test_a_line_cut_by_the_limit_is_left_out(log: Path) -> None:
    log.write_text("x" * 20 + "\n" + "last\n")
    assert read_log(log, None, limit=16, tail=5).text == "last\n"


def test_one_endless_line_is_shown_from_its_middle(log: Path) -> None:
    log.write_text("x" * 100)
    assert read_log(log, None, limit=16, tail=5).text == "x" * 16


def test_an_unfinished_line_counts(log: Path) -> None:
    log.write_text("one\ntwo")
    assert read_log(log, None, tail=1).text == "two"


def test_following(log: Path) -> None:
    offset = read_log(log, None, tail=1).next_offset
    with log.open("a") as file:
        file.write("four\n")
    part = read_log(log, offset)
    assert part.text == "four\n"
    assert read_log(log, part.next_offset).text == ""


def test_a_log_begun_anew_is_read_from_the_start(log: Path) -> None:
    log.write_text("new\n")
    part = read_log(log, 14)
    assert (part.text, part.next_offset) == ("new\n", 4)


def test_no_log(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_log(tmp_path / "log", None)


@given(text=st.text(max_size=200), limit=st.integers(1, 40))
def test_parts_join_to_the_whole(
    tmp_path_factory: pytest.TempPathFactory, text: str, limit: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes(text.encode())
    parts, offset = [], 0
    while (part := read_log(path, offset, limit=limit)).text:
        parts.append(part.text)
        offset = part.next_offset
    assert "".join(parts) == text
