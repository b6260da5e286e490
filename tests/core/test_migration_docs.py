"""docs/migration.md shows the tables as they are; `--rewrite` makes what comes from them anew."""

import re
from pathlib import Path

import pytest

from llx.core.migration import source, target
from llx.core.migration.table import draw
from llx.core.streams import VERDICTS, Claim, Place

DOCS = Path(__file__).parents[2] / "docs" / "migration.md"


def mermaid(diagram):
    return f"```mermaid\n{diagram}\n```"


def verdicts():
    head = "| the sender and its epoch | " + " | ".join(place.value for place in Place) + " |"
    rows = [
        f"| {claim.value} | " + " | ".join(VERDICTS[claim, place].value for place in Place) + " |"
        for claim in Claim
    ]
    return "\n".join([head, "|---" * (1 + len(Place)) + "|", *rows])


GENERATED = {
    "verdicts": verdicts(),
    "source": mermaid(draw(source.SOURCE_TABLE, source.SourceState.BEGINNING, source.ENDS)),
    "target": mermaid(draw(target.TARGET_TABLE, target.TargetState.PREPARING, target.ENDS)),
}


@pytest.mark.parametrize("name", GENERATED)
def test_the_documentation_is_made_from_the_tables(name, request):
    text = DOCS.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name}: [^>]*-->\n)(.*?)(<!-- end -->)", re.DOTALL)
    (found,) = pattern.findall(text)
    if request.config.getoption("--rewrite"):
        begin, _, end = found
        whole = f"{begin}\n{GENERATED[name]}\n\n{end}"
        DOCS.write_text(pattern.sub(lambda _: whole, text), encoding="utf-8")
        return
    assert found[1].strip() == GENERATED[name], f"see {DOCS}; pytest --rewrite"
