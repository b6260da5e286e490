"""The verdict of `tests.bench.soak`, on samples made up."""

import pytest

from tests.bench.soak import LEAST, SAMPLE_S, STORES, judged


def samples(count, mib_per_hour, *, full_from=0.0, grows_until=1.0):
    """A head that grows so fast, up to a share of the run; its stores are full after another."""
    found = []
    for number in range(count):
        hours = min(number, grows_until * count) * SAMPLE_S / 3600
        noise = (number * 7 % 5) / 10
        looks = {"pid": 7, "rss_mib": 80 + noise + mib_per_hour * hours, "files": 9, "threads": 4}
        is_full = number >= full_from * count
        found.append(
            {
                "at_s": number * SAMPLE_S,
                "seen": {key: most if is_full else most - 1 for key, most in STORES.items()},
                "processes": {"head": looks},
                "bytes": {"events": 0, "recordings": 0, "logs": 0},
            }
        )
    return found


def test_what_grows_to_the_end_fails():
    (said,) = judged(samples(720, 30.0))["wrong"]
    assert said.startswith("head: rss_mib grows")


def test_what_grew_until_its_stores_were_full_passes():
    found = judged(samples(720, 30.0, full_from=0.7, grows_until=0.7))
    assert found["wrong"] == []
    assert found["judged_from_s"] == pytest.approx(0.7 * 720 * SAMPLE_S, abs=SAMPLE_S)


def test_a_run_that_ends_before_its_stores_are_full_says_nothing():
    few = samples(240, 0.0, full_from=1 - (LEAST - 1) / 240)
    assert "too short" in judged(few)["wrong"][0]
    assert "too short" in judged(samples(240, 0.0, full_from=2.0))["wrong"][0]


def test_files_that_stay_open_fail_and_those_of_open_requests_do_not():
    found = samples(240, 0.0)
    found[200]["processes"]["head"]["files"] = 900
    assert judged(found)["wrong"] == []
    found[-1]["processes"]["head"]["files"] = 20
    assert judged(found)["wrong"] == ["head: files at rest: 9, then 20"]


def test_a_process_that_is_another_at_the_end_fails():
    found = samples(240, 0.0)
    found[-1]["processes"]["head"] = {**found[-1]["processes"]["head"], "pid": 8}
    assert judged(found)["wrong"] == ["head: another process, or none"]
