from dataclasses import fields
from pathlib import Path

import pytest

from llx.core.model import ClassName
from llx.core.scheduler.config import PoolConfig, Slo
from llx.errors import ConfigError
from llx.scheduling_settings import installed_policies
from llx.sim.flags import Flags, overridden, planned
from llx.sim.presets import POLICIES, paper_cluster
from llx.sim.run import prepare, run_once
from llx.sim.scenario import Scenario
from llx.sim.supply import Mix, Trace

pytestmark = pytest.mark.sim

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "sim").glob("*.yaml"))


def plan_of(tmp_path, text, **flags):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    return planned(path, Flags(**flags))


@pytest.mark.parametrize("policy", POLICIES)
def test_an_empty_scenario_is_the_papers_cluster(policy):
    plan = planned(None, Flags(policies=(policy,), headroom=40))
    assert [each.cluster for each in plan.variants] == [paper_cluster(policy, 16, 40)]
    assert (plan.source.lengths, plan.rates, plan.seeds) == (Mix("m-m"), (7.4,), (0,))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path):
    plan = planned(path, Flags(requests=40))
    policies = installed_policies()
    supply = prepare(plan, policies)
    for variant in plan.variants:
        requests = supply.requests(plan.seeds[0], plan.rates[0])
        run = run_once(plan, variant, requests, policies, plan.seeds[0])
        assert run.samples["all"].num_requests == 40
        assert not run.samples["all"].num_refused


def test_the_reference_names_every_key():
    """Those that only an example of their own can have are in the others."""
    text = "".join(path.read_text() for path in EXAMPLES)

    def keys(model):
        for name, field in model.model_fields.items():
            yield field.alias or name
            for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if hasattr(part, "model_fields"):
                    yield from keys(part)

    assert {name for name in keys(Scenario) if f"{name}:" not in text} == set()


def test_what_is_given_differs(tmp_path):
    text = """
        instances: 3
        engine: {num_blocks: 900, max_num_seqs: 9, step: {base_ms: 1.5, context_ktoken_us: 500}}
        link: {gb_per_s: 10}
        round_every_ms: 50
        classes:
          calm: {priority: 5, queue_limit: 7, share: 0.2}
          keen: {priority: -5, headroom: 11, headroom_share: 0.5, ttft_ms: 200, tpot_ms: 30}
        policies:
          infaas: {}
          mine:
            from: llumnix
            dispatch: round_robin
            rescheduling: {low: 2, high: .inf, rest_s: 1.5}
        rates: [1, 2]
        seeds: [4, 9]
    """
    plan = plan_of(tmp_path, text)
    assert plan.num_runs == 8
    infaas, mine = (each.cluster for each in plan.variants)
    assert infaas.pool.rescheduling == POLICIES["infaas"].rescheduling
    assert [each.name for each in mine.pool.classes] == ["keen", "calm"]
    assert mine.pool.classes[0].slo == Slo(200_000_000, 30_000_000)
    assert (mine.pool.classes[0].headroom, mine.pool.classes[1].queue_limit) == (11, 7)
    assert mine.pool.classes[0].headroom_share == 0.5
    assert (mine.pool.dispatch, mine.pool.is_immediate) == ("round_robin", True)
    rules = mine.pool.rescheduling
    assert (rules.low, rules.high, rules.rest, rules.max_out) == (2, float("inf"), 1.5e9, 1)
    assert (mine.engine.num_blocks, mine.engine.block_size) == (900, 16)
    assert mine.engine.step_time.base_ns == 1_500_000
    assert (mine.pool.max_requests, mine.pool.step_time.per_block) == (9, 8000)
    assert (mine.link.bytes_per_s, mine.link.hop) == (10**10, 200_000)
    assert (mine.round_every, mine.num_instances) == (50_000_000, 3)
    assert plan.source.shares == (("calm", 0.2),)
    assert plan.source.default_class == "keen"
    assert plan.goals[ClassName("keen")].ttft_s == 0.2


def test_flags_override(tmp_path):
    text = """
        instances: 3
        trace: {file: here.csv, format: azure}
        policies: {mine: {dispatch: round_robin}, other: {}}
        seeds: 3
    """
    plan = plan_of(tmp_path, text, instances=5, policies=("infaas", "mine"), seeds="1-2")
    assert [each.policy for each in plan.variants] == ["infaas", "mine"]
    assert plan.variants[1].cluster.pool.dispatch == "round_robin"
    assert {each.cluster.num_instances for each in plan.variants} == {5}
    assert plan.source.lengths == Trace(tmp_path / "here.csv", "azure")
    assert (plan.seeds, plan.rates) == ((1, 2), (None,))
    scaled = plan_of(tmp_path, text, scale_rate=2.0).source.lengths
    assert scaled == Trace(tmp_path / "here.csv", "azure", 2.0)
    assert plan_of(tmp_path, text, mix="s-s").source.lengths == Mix("s-s")
    recording = planned(tmp_path / "r.jsonl", Flags(outputs="30")).source.lengths
    assert recording == Trace(tmp_path / "r.jsonl", outputs=30)
    high = planned(None, Flags(high=0.2)).source
    assert high.shares == (("high", 0.2),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("instancs: 3", 's.yaml:1: unknown key "instancs"; did you mean "instances"'),
        ("policies:\n  x:\n    rescheduling: {lo: 3}", ':3: unknown key "lo" in policies.x'),
        ("policies: {x: {from: fate}}", "no policy 'fate'"),
        ("policies: {'../x': {}}", "policies"),
        ("policies: {x: {rescheduling: {low: 9, high: 3}}}", "low must be below high"),
        ("seeds: 4-3", 'names no seeds'),
        ("rates: [0]", "rates"),
        ("engine: {num_blocks: 3}", "hold no request of max_model_len"),
        ("engine: {max_num_batched_tokens: 64}", "prompts are computed whole"),
        ("engine: {step: {decode_us: 1}}", "base_ms"),
        ("classes: {a: {priority: 0, share: 0.6}, b: {priority: 1, share: 0.6}}", "shares"),
        ("classes: {a: {priority: 0}, b: {priority: 0}}", "rising priority"),
    ],
)  # fmt: skip
def test_a_wrong_scenario_is_explained(tmp_path, text, says):
    with pytest.raises(ConfigError) as caught:
        plan_of(tmp_path, text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"scale_rate": 2.0}, "about a trace"),
        ({"policies": ("fate",)}, "no policy 'fate'"),
        ({"seeds": "x"}, "names no seeds"),
        ({"trace": Path("x"), "outputs": "x"}, 'outputs: "x" is no length'),
        ({"outputs": "3"}, "about a trace"),
        ({"rates": (-1.0,)}, "rates"),
    ],
)
def test_wrong_flags_are_explained(flags, says):
    with pytest.raises(ConfigError) as caught:
        overridden(Scenario(), Flags(**flags))
    assert says in str(caught.value)


def test_there_may_be_no_class_high(tmp_path):
    with pytest.raises(ConfigError, match='"high"'):
        plan_of(tmp_path, "classes: {a: {priority: 0}}", high=0.1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("policies: {x: {dispatch: fewest}}", "no dispatch policy 'fewest'"),
        ("workload: {mix: x-x}", "no workload 'x-x'"),
        ("{trace: {file: trace.jsonl}, seeds: 0-1}", "every seed would be the same"),
        ("trace: {file: none.jsonl}", "none.jsonl: cannot be read"),
    ],
)
def test_what_cannot_be_run_is_known_before_it_runs(tmp_path, text, says):
    line = '{"timestamp": 1, "input_length": 2, "output_length": 3}\n'
    (tmp_path / "trace.jsonl").write_text(line)
    with pytest.raises(ConfigError) as caught:
        prepare(plan_of(tmp_path, text), installed_policies())
    assert says in str(caught.value)


def test_policies_have_their_rules_only():
    """What a policy overrides are rules; a new one of the core wants a key here."""
    rules = {"dispatch", "is_immediate", "overtaking", "growth_tokens", "age_after"}
    rules |= {"rescheduling", "scaling"}
    others = {"name", "classes", "step_tokens", "max_requests", "charge_expires_after", "step_time"}
    assert {each.name for each in fields(PoolConfig)} == rules | others


def test_policies_may_expect_what_the_engine_does_not_take(tmp_path):
    step = "engine: {step: {base_ms: 5, decode_us: 100}}"
    expected = (
        "step_time: {base_ms: 7, per_prefill_token_us: 1, per_request_us: 2, per_block_us: 3}"
    )
    plain, told = (
        plan_of(tmp_path, text).variants[0].cluster for text in (step, f"{step}\n{expected}")
    )
    assert plain.pool.step_time.base == 5_000_000
    found = told.pool.step_time
    assert (found.base, found.per_prefill_token) == (7_000_000, 1_000)
    assert (found.per_request, found.per_block) == (2_000, 3_000)
    assert told.engine == plain.engine
