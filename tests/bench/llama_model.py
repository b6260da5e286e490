"""Writes a Llama with random weights, in bfloat16, and the tiny model's tokenizer.

    .node/bin/python tests/bench/llama_model.py wide|deep FOLDER

wide    what migrations are measured on: 8 layers, 16 KiB of KV per token
deep    what rules are measured on: 32 layers, each of next to nothing. On a CPU a step of such a
        model takes its time from the number of layers, hardly from the tokens that are computed in
        it: a prompt costs a few steps, as on a GPU, and not dozens, as with the usual shape
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
}


def make(shape: str, folder: Path) -> None:
    tiny_model.make(folder, dtype="bfloat16")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=tiny_model.VOCAB_SIZE,
        initializer_range=0.06,
        tie_word_embeddings=False,
        eos_token_id=2,
        pad_token_id=0,
        **SHAPES[shape],
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
