"""Writes a Llama with random weights, and the tiny model's tokenizer.

    .node/bin/python tests/bench/llama_model.py wide|deep|light FOLDER

wide    what migrations are measured on: 8 layers, 16 KiB of KV per token
deep    what rules are measured on: 32 layers, each of next to nothing. On a CPU a step of such a
        model takes its time from the number of layers, hardly from the tokens that are computed in
        it: a prompt costs a few steps, as on a GPU, and not dozens, as with the usual shape
light   what is computed while steps are held (`held_steps`): as little as can be, for 4 KiB of KV
        per token. In float32, which a CPU that has no bfloat16 multiplies ten times as fast; vLLM
        must be told so (`dtype: float32`)
"""

import sys
from pathlib import Path
from typing import Final

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llx.agent.vllm import tiny_model

SHAPES: Final = {
    "wide": {
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 16384,
    },
    "deep": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": tiny_model.MAX_POSITIONS,
    },
    "light": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": tiny_model.MAX_POSITIONS,
    },
}
DTYPES: Final = {"light": "float32"}
"""Where it is not bfloat16."""


def make(shape: str, folder: Path) -> None:
    dtype = DTYPES.get(shape, "bfloat16")
    tiny_model.make(folder, dtype=dtype)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=tiny_model.VOCAB_SIZE,
        initializer_range=0.06,
        tie_word_embeddings=False,
        eos_token_id=2,
        pad_token_id=0,
        **SHAPES[shape],
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
