"""The oracle model: any difference in its greedy output is an error, no excuses.

    python tests/e2e/oracle_model.py make DIR      write it (float32, random weights, seeded)
    python tests/e2e/oracle_model.py other DIR     another one, of an architecture unlike Llama's
    python tests/e2e/oracle_model.py check DIR     measure it; one JSON line
    python tests/e2e/oracle_model.py greedy DIR    prompts and lengths on standard input (JSON:
                                                   [[token ids, length], …]), tokens on output

Run by the node's Python. A random Llama whose attention is strong (so the next token depends on
the whole context) and whose output head is scaled up (so the best token leads by a margin that no
order of float32 additions can close). `test_oracle.py` asserts both.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from llx.agent.vllm import tiny_model

LAYERS, HIDDEN, HEADS, MLP = 6, 384, 6, 768
HEAD_SCALE = 12.0
STEPS = 96


def make(folder: Path) -> None:
    """Write the model into `folder`, with the tiny model's tokenizer."""
    tiny_model.make(folder, dtype="float32")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=tiny_model.VOCAB_SIZE,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        head_dim=HIDDEN // HEADS,
        max_position_embeddings=4096,
        initializer_range=0.06,
        tie_word_embeddings=False,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                projection.weight.mul_(2.0)
            attention.o_proj.weight.mul_(2.0)
        model.lm_head.weight.mul_(HEAD_SCALE)
    model.to(torch.float32).save_pretrained(folder)


def make_other(folder: Path) -> None:
    """Write an OPT: learned positions, biases, LayerNorm, no grouped heads, tied embeddings."""
    tiny_model.make(folder, dtype="float32")
    torch.manual_seed(3)
    config = OPTConfig(
        vocab_size=tiny_model.VOCAB_SIZE,
        hidden_size=HIDDEN,
        word_embed_proj_dim=HIDDEN,
        ffn_dim=MLP,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        max_position_embeddings=4096,
        init_std=0.06,
        dropout=0.0,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = OPTForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            attention = layer.self_attn
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                projection.weight.mul_(2.0)
            attention.out_proj.weight.mul_(2.0)
        model.lm_head.weight.mul_(HEAD_SCALE)
    model.to(torch.float32).save_pretrained(folder)


def check(folder: Path) -> dict[str, float]:
    """Greedy decoding of four prompts: margins, variety, and what a change of token 0 does."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(2)
    margins, distinct, first_changes = [], [], []
    for length in (5, 40, 300, 1000):
        prompt = torch.randint(3, tiny_model.VOCAB_SIZE, (1, length))
        tokens, lead = _greedy(model, prompt)
        margins.extend(lead)
        distinct.append(len(set(tokens)))
        changed = prompt.clone()
        changed[0, 0] = 3 + (int(prompt[0, 0]) - 2) % (tiny_model.VOCAB_SIZE - 3)
        other, _ = _greedy(model, changed)
        pairs = zip(tokens, other, strict=True)
        first_changes.append(next((n for n, (a, b) in enumerate(pairs) if a != b), STEPS))
    return {
        "min_margin_nats": min(margins),
        "min_distinct": min(distinct),
        "steps": STEPS,
        "latest_first_change": max(first_changes),
    }


def greedy(folder: Path, cases: list[tuple[list[int], int]]) -> list[list[int]]:
    """What the model says, by the plainest of loops."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return [_greedy(model, torch.tensor([prompt]), length)[0] for prompt, length in cases]


def _greedy(
    model: LlamaForCausalLM, prompt: torch.Tensor, length: int = STEPS
) -> tuple[list[int], list[float]]:
    tokens, margins, cache = [], [], None
    with torch.no_grad():
        for _ in range(length):
            output = model(prompt, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            best = output.logits[0, -1].topk(2)
            margins.append(float(best.values[0] - best.values[1]))
            tokens.append(int(best.indices[0]))
            prompt = best.indices[:1].view(1, 1)
    return tokens, margins


if __name__ == "__main__":
    command, directory = sys.argv[1], Path(sys.argv[2])
    if command == "make":
        make(directory)
    elif command == "other":
        make_other(directory)
    elif command == "greedy":
        sys.stdout.write(json.dumps(greedy(directory, json.load(sys.stdin))) + "\n")
    else:
        sys.stdout.write(json.dumps(check(directory)) + "\n")
