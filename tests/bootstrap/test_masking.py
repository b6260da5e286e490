"""No secret and no prompt gets through, and what is none stays."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llx.bootstrap.masking import LEFT_OUT, MASK, Mask

HIDDEN = "s3cr3t-Value.x/y+z=="

NAMED = [
    f"Authorization: Bearer {HIDDEN}",
    f"authorization: Basic {HIDDEN}",
    f"{{'Authorization': 'Bearer {HIDDEN}'}}",
    f"a request with bearer {HIDDEN} in it",
    f"password={HIDDEN}",
    f'password="{HIDDEN} and more"',
    f'password="{HIDDEN} never closed',
    f"HF_TOKEN={HIDDEN} x=1",
    f'"token": "{HIDDEN}"',
    f"'api_key': '{HIDDEN}',",
    f"x-api-key: {HIDDEN}",
    f"--api-key {HIDDEN}",
    f"--hf-token={HIDDEN}",
    f'["--api-key", "{HIDDEN}"]',
    f"https://me:{HIDDEN}@hub.example/x",
    f"AWS_SECRET_ACCESS_KEY={HIDDEN}",
    f"client_secret: {HIDDEN}",
    f"listener_secret: {HIDDEN}",
    f"Set-Cookie: id={HIDDEN}; Path=/",
    json.dumps({"why": json.dumps({"token": HIDDEN})}),
    f"-----BEGIN EC PRIVATE KEY-----\n{HIDDEN}\n-----END EC PRIVATE KEY-----",
    f"-----BEGIN PRIVATE KEY-----\n{HIDDEN}\nand cut off",
]


@pytest.mark.parametrize("text", NAMED)
def test_what_is_called_a_secret_is_masked(text):
    masked = Mask().text(f"before\n{text}\nafter")
    assert HIDDEN not in masked
    assert MASK in masked
    assert masked.startswith("before\n")


@pytest.mark.parametrize(
    "text",
    [
        "hf_abcdefghijklmnopqrstuvwx", "sk-proj-abcdefghij0123456789", "ghp_abcdefghij0123456789",
        "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4",
    ],
)  # fmt: skip
def test_what_looks_like_one_is_masked(text):
    assert Mask().text(f"x {text} y") == f"x {MASK} y"


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-28T10:00:01.200Z INFO pool.dispatched request=cmpl-1 tokens=12 num_tokens=5",
        "max_num_batched_tokens: 512\nkv_bytes_per_token: 256",
        "api_keys: []",
        "key_file: /home/me/keys",
        "tokens_path=/a/token",
        "the bearer token is missing or wrong",
        "token: null",
        "num_prompt=12 prompt tokens",
        "messages=3 queued=2",
        "content-type: text/plain",
        'why="soonest, tiny-0 with tokens ahead 0"',
    ],
)
def test_what_is_none_stays(text):
    assert Mask().text(text) == text


@given(secret=st.text(min_size=6, max_size=60).map(str.strip).filter(lambda text: len(text) >= 6))
def test_a_known_secret_is_found_however_it_is_written(secret):
    mask = Mask([secret])
    for text in (secret, json.dumps({"a": f"x{secret}y"}), repr(f"x{secret}y"), f"({secret})"):
        assert secret not in mask.text(text).replace(MASK, "")
    # What a key ends in may say that all below it is one: the secret is "_TOKEN" at times.
    (first, second) = mask.data([f"a {secret} b", {f"{secret} k": f"a {secret} b"}])
    assert first == f"a {MASK} b"
    assert second == {f"{MASK} k": f"a {MASK} b"}


def test_what_is_too_short_to_be_one_takes_nothing_along():
    assert Mask(["", " ", "ab"]).text("ab abc") == "ab abc"


def test_data_keeps_its_shape():
    value = {
        "gateway": {"api_keys": [{"tenant": "ann", "sha256": "f" * 64}], "max_tokens": 5},
        "HF_TOKEN": "abc",
        "num_tokens": 7,
        "error": "sent Bearer abcdefgh",
        "prompt": [1, 2, 3],
        "token": None,
    }
    assert Mask().data(value) == {
        "gateway": {"api_keys": [{"tenant": "ann", "sha256": MASK}], "max_tokens": 5},
        "HF_TOKEN": MASK,
        "num_tokens": 7,
        "error": f"sent Bearer {MASK}",
        "prompt": LEFT_OUT,
        "token": None,
    }


def test_lines_of_json_stay_json():
    text = '{"kind": "a", "token": "abcdef"}\nno json, password=abcdef\n{"at": 1'
    first, second, third = Mask().json_lines(text).splitlines()
    assert json.loads(first) == {"kind": "a", "token": MASK}
    assert (second, third) == (f"no json, password={MASK}", '{"at": 1')


@pytest.mark.parametrize(
    "text",
    [
        "Received request cmpl-1: prompt: 'my own words', params: SamplingParams(n=1)",
        'body={"messages": [{"role": "user", "content": "my own words"}]}',
        "prompt_token_ids=[1, 2] my own words",
        "input_value={'prompt': 'my own words'}",
    ],
)
def test_prompts_go_to_the_end_of_the_line_unless_asked_for(text):
    assert "my own words" not in Mask().text(f"{text}\nnext line")
    assert Mask().text(f"{text}\nnext line").endswith("\nnext line")
    assert "my own words" in Mask(with_prompts=True).text(text)
