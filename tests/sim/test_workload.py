import gzip
import itertools
import json
import statistics

import pytest

from llx.errors import ConfigError
from llx.sim.trace_files import detect, read_lengths, read_trace
from llx.sim.workload import gamma_arrivals, generated, like_lengths, paper_lengths

pytestmark = pytest.mark.sim


@pytest.mark.parametrize(
    ("mix", "mean", "percentiles"),
    [
        ("s-s", 128, (38, 113, 413, 1464)),
        ("m-m", 254, (32, 173, 1288, 4208)),
        ("l-l", 513, (55, 582, 3119, 5166)),
    ],
)
def test_the_papers_lengths_are_the_papers(mix, mean, percentiles):
    prompts = sorted(prompt for prompt, _ in paper_lengths(mix, 10_000))
    assert round(statistics.fmean(prompts)) == mean
    assert tuple(prompts[int(10_000 * q)] for q in (0.5, 0.8, 0.95, 0.99)) == percentiles
    assert prompts[-1] <= 6144


@pytest.mark.parametrize(
    ("name", "side", "mean", "percentiles"),
    [
        ("sharegpt-like", 0, 306, (74, 348, 1484, 3388)),
        ("sharegpt-like", 1, 500, (487, 781, 988, 1234)),
        ("burstgpt-like", 0, 830, (582, 1427, 2345, 3549)),
        ("burstgpt-like", 1, 271, (243, 434, 669, 964)),
    ],
)
def test_lengths_like_a_traces_have_its_percentiles(name, side, mean, percentiles):
    lengths = sorted(each[side] for seed in range(10) for each in like_lengths(name, 4000, seed))
    assert statistics.fmean(lengths) == pytest.approx(mean, rel=0.03)
    found = [lengths[int(len(lengths) * q)] for q in (0.5, 0.8, 0.95, 0.99)]
    assert found == pytest.approx(percentiles, rel=0.06)
    assert generated(name, 1.0, 50, 1) != generated(name, 1.0, 50, 2)


@pytest.mark.parametrize("cv", [0.5, 1, 4])
def test_arrivals_have_the_rate_and_the_variation(cv):
    times = gamma_arrivals(3, 10.0, cv, 20_000)
    gaps = [(b - a) / 1e9 for a, b in itertools.pairwise(times)]
    assert statistics.fmean(gaps) == pytest.approx(0.1, rel=0.1)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(cv, rel=0.1)
    assert times == sorted(times)


def test_a_seed_says_everything():
    one = generated("s-l", 4.0, 100, 7, high_share=0.3)
    assert one == generated("s-l", 4.0, 100, 7, high_share=0.3)
    assert one != generated("s-l", 4.0, 100, 8, high_share=0.3)
    assert 10 < sum(each.priority_class == "high" for each in one) < 50


@pytest.mark.parametrize("args", [("s-x", 1.0, 1.0), ("s-s", 0.0, 1.0), ("s-s", 1.0, -1.0)])
def test_nonsense_is_refused(args):
    mix, rate, cv = args
    with pytest.raises(ConfigError):
        generated(mix, rate, 10, 0, cv=cv)


FILES = {
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n",
    "mooncake": '{"timestamp": 0, "input_length": 374, "output_length": 44, "hash_ids": [0]}\n'
    '{"timestamp": 4314.579, "input_length": 396, "output_length": 109, "hash_ids": [0]}\n',
    "timed": '{"timestamp": 1, "input_length": 374, "output_length": 44}\n\n'
    '{"timestamp": 5.314579, "input_length": 396, "output_length": 109}\n',
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,GPT-4,374,44,418,API log\n6,GPT-4,374,0,418,API log\n9.314579,GPT-4,396,109,505,API log\n",
    "vllm-log": '{"arrival_time": 10.0, "input_toks": 374, "output_toks": 44}\n'
    '{"arrival_time": 14.314579, "input_toks": 396, "output_toks": 109}\n',
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_gzipped", [False, True])
def test_formats(tmp_path, name, is_gzipped):
    path = tmp_path / ("trace.gz" if is_gzipped else "trace")
    data = FILES[name].encode()
    path.write_bytes(gzip.compress(data) if is_gzipped else data)
    seen = [(each.arrival, each.num_prompt, each.num_outputs) for each in read_trace(path, name)]
    assert seen == [(0, 374, 44), (4_314_579_000, 396, 109)]
    assert list(read_lengths(path, name)) == [(374, 44), (396, 109)]
    assert detect(path) == name


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("azure", "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", ":2: .*TIMESTAMP"),
        ("azure", "TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,1\n", ":2: .*GeneratedTokens"),
        ("mooncake", '{"timestamp": 0, "input_length": 1, "output_length": 1}\n{\n', ":2: no JSON"),
        ("mooncake", "[]\n", ":1: no JSON object"),
        ("timed", '{"timestamp": "nan", "input_length": 1, "output_length": 1}', ":1: .*timestamp"),
        ("timed", '{"timestamp": 0, "input_length": 1.5, "output_length": 1}', "input_length"),
        ("timed", '{"timestamp": 0, "input_length": null, "output_length": 1}', "input_length"),
        ("counts", "", "no arrival times"),
        ("sharegpt", "", "no arrival times"),
        ("tea leaves", "", "no trace format"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path, name, text, says):
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        list(read_trace(path, name))


def test_time_runs_forwards(tmp_path):
    path = tmp_path / "trace"
    line = '{{"timestamp": {}, "input_length": 1, "output_length": 1}}\n'
    path.write_text(line.format(5) + line.format(4))
    with pytest.raises(ConfigError, match=r":2: .*before"):
        list(read_trace(path, "timed"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_trace(tmp_path / "none.gz", "azure"))


def test_conversations_count_four_characters_a_token(tmp_path):
    path = tmp_path / "s.json"
    talk = [{"from": "human", "value": "12345"}, {"from": "gpt", "value": "1234"}, {"value": "?"}]
    lone, empty = talk[:1], [talk[0], {"value": ""}]
    path.write_text(json.dumps([{"id": 1, "conversations": each} for each in (talk, lone, empty)]))
    assert detect(path) == "sharegpt"
    assert list(read_lengths(path, "sharegpt")) == [(2, 1)]


@pytest.mark.parametrize(
    ("text", "says"),
    [("[1]", "entry 0 is no conversation"), ("{}", "no list"), ("[", "cannot be read")],
)
def test_what_is_no_list_of_conversations(tmp_path, text, says):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        list(read_lengths(path, "sharegpt"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"input_toks": 1, "output_toks": 2}', "counts"),
        ("num_prefill_tokens,num_decode_tokens", "vidur"),
    ],
)
def test_lengths_alone_are_told_by_their_names(tmp_path, text, name):
    path = tmp_path / "trace"
    path.write_text(text)
    assert detect(path) == name


@pytest.mark.parametrize("text", ["", "tea,leaves\n1,2\n", '{"tea": 1}\n', "3\n"])
def test_what_looks_like_no_trace(tmp_path, text):
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ConfigError, match="looks like no trace") as caught:
        detect(path)
    assert "azure" in caught.value.remedy
