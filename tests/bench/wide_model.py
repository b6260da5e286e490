"""Writes the model that migrations are measured on: 16 KiB of KV per token in bfloat16.

    .node/bin/python tests/bench/wide_model.py FOLDER

A Llama of 8 layers with random weights and the tiny model's tokenizer; positions up to 16,384.
"""

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llx.agent.vllm import tiny_model


def make(folder: Path) -> None:
    tiny_model.make(folder, dtype="bfloat16")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=tiny_model.VOCAB_SIZE,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=16384,
        initializer_range=0.06,
        tie_word_embeddings=False,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
