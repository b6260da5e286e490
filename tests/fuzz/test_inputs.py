"""Files and streams from outside: settings of any shape, streamed answers of any bytes."""

import string

import yaml
from hypothesis import given
from hypothesis import strategies as st

from llx.bench.record import Outcome
from llx.cluster.control import parse_cluster
from llx.errors import ConfigError
from llx.settings import ClusterSettings, dump_cluster, example_cluster
from tests.bench.test_stream import DONE, USAGE, answered, chunked, event

WHOLE = yaml.safe_load(example_cluster())
HOSTILE = [
    "$(touch /tmp/x)", "`id`", "; rm -rf /", "../../etc/passwd", "-oProxyCommand=id", "a\nb", "\0",
    "m'; id; '", "{0.__class__}", "%s%n", "\u202e", "A" * 5000, "", " ", "--help", "~root/x",
]  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(HOSTILE),
    st.text(max_size=20),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip


def paths(value: object, here: tuple = ()) -> list[tuple]:
    """Where something stands in a document."""
    match value:
        case dict():
            inner = list(value.items())
        case list():
            inner = list(enumerate(value))
        case _:
            inner = []
    return [here, *(each for key, below in inner for each in paths(below, (*here, key)))]


def replaced(value: object, path: tuple, new: object) -> object:
    if not path:
        return new
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = replaced(value[key], tuple(rest), new)
    return copy


@given(
    changes=st.lists(st.tuples(st.sampled_from(paths(WHOLE)[1:]), values), min_size=1, max_size=3)
)
def test_settings_with_anything_anywhere_are_settings_or_a_config_error(changes) -> None:
    document: object = WHOLE
    for path, value in changes:
        try:
            document = replaced(document, path, value)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took that place away
    try:
        settings = parse_cluster(yaml.safe_dump(document, allow_unicode=True))
    except ConfigError:
        return
    assert parse_cluster(dump_cluster(settings)) == settings
    assert names_are_plain(settings)


def names_are_plain(settings: ClusterSettings) -> bool:
    """What becomes part of paths and of commands."""
    plain = set(string.ascii_letters + string.digits + "._-")
    names = [settings.cluster, *(each.name for each in [*settings.hosts, *settings.models])]
    return all(name and set(name) <= plain and name[0] not in ".-" for name in names)


@given(st.binary(max_size=300))
def test_any_bytes_for_an_answer_end_as_a_record(data) -> None:
    record, _, is_usable = answered(b"HTTP/1.1 200 OK\r\n" + data, is_closed=True)
    assert record.outcome is not Outcome.OK or not is_usable or record.usage_outputs is not None


@given(at=st.integers(0, 600), value=st.integers(0, 255), piece=st.integers(1, 40))
def test_a_flipped_byte_of_a_stream_is_never_a_crash(at, value, piece) -> None:
    data = bytearray(chunked(event(tokens=1), event(tokens=3), USAGE + DONE))
    data[at % len(data)] = value
    record, *_ = answered(bytes(data), piece, is_closed=True)
    assert record.num_outputs <= 1 << 40
