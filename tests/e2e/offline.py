"""The reference: vLLM offline on the same model. Cases on standard input, answers on output.

    .node/bin/python tests/e2e/offline.py MODEL < cases.json > answers.json

A case is {"prompt": [ids], "params": {SamplingParams fields}}, with "schema" for a JSON schema.
"""

import json
import os
import sys


def main() -> None:
    answers, stdout = [], os.dup(1)
    os.dup2(2, 1)  # vLLM's own chatter goes to standard error
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    cases = json.load(sys.stdin)
    llm = LLM(
        model=sys.argv[1],
        dtype="float32",
        max_model_len=2048,
        block_size=32,
        max_num_seqs=32,
        enforce_eager=True,
        enable_prefix_caching=False,
    )
    for case in cases:
        params = dict(case["params"])
        if "schema" in case:
            params["structured_outputs"] = StructuredOutputsParams(json=case["schema"])
        [output] = llm.generate(
            {"prompt_token_ids": case["prompt"]}, SamplingParams(**params), use_tqdm=False
        )
        answers.append(
            [
                {
                    "token_ids": list(choice.token_ids),
                    "text": choice.text,
                    "finish_reason": choice.finish_reason,
                    "logprobs": choice.logprobs
                    and [
                        step[token].logprob
                        for step, token in zip(choice.logprobs, choice.token_ids, strict=True)
                    ],
                }
                for choice in output.outputs
            ]
        )
    os.write(stdout, json.dumps(answers).encode())


if __name__ == "__main__":
    main()
