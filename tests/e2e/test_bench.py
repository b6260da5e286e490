"""`llx bench` against the cluster: exact tokens, its load over time, nothing lost."""

import pytest
import yaml

from llx.bench.run_directory import read_results

pytestmark = [pytest.mark.e2e, pytest.mark.node]


def test_a_cluster_is_measured_and_watched(cluster):
    scenario = {
        "name": "small",
        "model": "simulated",
        "workload": {
            "requests": 30,
            "arrivals": {"rate": 20},
            "lengths": {"prompt": {"least": 5, "most": 200}, "output": {"least": 20, "most": 60}},
            "classes": {"interactive": 0.3},
            "sessions": {"turns": 2, "gap_s": 0.5},
        },
        "warmup": 2,
        "slo": {"ttft_ms": 60_000},
    }
    folder = cluster.llx.home / "bench"
    folder.mkdir()
    (folder / "small.yaml").write_text(yaml.safe_dump(scenario))
    out = str(folder / "out")
    done = cluster.llx("bench", "run", str(folder / "small.yaml"), "--out", out)
    assert done.returncode == 0, done.stderr
    (run,) = read_results(folder / "out").runs
    records = run.records()
    assert run.figure("completed") == 30
    assert all(e.num_outputs == e.usage_outputs == e.max_outputs for e in records)
    assert {each.priority_class for each in records} == {"", "interactive"}
    assert all(each.instance for each in records)
    seen = [each for sight in run.sights() for each in sight.instances]
    assert any(each.running for each in seen if each.name == records[0].instance)
    assert run.figure("request_goodput") == run.figure("request_throughput")
    assert cluster.llx("bench", "compare", out, out, "--bound", "p99_ttft=1.01").returncode == 0
