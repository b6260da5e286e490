"""What the simulated engine knows of a model: read from its directory, weights untouched."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from llx.core.token_model import Vocabulary
from llx.errors import ConfigError

T = TypeVar("T")

_DEFAULT_MAX_MODEL_LEN = 4096
_LEAST_WORDS = 32
_SHAPES = (re.compile(r"[Ġ▁][A-Za-z]{2,}"), re.compile(r"[Ġ▁]?[!-~]+"))
"""Tokens that read well, best first: a word after a space; printable ASCII."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model as the simulated engine sees it."""

    max_model_len: int
    dtype: str
    vocabulary: Vocabulary


class _Config(msgspec.Struct):
    vocab_size: int = 0
    max_position_embeddings: int = 0
    dtype: str | None = None
    torch_dtype: str | None = None
    text_config: "_Config | None" = None


class _AddedToken(msgspec.Struct):
    id: int


class _TokenizerModel(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]] = {}


class _Tokenizer(msgspec.Struct):
    model: _TokenizerModel
    added_tokens: list[_AddedToken] = []


def read_model(model: str, engine_args: dict[str, Any]) -> ModelFacts:
    """The facts of the model in the directory `model`.

    Raises:
        ConfigError: There is no such directory, or its files cannot be used.
    """
    folder = Path(model)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{model}: no directory with a model's config.json",
            remedy="`engine: sim` reads the tokenizer and the sizes of a local model; download it",
        )
    config = _read(folder / "config.json", _Config)
    text = config.text_config or config
    limit = text.max_position_embeddings or _DEFAULT_MAX_MODEL_LEN
    asked = engine_args.get("max_model_len")
    return ModelFacts(
        max_model_len=asked if isinstance(asked, int) and asked > 0 else limit,
        dtype=config.dtype or config.torch_dtype or text.dtype or "bfloat16",
        vocabulary=_vocabulary(folder, text.vocab_size),
    )


def _vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """Token ids that decode to readable text, as far as the tokenizer's files tell."""
    path = folder / "tokenizer.json"
    if path.is_file():
        tokenizer = _read(path, _Tokenizer)
        added = {token.id for token in tokenizer.added_tokens}
        vocab = tokenizer.model.vocab
        if not isinstance(vocab, dict):
            vocab = {token: index for index, (token, _) in enumerate(vocab)}
        for shape in _SHAPES:
            words = {index for token, index in vocab.items() if shape.fullmatch(token)} - added
            if len(words) >= _LEAST_WORDS:
                return Vocabulary(sorted(words))
    if vocab_size < 2 * _LEAST_WORDS:
        raise ConfigError(f"{folder}: neither a tokenizer.json nor a vocab_size to draw words from")
    return Vocabulary(range(vocab_size // 2, vocab_size))


def _read(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
