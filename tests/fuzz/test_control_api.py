"""Whatever is asked of the control API by its own schema, it answers: no 5xx, no hang, no growth.

The cluster behind it is a real head over fake hosts, so that what gets past the schema meets the
driver. `POST /v1/stop` is left out where it may be right: it would end the cluster.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cluster.hosts_rig import HostsRig

ANSWER_S = 20.0
# Two are no fault of the head: a fake instance lacks what is asked of it (502), and
# whoever asks for something within no time at all does not get it (504).
EXPECTED_ABOVE_500 = {502, 504}
NAMES = ["h1", "h2", "m", "m-0", "m-1", "gateway-0", "head", "../keys", "m-0/../../token"]


def operations_of(url: str, headers: dict[str, str]) -> list[Any]:
    import schemathesis  # half a second, which others need not wait for when tests are collected

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=headers)
    return [result.ok() for result in schema.get_all_operations()]


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_is_an_error_of_the_head(control, rig: HostsRig, mode) -> None:
    from schemathesis import GenerationMode

    wanted = GenerationMode(mode)
    token = {"authorization": f"Bearer {rig.state.keep_or_new_token().reveal()}"}
    every = operations_of(control.url, token)
    operations = [each for each in every if each.path != "/v1/stop"]
    assert len(operations) > 20
    cases = st.one_of([each.as_strategy(generation_mode=wanted) for each in operations])
    answers: Counter[int] = Counter()
    secrets = [value for key, value in json.loads(rig.keys).items() if "secret" in key]

    @settings(suppress_health_check=list(HealthCheck), print_blob=True)
    @given(case=cases, name=st.none() | st.sampled_from(NAMES))
    def ask(case, name) -> None:
        if name is not None and mode == "positive":
            case.path_parameters = dict.fromkeys(case.path_parameters or {}, name)
        answer = case.call(headers=token, timeout=ANSWER_S)
        answers[answer.status_code] += 1
        assert answer.status_code < 500 or answer.status_code in EXPECTED_ABOVE_500, (
            f"{answer.status_code} {answer.text}"
        )
        assert all(secret not in answer.text for secret in secrets)

    before = len(list(Path("/proc/self/fd").iterdir()))
    ask()
    assert sum(answers.values()) >= settings().max_examples // 2, answers
    assert control.status().cluster == "c"
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 64, "descriptors are left open"
