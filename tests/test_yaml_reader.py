"""What PyYAML's own loader takes, libyaml's takes for the same."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llx import yaml_reader
from tests.node import ROOT

FILES = sorted([*ROOT.glob("examples/**/*.yaml"), *ROOT.glob("playbooks/**/*.yaml")])
PIECES = st.sampled_from(
    ["a", "b: ", "- ", "\n", "  ", "{", "}", "[", "]", ", ", '"', "'", "# ", "1.5", "~", "|", ">",
     "&x ", "*x", "!!str ", "ü", ":", "\t", "---\n", "? ", "%", "yes"]
)  # fmt: skip


def composed(text, loader):
    """The data, and the line of every node; None if it is refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_reader, "_FAST_LOADER", loader)
        try:
            root = yaml_reader._compose(text)
            data = None if root is None else yaml.SafeLoader("").construct_document(root)
        except (yaml.YAMLError, ValueError):
            return None
    return data, _lines(root)


def _lines(node):
    if node is None or isinstance(node.value, str):
        return node and node.start_mark.line
    pairs = node.value if isinstance(node, yaml.MappingNode) else [(each,) for each in node.value]
    return [node.start_mark.line, *(_lines(each) for pair in pairs for each in pair)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_we_ship(path):
    text = path.read_text(encoding="utf-8")
    found = composed(text, yaml.CSafeLoader)
    assert found is not None
    assert found == composed(text, yaml.SafeLoader)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_whatever_the_one_takes_is_the_same_to_the_other(text):
    found, other = (composed(text, each) for each in (yaml.SafeLoader, yaml.CSafeLoader))
    if found is not None:
        assert other is not None
        assert other[0] == found[0]
