"""Text and data without the secrets and prompts that may be in them, to be given away. Pure.

Two nets: the values of secrets that are known, wherever they stand; and what by its look or its
name is a secret, such as ``Authorization: Bearer …`` or ``password=…``. A prompt is known by the
name before it alone; in text, the rest of its line goes with it.
"""

import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

from pydantic import JsonValue

MASK: Final = "***"
LEFT_OUT: Final = "<left out>"
_LEAST: Final = 6
"""A shorter "secret" would take half the text with it."""

_HIDDEN: Final = (
    "(?:api[-_]?key|access[-_]?key|private[-_]?key|secret|token|password|passwd|passphrase"
    "|credential|sha256)s?"
)
_HEADER: Final = "(?:(?:proxy-)?authorization|(?:set-)?cookie)"
_PROMPT: Final = "(?:prompt|prompt_token_ids|prompt_embeds|messages|content|input_value)"
_GAP: Final = r"""\\*["']?\s*[:=][^\S\r\n]*"""
# In quotes, in escaped quotes, after a quote that is never closed, or one word.
# The fourth group is that of the escaped quote, where this is the third of a pattern.
_VALUE: Final = (
    r"""(?:"(?:[^"\\\r\n]|\\.)*"|'(?:[^'\\\r\n]|\\.)*'|\\+(["']).*?\\+\4"""
    r"""|["'\\][^\r\n]*|[^\s"'\\]+)"""
)

_PEM: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_IN_TEXT: Final = (
    re.compile(rf"(?i)({_HEADER}{_GAP})(?:[^\r\n]+)"),
    re.compile(r"(?i)(\bbearer\s+)(?:(?!token\b)[A-Za-z0-9._~+/=-]{6,})"),
    re.compile(r"""(?i)(--[\w-]*(?:key|token|password|secret)["',=\s]+)(?:[^\s"',]+)"""),
    re.compile(r"""(?i)(\b[a-z][a-z0-9+.-]*://)(?:[^\s/@:"']*:[^\s@"']+|[^\s/@"']+)(?=@)"""),
)
_NAMED: Final = re.compile(rf"(?i)({_HIDDEN})({_GAP})({_VALUE})")
_LOOKS: Final = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{12,}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*)"
)
_NAMED_PROMPT: Final = re.compile(
    rf"(?i)((?<![\w.-]){_PROMPT}{_GAP})(?!\d+(?:[\s,}}]|$))([^\r\n]+)"
)
_SECRET_KEY: Final = re.compile(rf"(?i)(?:.*[-_.])?{_HIDDEN}|{_HEADER}|.*api[-_]?keys?")
_PROMPT_KEY: Final = re.compile(rf"(?i){_PROMPT}")
_NOTHING: Final = frozenset({"", "none", "null", "true", "false", "-", MASK})


class Mask:
    """Masks text and data.

    Args:
        secrets: Values that are known; short ones are ignored.
        with_prompts: Leave prompts in.
    """

    def __init__(self, secrets: Iterable[str] = (), *, with_prompts: bool = False) -> None:
        forms = {form for each in secrets for form in _forms(each.strip())}
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._known = re.compile("|".join(map(re.escape, longest_first))) if forms else None
        self._with_prompts = with_prompts

    def text(self, text: str) -> str:
        """Text without them."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        text = _PEM.sub(MASK, text)
        if not self._with_prompts:
            text = _NAMED_PROMPT.sub(rf"\1{LEFT_OUT}", text)
        for pattern in _IN_TEXT:
            text = pattern.sub(rf"\1{MASK}", text)
        return _LOOKS.sub(MASK, _NAMED.sub(_named, text))

    def data(self, value: JsonValue) -> JsonValue:
        """Of JSON or YAML: the same shape, without them."""
        match value:
            case dict():
                return {self.text(key): self._under(key, each) for key, each in value.items()}
            case list():
                return [self.data(each) for each in value]
            case str():
                return self.text(value)
            case _:
                return value

    def json_lines(self, text: str) -> str:
        """Of JSON, one value to a line; what is none is taken for text."""
        return "".join(self._json_line(line) for line in text.splitlines(keepends=True))

    def _json_line(self, line: str) -> str:
        try:
            value: JsonValue = json.loads(line)
        except (ValueError, RecursionError):
            return self.text(line)
        end = "\n" if line.endswith("\n") else ""
        return json.dumps(self.data(value), ensure_ascii=False) + end

    def _under(self, key: str, value: JsonValue) -> JsonValue:
        if isinstance(value, str) and value.lower() not in _NOTHING and _SECRET_KEY.fullmatch(key):
            return MASK
        if value and not self._with_prompts and _PROMPT_KEY.fullmatch(key):
            return value if isinstance(value, int | float) else LEFT_OUT
        return self.data(value)


def _named(found: re.Match[str]) -> str:
    """What says that there is none, is no secret; nor is a list, or a count: ``tokens: 12``."""
    name, gap, value = found[1], found[2], found[3]
    bare = value.strip("\"'\\,;)}]")
    is_count = name.lower() in {"token", "tokens"} and bare.replace(".", "", 1).isdigit()
    if bare.lower() in _NOTHING or is_count or bare[:1] in {"[", "{"}:
        return found[0]
    mark = value[0] if value[0] in "\"'" else ""
    return f"{name}{gap}{mark}{MASK}{mark}"


def _forms(secret: str) -> set[str]:
    """How a secret may be written."""
    if len(secret) < _LEAST:
        return set()
    as_json = json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]
    return {secret, *as_json, quote(secret, safe=""), repr(secret)[1:-1]}
