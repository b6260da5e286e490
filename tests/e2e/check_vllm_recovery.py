"""A request whose instance was lost goes on at another: outputs kept, KV computed anew.

Run by `check_vllm_migration.py`, in whose engine core there is room for it.
"""

from typing import Any

from llx.core.model import Epoch, RequestId
from llx.wire import Add
from tests.e2e.core_rig import PEER, REGEX, Rig, check, prompt_of


def take_over(rig: Rig, prompt: list[int], params: dict[str, Any], outputs: list[int]) -> RequestId:
    """Add a request that has these outputs already."""
    request = rig.new_id("o")
    header = Add(request, Epoch(9), rig.count, f"name-of-{request}", outputs)
    rig.sink.add(PEER, header, rig.payload(request, prompt, params, 0))
    rig.pump()
    return request


def check_same(rig: Rig, name: str, prompt: list[int], params: dict[str, Any], after: int) -> None:
    """What is said after `after` tokens is what would have been said anyway."""
    rig.idle()
    free = rig.free
    alone = rig.run(rig.add(prompt, params))
    rest = rig.run(take_over(rig, prompt, params, alone.tokens[:after]))
    what = f"taken over, {name}"
    check(f"{what}: tokens", rest.tokens == alone.tokens[after:], rest.tokens, alone.tokens)
    check(f"{what}: finish", rest.finish == alone.finish, rest.finish, alone.finish)
    check(f"{what}: logprobs", rest.logprobs == alone.logprobs[after:])
    check(f"{what}: stamps", rest.stamps[0] == (9, after), rest.stamps[0])
    check(f"{what}: the prompt is not counted again", rest.prefilled == 0, rest.prefilled)
    rig.is_quiet(free, what)


def check_recovery(rig: Rig) -> None:
    """Everything that a request carries."""
    seeded = {"temperature": 1.0, "seed": 12, "top_p": 0.9, "presence_penalty": 0.4,
              "frequency_penalty": 0.3, "repetition_penalty": 1.2}  # fmt: skip
    check_same(rig, "greedy", prompt_of(70, 31), {"max_tokens": 60}, after=20)
    check_same(rig, "at its last token", prompt_of(5, 32), {"max_tokens": 40}, after=39)
    check_same(rig, "longer than a step", prompt_of(150, 33), {"max_tokens": 60}, after=50)
    check_same(rig, "seeded", prompt_of(40, 34), {"max_tokens": 60, **seeded}, after=25)
    long_seeded = {"max_tokens": 60, "temperature": 0.8, "seed": 5}
    check_same(rig, "seeded, in parts", prompt_of(150, 35), long_seeded, after=30)
    check_same(rig, "logprobs", prompt_of(40, 36), {"max_tokens": 30, "logprobs": 3}, after=8)
    plain = rig.run(rig.add(prompt_of(33, 37), {"max_tokens": 60})).tokens
    early = {"max_tokens": 60, "stop_token_ids": [plain[5]], "min_tokens": 35}
    check_same(rig, "min_tokens", prompt_of(33, 37), early, after=12)
    check_same(rig, "regex", prompt_of(20, 38), {"max_tokens": 40, "regex": REGEX}, after=10)
    check_refusals(rig, plain)


def check_refusals(rig: Rig, said: list[int]) -> None:
    """What cannot go on ends with an error, and nothing is left of it."""
    rig.idle()
    free = rig.free
    for name, params, outputs in (
        ("a grammar that says otherwise", {"max_tokens": 40, "regex": r"( week){9}"}, said[:6]),
        ("prompt logprobs", {"max_tokens": 40, "prompt_logprobs": 2}, said[:6]),
    ):
        request = take_over(rig, prompt_of(20, 39), params, outputs)
        end = rig.run(request)
        check(f"not taken over, {name}", (end.finish, end.tokens) == ("error", []), end)
    rig.is_quiet(free, "not taken over")
    dropped = take_over(rig, prompt_of(40, 40), {"max_tokens": 40}, said[:3])
    rig.sink.abort(PEER, [(dropped, Epoch(9))])
    rig.pump()
    rig.is_quiet(free, "taken over, and aborted before its first step")
