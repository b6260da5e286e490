"""Writes the model that rules are measured on: many layers, each of next to nothing.

    PYTHONPATH=. .node/bin/python tests/bench/deep_model.py FOLDER

On a CPU a step of a model that is deep and narrow takes its time from the number of layers, hardly
from the tokens that are computed in it: a prompt costs a few steps, as on a GPU, and not dozens, as
with a model of the usual shape. Random weights, the tiny model's tokenizer, positions up to
4,096.
"""

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llx.agent.vllm import tiny_model

LAYERS = 32


def make(folder: Path, layers: int = LAYERS) -> None:
    tiny_model.make(folder, dtype="bfloat16")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=tiny_model.VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=tiny_model.MAX_POSITIONS,
        initializer_range=0.06,
        tie_word_embeddings=False,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
