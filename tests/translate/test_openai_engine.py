"""The OpenAI engine against real servers: a scripted one on loopback, and `transformers serve` with a tiny model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import GUARD, KEY, NEVER, Reply, Serve, Server, completion, error, transformers_serve, upper

from axolotl_clo.translate.engines import Engine, EngineError, EngineOptions, Failure, open_engine
from axolotl_clo.translate.engines.openai import OpenAIEngine

pytestmark = pytest.mark.usefixtures("no_openai_environment")


@pytest.fixture
def connect() -> Iterator[Callable[..., OpenAIEngine]]:
    engines: list[OpenAIEngine] = []

    def start(server: Server | str, **options: Any) -> OpenAIEngine:
        url = server if isinstance(server, str) else server.url
        defaults = {"model": "some/model", "base_url": url, "timeout": GUARD, "retries": 2, "concurrency": 4}
        engines.append(OpenAIEngine(EngineOptions(**{**defaults, **options})))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


Connect = Callable[..., OpenAIEngine]


def failure_of(results: list[str | Failure]) -> str:
    (result,) = results
    assert isinstance(result, Failure)
    return result.reason


def test_is_an_engine_under_its_name(serve: Serve) -> None:
    opened = open_engine("openai", EngineOptions(model="m", base_url=serve(upper).url, concurrency=3, batch_size=7))
    assert isinstance(opened, Engine)
    assert (opened.unit, opened.max_chars, opened.batch) == ("line", 4000, 7)
    opened.close()
    opened.close()


def test_asks_for_the_translation_of_each_segment(serve: Serve, connect: Connect) -> None:
    server = serve(upper)
    assert connect(server, seed=7).translate(["one", "two {0}"], "en", "ko") == ["ONE", "TWO {0}"]
    body = server.bodies[0]
    system, user = body["messages"]
    assert (body["model"], body["temperature"], body["seed"]) == ("some/model", 0, 7)
    assert "max_tokens" not in body
    assert system["role"] == "system"
    assert "from English into Korean" in system["content"]
    assert "such as {0} and {1}" in system["content"]
    assert user == {"role": "user", "content": server.segments[0]}
    assert server.paths == ["/v1/chat/completions"] * 2


def test_the_longest_answer_is_sent_where_it_is_given(serve: Serve, connect: Connect) -> None:
    server = serve(upper)
    connect(server, max_new_tokens=99).translate(["one"], "en", "ko")
    assert server.bodies[0]["max_tokens"] == 99


def test_order_holds_where_answers_come_in_another(serve: Serve, connect: Connect) -> None:
    last_was_asked = threading.Event()

    def backwards(segment: str, nth: int) -> Reply:
        if segment == "d":
            last_was_asked.set()
        else:
            assert last_was_asked.wait(GUARD)
        return upper(segment, nth)

    assert connect(serve(backwards)).translate(["a", "b", "c", "d"], "en", "ko") == ["A", "B", "C", "D"]


def test_as_many_requests_at_a_time_as_allowed_and_never_more(serve: Serve, connect: Connect) -> None:
    together = threading.Barrier(3)

    def by_threes(segment: str, nth: int) -> Reply:
        together.wait(GUARD)
        return upper(segment, nth)

    server = serve(by_threes)
    segments = [f"s{i}" for i in range(12)]
    assert connect(server, concurrency=3).translate(segments, "en", "ko") == [s.upper() for s in segments]
    assert server.busiest == 3


@pytest.mark.bad_input("translate")
def test_blank_segments_come_back_and_half_characters_fail_without_a_request(serve: Serve, connect: Connect) -> None:
    server = serve(upper)
    first, second, third = connect(server).translate(["", " ", "a\ud800"], "en", "ko")
    assert (first, second) == ("", " ")
    assert isinstance(third, Failure)
    assert not server.bodies


def test_works_inside_a_running_event_loop(serve: Serve, connect: Connect) -> None:
    engine = connect(serve(upper))

    async def cell() -> list[str | Failure]:
        return engine.translate(["one"], "en", "ko")

    assert asyncio.run(cell()) == ["ONE"]


def test_retry_after_is_honoured(serve: Serve, connect: Connect) -> None:
    server = serve(lambda s, nth: upper(s, nth) if nth else error(429, headers={"Retry-After": "1.5"}))
    assert connect(server).translate(["one"], "en", "ko") == ["ONE"]
    assert server.times[1] - server.times[0] >= 1.5  # the client's own first pause is at most 0.5


def test_server_errors_are_tried_again(serve: Serve, connect: Connect) -> None:
    server = serve(lambda s, nth: upper(s, nth) if nth == 2 else error(500 + nth))
    assert connect(server).translate(["one"], "en", "ko") == ["ONE"]
    assert len(server.bodies) == 3


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize(
    ("status", "message"),
    [(429, r"too many requests.* lower --concurrency \(4\)"), (503, "the server failed, with 2 --retries")],
)
def test_errors_without_end_stop_the_run_and_do_not_multiply(
    serve: Serve, connect: Connect, status: int, message: str
) -> None:
    server = serve(lambda s, nth: error(status, "slow down, the context size is shared"))
    with pytest.raises(EngineError, match=f"{message}.*slow down"):
        connect(server).translate([f"s{i}" for i in range(40)], "en", "ko")
    assert set(server.segments) <= {"s0", "s1", "s2", "s3"}  # the first four, of which one came to its third try
    assert max(server.segments.count(segment) for segment in server.segments) == 3


def test_an_error_of_the_run_does_not_wait_for_other_requests(serve: Serve, connect: Connect) -> None:
    others_hang = threading.Barrier(4)

    def script(segment: str, nth: int) -> Reply:
        others_hang.wait(GUARD)
        return error(401) if segment == "bad" else NEVER

    engine = connect(serve(script), timeout=100_000.0)
    with pytest.raises(EngineError, match="--api-key-env"):
        engine.translate(["a", "b", "c", "bad", "d"], "en", "ko")


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize("status", [401, 403])
def test_refused_access_names_the_variable_at_once(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    server = serve(lambda s, nth: error(status, "who are you"))
    with pytest.raises(EngineError, match=r"--api-key-env: the variable MY_KEY is not set, and .*: .*who are you"):
        connect(server, api_key_env="MY_KEY").translate(["one"], "en", "ko")
    monkeypatch.setenv("MY_KEY", KEY)
    with pytest.raises(EngineError, match="--api-key-env: the variable MY_KEY is set, but"):
        connect(server, api_key_env="MY_KEY").translate(["one"], "en", "ko")
    assert len(server.bodies) == 2


@pytest.mark.bad_input("translate")
def test_what_is_not_there_names_model_and_address(serve: Serve, connect: Connect) -> None:
    server = serve(lambda s, nth: error(404, "no such model"))
    with pytest.raises(EngineError, match=r"--model, --base-url: .* 'some/model', .*no such model"):
        connect(server).translate(["one"], "en", "ko")
    assert len(server.bodies) == 1


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize(
    "body",
    [{"error": {"message": "no system role"}}, {"detail": "no system role"}, {"x": "no system role"}, "no system role"],
)
def test_a_request_that_the_server_does_not_take_stops_the_run(serve: Serve, connect: Connect, body: Any) -> None:
    server = serve(lambda s, nth: Reply(body, 400))
    with pytest.raises(
        EngineError, match=r"does not take the request \(HTTP 400\): (no system role|\{'x': 'no system role'\})$"
    ):
        connect(server).translate(["one"], "en", "ko")
    assert len(server.bodies) == 1


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize(
    "refusal",
    [
        {"message": "not this one", "code": "content_filter"},
        {"message": "not this one", "code": "context_length_exceeded"},
        {"message": "not this one: the model's maximum context length is 2048 tokens", "code": 400},
        {"message": "not this one: it exceeds the available context size", "code": 400},
    ],
)
def test_a_segment_that_the_server_refuses_fails_alone(serve: Serve, connect: Connect, refusal: dict[str, Any]) -> None:
    server = serve(lambda s, nth: error(400, **refusal) if s == "bad" else upper(s, nth))
    first, second = connect(server).translate(["bad", "good"], "en", "ko")
    assert isinstance(first, Failure)
    assert "not this one" in first.reason
    assert second == "GOOD"
    assert len(server.bodies) == 2


def test_a_parameter_that_the_model_does_not_take_is_left_out(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(upper)

    def reasoning_model(segment: str, nth: int) -> Reply:
        for name in ("temperature", "max_tokens"):
            if name in server.bodies[-1]:
                return error(400, "unsupported", param=name)
        return upper(segment, nth)

    server.script = reasoning_model
    engine = connect(server, concurrency=1, max_new_tokens=50)
    assert engine.translate(["one", "two"], "en", "ko") == ["ONE", "TWO"]
    assert len(server.bodies) == 4
    assert server.bodies[-1]["max_completion_tokens"] == 50
    assert "some/model does not take temperature=0, which is left out" in caplog.text


def test_what_was_left_out_does_not_come_back_with_another_try(serve: Serve, connect: Connect) -> None:
    def without_seed(segment: str, nth: int) -> Reply:
        if "seed" in server.bodies[-1]:
            return error(400, "unsupported", param="seed")
        return upper(segment, nth) if nth == 2 else completion("")

    server = serve(without_seed)
    assert connect(server).translate(["one"], "en", "ko") == ["ONE"]
    assert [body.get("seed") for body in server.bodies] == [0, None, None]


@pytest.mark.bad_input("translate")
def test_no_answer_in_time_is_tried_again_and_then_an_error(serve: Serve, connect: Connect) -> None:
    server = serve(lambda s, nth: NEVER)
    with pytest.raises(EngineError, match=r"no answer within 0.5 seconds \(--timeout\), with 1 --retries"):
        connect(server, timeout=0.5, retries=1).translate(["one"], "en", "ko")
    assert len(server.bodies) == 2


@pytest.mark.bad_input("translate")
def test_no_server_names_the_address(connect: Connect) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(EngineError, match=rf"{url}: no connection \(--base-url\), with 1 --retries"):
            connect(url, retries=1).translate(["one"], "en", "ko")


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize("body", ["<html>Bad gateway</html>", "", '{"choices": ['])
def test_a_body_that_is_not_json_is_tried_again_and_then_an_error(serve: Serve, connect: Connect, body: str) -> None:
    server = serve(lambda s, nth: Reply(body) if s == "lost" or not nth else upper(s, nth))
    engine = connect(server, retries=1)
    assert engine.translate(["one"], "en", "ko") == ["ONE"]
    with pytest.raises(EngineError, match=r"--base-url: .* answers, but not in JSON: "):
        engine.translate(["lost"], "en", "ko")
    assert server.segments.count("lost") == 2


MALFORMED = [
    (Reply({}), "no choices"),
    (Reply({"choices": []}), "no choices"),
    (Reply({"choices": None}), "no choices"),
    (Reply([]), "no choices"),
    (Reply({"error": {"message": "overloaded"}}), "is an error: .*overloaded"),
    (Reply({"choices": [None]}), "no text"),
    (completion(None), "no text"),
    (completion(" \n"), "no text"),
    (completion([{"type": "text", "text": "A"}]), "no text"),
    (completion("A", finish="length"), "cut off at the token limit"),
    (completion("A", finish="content_filter"), "content filter"),
    (completion("<think>so"), "still thinking"),
    (completion("<think>so</think>"), "no text"),
    (completion("Here it is:\n\nA"), "3 lines in place of one"),
]


@pytest.mark.parametrize(("reply", "reason"), MALFORMED)
def test_a_malformed_answer_is_tried_again(serve: Serve, connect: Connect, reply: Reply, reason: str) -> None:
    server = serve(lambda s, nth: upper(s, nth) if nth == 2 else reply)
    assert connect(server).translate(["one"], "en", "ko") == ["ONE"]
    assert len(server.bodies) == 3


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize(("reply", "reason"), MALFORMED)
def test_malformed_answers_without_end_fail_one_segment(
    serve: Serve, connect: Connect, reply: Reply, reason: str
) -> None:
    server = serve(lambda s, nth: reply if s == "bad" else upper(s, nth))
    first, bad, last = connect(server).translate(["one", "bad", "two"], "en", "ko")
    assert (first, last) == ("ONE", "TWO")
    assert isinstance(bad, Failure)
    assert re.search(f"in 3 tries; the last .*{reason}", bad.reason)
    assert server.segments.count("bad") == 3


def test_tries_of_all_kinds_count_together(serve: Serve, connect: Connect) -> None:
    replies = [error(500), completion(""), error(429), completion("")]
    server = serve(lambda s, nth: replies[nth])
    assert "in 4 tries; the last has no text" in failure_of(connect(server, retries=3).translate(["one"], "en", "ko"))
    assert len(server.bodies) == 4


@pytest.mark.parametrize("first", [completion(""), Reply("<html>")], ids=["malformed", "no JSON"])
def test_what_was_tried_before_an_error_counts_too(serve: Serve, connect: Connect, first: Reply) -> None:
    server = serve(lambda s, nth: error(500) if nth else first)
    with pytest.raises(EngineError, match="the server failed"):
        connect(server, retries=2).translate(["one"], "en", "ko")
    assert len(server.bodies) == 3


def test_another_try_asks_for_another_answer(serve: Serve, connect: Connect) -> None:
    server = serve(lambda s, nth: upper(s, nth) if nth == 2 else completion(""))
    connect(server, seed=5).translate(["one"], "en", "ko")
    assert [(body["temperature"], body["seed"]) for body in server.bodies] == [(0, 5), (0.5, 6), (0.5, 7)]


@pytest.mark.parametrize(
    ("segment", "answer", "text"),
    [
        ("hi", "<think>a\nb</think>\n\nHallo", "Hallo"),
        ("hi", "  <think></think>Hallo ", "Hallo"),
        ("hi", "so it is\n</think>\nHallo", "Hallo"),
        ("the <think> tag", "das <think>-Tag", "das <think>-Tag"),
        ("a </think> b", "x </think> y", "x </think> y"),
    ],
)
def test_thinking_before_the_answer_is_cut(
    serve: Serve, connect: Connect, segment: str, answer: str, text: str
) -> None:
    assert connect(serve(lambda s, nth: completion(answer))).translate([segment], "en", "de") == [text]


def test_tokens_are_counted_by_the_server_malformed_answers_too(serve: Serve, connect: Connect) -> None:
    engine = connect(serve(lambda s, nth: upper(s, nth) if nth else completion("", usage=(7, 1))))
    engine.translate(["one", "two"], "en", "ko")
    assert engine.tokens == {"prompt": 34, "completion": 12}
    assert engine.estimated_tokens == 0


def test_tokens_are_estimated_where_the_server_does_not_count(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(lambda s, nth: completion("번역번역", usage=None))
    engine = connect(server)
    engine.translate(["one"], "en", "ko")
    system = server.bodies[0]["messages"][0]["content"]
    assert engine.tokens == {"prompt": -(-len(system + "one") // 4), "completion": 3}
    assert engine.estimated_tokens == sum(engine.tokens.values())
    assert "does not count tokens; they are estimated" in caplog.text


def test_a_budget_used_up_starts_no_request(serve: Serve, connect: Connect) -> None:
    server = serve(upper)
    engine = connect(server, concurrency=1, token_budget=40)
    with pytest.raises(EngineError, match=r"--token-budget: 45 tokens are used \(prompt 30, completion 15, 0 .* of 40"):
        engine.translate([f"s{i}" for i in range(10)], "en", "ko")
    assert len(server.bodies) == 3
    with pytest.raises(EngineError, match="Finished work is kept; to go on, raise --token-budget"):
        engine.translate(["more"], "en", "ko")
    assert len(server.bodies) == 3


def test_a_budget_used_up_by_the_last_segment_keeps_the_results(serve: Serve, connect: Connect) -> None:
    engine = connect(serve(upper), token_budget=30)
    assert engine.translate(["one", "two"], "en", "ko") == ["ONE", "TWO"]
    with pytest.raises(EngineError, match="--token-budget: 30 tokens"):
        engine.translate(["three"], "en", "ko")


def test_a_budget_is_passed_by_requests_under_way_only_and_these_count(serve: Serve, connect: Connect) -> None:
    together = threading.Barrier(4)

    def script(segment: str, nth: int) -> Reply:
        together.wait(GUARD)
        return upper(segment, nth)

    server = serve(script)
    engine = connect(server, concurrency=4, token_budget=1)
    with pytest.raises(EngineError, match="--token-budget: 60 tokens"):
        engine.translate([f"s{i}" for i in range(9)], "en", "ko")
    assert len(server.bodies) == 4


def test_a_budget_stops_further_tries_too(serve: Serve, connect: Connect) -> None:
    server = serve(lambda s, nth: completion(""))
    with pytest.raises(EngineError, match="--token-budget"):
        connect(server, retries=100, token_budget=30).translate(["one"], "en", "ko")
    assert len(server.bodies) == 2


@pytest.mark.bad_input("translate")
def test_the_key_is_sent_and_shown_nowhere(
    serve: Serve,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    caplog.set_level("DEBUG")
    replies = {
        "denied": error(401, f"wrong key {KEY}"),
        "odd": error(418, f"wrong key {KEY}"),
        "html": Reply(f"<p>{KEY}</p>"),
        "failed": Reply({"error": f"wrong key {KEY}"}),
        "refused": error(400, f"wrong key {KEY}", code="content_filter"),
    }
    server = serve(lambda s, nth: replies[s])
    engine = connect(server, retries=0)
    shown = [json.dumps(engine.describe()), repr(engine)]
    for segment in ("denied", "odd", "html"):
        with pytest.raises(EngineError) as stopped:
            engine.translate([segment], "en", "ko")
        shown += traceback.format_exception(stopped.value)
    shown += [failure_of(engine.translate([segment], "en", "ko")) for segment in ("failed", "refused")]
    engine.close()
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert "".join(shown).count("[key]") >= len(replies)
    assert KEY not in "".join([*shown, caplog.text, *capsys.readouterr()])


def test_a_server_without_keys_gets_none(serve: Serve, connect: Connect) -> None:
    server = serve(upper)
    connect(server).translate(["one"], "en", "ko")
    assert server.headers[0]["Authorization"] == "Bearer none"


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize("key", ["two words", "two\nlines", "ключ"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match="--api-key-env: the variable OPENAI_API_KEY holds") as refused:
        connect("http://127.0.0.1:1/v1")
    assert key not in str(refused.value)


@pytest.mark.bad_input("translate")
def test_user_and_password_of_the_address_are_sent_and_shown_nowhere(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server = serve(upper)
    engine = connect(server.url.replace("//", "//user:pass%40word@") + "?api-version=1")
    assert engine.translate(["one"], "en", "ko") == ["ONE"]
    assert server.headers[0]["Authorization"] == "Basic dXNlcjpwYXNzQHdvcmQ="
    assert server.paths == ["/v1/chat/completions?api-version=1"]
    assert engine.describe()["base_url"] == server.url
    assert "pass" not in caplog.text


def test_the_address_may_come_from_the_environment(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(upper)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert connect(server, base_url=None).translate(["one"], "en", "ko") == ["ONE"]
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert connect(server, base_url=None).describe()["base_url"] == "https://api.openai.com/v1"


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": None}, "--model: expected"),
        ({"base_url": "localhost:8000/v1"}, "--base-url: expected an address such as"),
        ({"base_url": "ftp://u:secret@host/v1"}, "found 'ftp://host/v1'"),
        ({"concurrency": 0}, "--concurrency: expected at least 1, found 0"),
        ({"retries": -1}, "--retries: expected at least 0, found -1"),
        ({"batch_size": 0}, "--batch-size: expected at least 1"),
        ({"max_new_tokens": 0}, "--max-new-tokens: expected at least 1"),
        ({"token_budget": 0}, "--token-budget: expected at least 1"),
        ({"timeout": 0.0}, "--timeout: expected more than 0"),
    ],
)
def test_wrong_options_are_named(connect: Connect, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        connect("http://127.0.0.1:1/v1", **options)


def test_any_language_with_a_code_will_do(connect: Connect) -> None:
    engine = connect("http://127.0.0.1:1/v1")
    engine.check("en", "yo")
    engine.check("zh-Hant", "gsw")
    with pytest.raises(ValueError, match="'xq'"):
        engine.check("en", "xq")


@pytest.mark.parametrize("reply", [NEVER, error(429, headers={"Retry-After": "100"})], ids=["answer", "next-try"])
@pytest.mark.parametrize("ending", ["", "finally: engine.close()"], ids=["left-open", "closed"])
def test_control_c_does_not_wait_for_the_server(serve: Serve, reply: Reply, ending: str) -> None:
    server = serve(lambda s, nth: reply)
    code = (
        "from axolotl_clo.translate.engines import EngineOptions, open_engine\n"
        f"engine = open_engine('openai', EngineOptions(model='m', base_url={server.url!r}, timeout=100000))\n"
        f"try: engine.translate(['a'] * 20, 'en', 'ko')\n{ending or 'finally: pass'}"
    )
    run_of_ours = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        assert server.asked.wait(GUARD)
        run_of_ours.send_signal(signal.SIGINT)
        said = run_of_ours.communicate(timeout=GUARD)[1]
    finally:
        run_of_ours.kill()
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "never retrieved" not in said
    assert "Task was destroyed" not in said


def test_an_interrupt_cancels_the_requests_of_an_engine_that_lives_on(serve: Serve, connect: Connect) -> None:
    interrupted, went_on = threading.Event(), threading.Event()

    def script(segment: str, nth: int) -> Reply:
        if segment == "a":
            os.kill(os.getpid(), signal.SIGINT)
            interrupted.wait(GUARD)
        elif segment == "b":
            went_on.set()
        return upper(segment, nth)

    engine = connect(serve(script), concurrency=1)
    with pytest.raises(KeyboardInterrupt):
        engine.translate(["a", "b"], "en", "ko")
    interrupted.set()
    assert not went_on.wait(1)
    assert engine.translate(["c"], "en", "ko") == ["C"]


def test_close_leaves_no_thread_and_cancels_what_is_under_way(serve: Serve, connect: Connect) -> None:
    server = serve(lambda s, nth: NEVER)
    before = set(threading.enumerate())
    engine = connect(server.url.replace("127.0.0.1", "localhost"), timeout=100_000.0)
    ended: list[BaseException] = []

    def call() -> None:
        try:
            engine.translate(["one"], "en", "ko")
        except BaseException as error:
            ended.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    assert server.asked.wait(GUARD)
    engine.close()
    caller.join(GUARD)
    assert len(ended) == 1
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert [name for name in left if "process_request" not in name] == []  # those are the server's


@pytest.mark.process
def test_transformers_serve(tiny_llama: Path, tmp_path: Path, connect: Connect) -> None:
    """The text of a random model is junk, so every eighth token is made to end it."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": list(range(1, 700, 8)), "pad_token_id": 1})
    )
    with transformers_serve(folder, tmp_path / "log") as url:
        engine = connect(url, model=str(folder), retries=0, max_new_tokens=32)
        segments = [f"Sentence {i}: the house is big." for i in range(8)]
        results = engine.translate(segments, "en", "de")
        assert engine.translate(segments, "en", "de") == results
        assert any(isinstance(result, str) for result in results), results
        assert engine.tokens["completion"] >= 16
        assert engine.estimated_tokens == 0
        with pytest.raises(EngineError, match="Server is pinned to"):
            connect(url, model="other").translate(["one"], "en", "de")
