"""Makes the tiny model: random weights, its own tokenizer and chat template, nothing downloaded.

Run by the node's Python: ``python -m llx.agent.vllm.tiny_model --out DIR``. A Llama of four layers
whose only likely answers are the words below, so that its noise reads like words, whose attention
is strong enough that greedy decoding does not fall into a loop, and which never ends an answer by
itself. Needs torch, safetensors and tokenizers; imports no vLLM.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

_TEXT: Final = """
time year way day man thing life hand part child eye woman place work week case point world house
night room home water tree river stone light wind rain snow fire bird fish horse ship road bridge
garden window door table book song word letter story dream summer winter morning evening shadow
silver golden green quiet slow small great bright old new young long open deep warm cold clear
walk run sing wait turn hold find keep leave bring carry follow remember become begin
over under near beyond between after before into from with about and the of in on at by for to as
"""
_WORDS: Final = tuple(_TEXT.split())
_PUNCTUATION: Final = (",", ".")
_SPECIAL: Final = ("<|pad|>", "<|start|>", "<|end|>")

_CHAT_TEMPLATE: Final = """\
{%- if tools %}{{ '<|start|>tools\\n' + (tools | tojson) + '<|end|>\\n' }}{% endif -%}
{%- for message in messages -%}
{{ '<|start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content or [] %}{{ part.text or '' }}{% endfor %}{% endif -%}
{%- if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif -%}
{{ '<|end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif -%}
"""

VOCAB_SIZE: Final = 544
MAX_POSITIONS: Final = 4096
_GENERATION: Final = {"eos_token_id": 2, "pad_token_id": 0, "max_new_tokens": 256}
"""`max_new_tokens` is what a request that names no limit gets: the model never ends by itself."""
_HIDDEN, _LAYERS, _HEADS, _KV_HEADS, _MLP = 256, 4, 4, 2, 512
_HEAD_DIM: Final = _HIDDEN // _HEADS


def make(out: Path, *, dtype: str = "bfloat16", seed: int = 4) -> bool:
    """Write the model to `out`, all or nothing. False: a whole one is there already.

    Args:
        out: Its directory; what an interrupted run left there is replaced.
        dtype: ``bfloat16`` or ``float32``, of the weights on disk.
        seed: The same seed gives the same model; this one repeats itself little.
    """
    if (out / "config.json").exists():
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        building = Path(folder) / "model"
        building.mkdir()
        allowed = _write_tokenizer(building)
        _write_config(building, dtype)
        _write_weights(building, allowed, dtype, seed)
        if out.exists():
            shutil.rmtree(out)
        building.rename(out)
    return True


def _write_tokenizer(folder: Path) -> list[int]:
    """Write the tokenizer; return the ids that read like words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(each, special=True, normalized=False) for each in _SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {' '.join(_WORDS)}"] * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": _SPECIAL[0],
            "eos_token": _SPECIAL[2],
            "model_max_length": MAX_POSITIONS,
            "clean_up_tokenization_spaces": False,
            "chat_template": _CHAT_TEMPLATE,
        },
    )
    ids = [tokenizer.token_to_id(f"Ġ{word}") for word in _WORDS]
    ids += [tokenizer.token_to_id(mark) for mark in _PUNCTUATION]
    return sorted({each for each in ids if each is not None})


def _write_config(folder: Path, dtype: str) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": dtype,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": _HIDDEN,
        "intermediate_size": _MLP,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "max_position_embeddings": MAX_POSITIONS,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", _GENERATION)


def _write_weights(folder: Path, allowed: Sequence[int], dtype: str, seed: int) -> None:
    """Random weights. Attention is made strong, so that the next token hangs on all before it.

    The rows of the output layer that belong to no word are zero: a logit of 0 stays below the best
    of a hundred random ones.
    """
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, gain: float) -> Any:
        return torch.randn(rows, columns, generator=random) * (gain / columns**0.5)

    tensors = {"model.embed_tokens.weight": torch.randn(VOCAB_SIZE, _HIDDEN, generator=random)}
    for layer in range(_LAYERS):
        at = f"model.layers.{layer}"
        tensors |= {
            f"{at}.input_layernorm.weight": torch.ones(_HIDDEN),
            f"{at}.self_attn.q_proj.weight": matrix(_HEADS * _HEAD_DIM, _HIDDEN, 1.5),
            f"{at}.self_attn.k_proj.weight": matrix(_KV_HEADS * _HEAD_DIM, _HIDDEN, 1.5),
            f"{at}.self_attn.v_proj.weight": matrix(_KV_HEADS * _HEAD_DIM, _HIDDEN, 2.0),
            f"{at}.self_attn.o_proj.weight": matrix(_HIDDEN, _HEADS * _HEAD_DIM, 2.0),
            f"{at}.post_attention_layernorm.weight": torch.ones(_HIDDEN),
            f"{at}.mlp.gate_proj.weight": matrix(_MLP, _HIDDEN, 1.5),
            f"{at}.mlp.up_proj.weight": matrix(_MLP, _HIDDEN, 1.5),
            f"{at}.mlp.down_proj.weight": matrix(_HIDDEN, _MLP, 1.5),
        }
    head = torch.zeros(VOCAB_SIZE, _HIDDEN)
    head[torch.tensor(allowed)] = matrix(len(allowed), _HIDDEN, 4.0)
    tensors |= {"model.norm.weight": torch.ones(_HIDDEN), "lm_head.weight": head}
    kind = {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
    saved = {name: tensor.to(kind).contiguous() for name, tensor in tensors.items()}
    save_file(saved, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m llx.agent.vllm.tiny_model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=4)
    args = parser.parse_args(argv)
    is_new = make(args.out, dtype=args.dtype, seed=args.seed)
    sys.stdout.write(f"{args.out}: {'made' if is_new else 'already there'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
