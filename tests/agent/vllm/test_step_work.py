"""What is in a step of vLLM: prompts, chunks of prompts, decodes."""

from types import SimpleNamespace

from llx.agent.vllm.step_work import work_of


def output(cached: dict[str, tuple[int, int]], new: dict[str, tuple[int, int]]) -> SimpleNamespace:
    """As vLLM's scheduler says it; requests with the tokens computed before, and in the step."""
    return SimpleNamespace(
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached), num_computed_tokens=[start for start, _ in cached.values()]
        ),
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, num_computed_tokens=start)
            for name, (start, _) in new.items()
        ],
        num_scheduled_tokens={name: count for name, (_, count) in {**cached, **new}.items()},
        total_num_scheduled_tokens=sum(count for _, count in [*cached.values(), *new.values()]),
    )


def test_all_decode() -> None:
    assert work_of(output({"a": (10, 1), "b": (99, 1)}, {})) == (0, 2, 111, 0, 111)


def test_prompts_beside_decodes() -> None:
    cached = {"a": (10, 1), "chunk": (512, 100), "b": (99, 1)}
    squares = 612**2 - 512**2 + 30**2
    assert work_of(output(cached, {"new": (0, 30)})) == (130, 2, 111 + 612 + 30, squares, 111)


def test_what_comes_with_its_kv_decodes() -> None:
    """A request that has moved here, or whose prompt but for one token is in the prefix cache."""
    assert work_of(output({}, {"moved": (700, 1)})) == (0, 1, 701, 0, 701)
    assert work_of(output({}, {"one": (0, 1)})) == (1, 0, 1, 1, 0)
