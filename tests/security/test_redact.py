"""Secrets are taken out of texts, and nothing else is."""

from __future__ import annotations

import pytest

from axolotl_clo.redact import names_a_secret, public_url, redact, redact_options

SECRET = "MARKED-0123456789abcdef"


@pytest.mark.parametrize(
    "text",
    [
        f"http://user:{SECRET}@host/v1",
        f"see https://{SECRET}@host:8000/v1?x=1, or not",
        f"s3://bucket/rows.jsonl?X-Amz-Credential=a&X-Amz-Signature={SECRET}",
        f"http://host/v1?version=2&api_key={SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"hf_{SECRET.replace('-', '')}",
        f"key sk-proj-{SECRET} is wrong",
    ],
)
def test_prose_loses_addresses_passwords_and_what_looks_like_a_key(text: str) -> None:
    assert SECRET not in redact(text)
    assert SECRET.replace("-", "") not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        f"hub_token: {SECRET}",
        f"wandb: {{api_key: {SECRET}, project: mine}}",
        f'{{"apikey": "{SECRET} and more"}}',
        f"pretrained=m,token={SECRET},dtype=float32",
        f"deepl --auth-key {SECRET} --to de",
        f"deepl --password='{SECRET}'",
        f"  AWS_SECRET_ACCESS_KEY: {SECRET}  # mine",
    ],
)
def test_options_lose_the_values_of_those_named_like_secrets(text: str) -> None:
    cleaned = redact_options(text)
    assert SECRET not in cleaned
    assert "(hidden)" in cleaned


def test_a_secret_of_the_environment_is_found_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPL_API_KEY", SECRET)
    monkeypatch.setenv("SOME_TOKEN", "cat")  # too short to be told from a word
    assert redact(f"program {SECRET}: no such cat") == "program (hidden): no such cat"


@pytest.mark.parametrize(
    "text",
    [
        "the key is in the lock, and the token: none",
        "--api-key-env OPENAI_API_KEY --token-budget 100 --max-new-tokens 64",
        "pad_token: '<|end|>'\neos_token: </s>\ntokens_per_batch: 4096\ntokenizer: mine",
        "hf_use_auth_token: true",
        "https://man7.org/a@b?id=7#c",
        "datasets:\n  - path: data/en-ko.jsonl\n    type: axolotl_clo.cross_lingual",
        "clo.beta: 0.1 is accepted, got '2'; mail me@example.org",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact_options(text) == text


def test_names() -> None:
    assert all(map(names_a_secret, ("HF_TOKEN", "api_key", "apikey", "hub-token", "password", "proxy_auth")))
    assert not any(map(names_a_secret, ("tokenizer", "pad_token", "tokens", "keyboard", "author", "api_key_env")))


def test_an_address_keeps_what_says_where_it_is() -> None:
    assert public_url(f"https://u:{SECRET}@host:8000/v1?key={SECRET}#x") == "https://host:8000/v1"
