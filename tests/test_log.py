"""The look of log lines."""

import io
import logging
import re
from collections.abc import Iterator

import pytest

from llx.log import EventFormatter, configure_logging, get_log
from llx.secret import Secret


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level, own = list(root.handlers), root.level, logging.getLogger("llx").level
    made = io.StringIO()
    configure_logging(stream=made)
    yield made
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("llx").setLevel(own)


def line(stream: io.StringIO) -> str:
    text = stream.getvalue()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", text)
    return text.partition(" ")[2]


def test_an_event_and_its_fields(stream: io.StringIO) -> None:
    log = get_log("llx.x", instance="tiny-0")
    log.info("instance.ready", after_s=1.23456789, is_new=True, error=None, text="two words", n=3)
    assert line(stream) == (
        'INFO instance.ready instance=tiny-0 after_s=1.23457 is_new=true error=- text="two words"'
        " n=3\n"
    )


@pytest.mark.parametrize("value", ["a\nb", 'say "x"', "", "a=b", "\x1b[31m"])
def test_no_value_breaks_the_line_or_the_terminal(stream: io.StringIO, value: str) -> None:
    get_log("llx.x").info("event", value=value)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert 'value="' in text


def test_secrets_are_masked(stream: io.StringIO) -> None:
    get_log("llx.x", key=Secret("hush")).warning("event", other=Secret("hush"))
    assert line(stream) == "WARNING event key=*** other=***\n"


def test_the_standard_loggers_look_alike(stream: io.StringIO) -> None:
    logging.getLogger("other").info("link.ready instance=%s", "tiny-0\nx")
    assert line(stream) == "INFO link.ready instance=tiny-0\\nx\n"


def test_a_traceback_follows_indented(stream: io.StringIO) -> None:
    try:
        raise ValueError("why")
    except ValueError:
        get_log("llx.x").exception("event.failed", id=1)
    first, *rest = line(stream).splitlines()
    assert first == "ERROR event.failed id=1"
    assert rest[-1] == "    ValueError: why"
    assert all(each.startswith("    ") for each in rest)


def test_bound_fields_and_levels(stream: io.StringIO) -> None:
    log = get_log("llx.x").bind(request="r1")
    log.debug("unseen")
    log.error("seen")
    assert line(stream) == "ERROR seen request=r1\n"


def test_configuring_twice_does_not_double_lines(stream: io.StringIO) -> None:
    configure_logging(stream=stream)
    get_log("llx.x").info("once")
    assert stream.getvalue().count("once") == 1
    assert isinstance(logging.getLogger().handlers[0].formatter, EventFormatter)


def test_a_library_that_raises_the_roots_level_does_not_silence_us(stream: io.StringIO) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    get_log("llx.x").info("heard")
    logging.getLogger("other").info("not heard")
    assert line(stream) == "INFO heard\n"
