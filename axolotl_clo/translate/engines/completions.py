"""Chat completions of a server that speaks the OpenAI protocol: many side by side, with retries and a token budget.

Requests run on an event loop in a thread of its own, so that an interrupt, or the first error that concerns the whole
run, cancels the others at once, wherever they wait: for an answer, or for their next try.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

from axolotl_clo.translate.engines import EngineError, EngineOptions, Failure, chat
from axolotl_clo.translate.engines.server import Server, about_the_text, openai, said

LOG = logging.getLogger(__name__)

_OTHER_TEMPERATURE = 0.5  # after a malformed answer: at 0, the same would come again
_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds before the next try after a body that is not JSON; doubles each time

T = TypeVar("T")


@dataclass(frozen=True)
class Question(Generic[T]):
    """One completion to ask for.

    Attributes:
        messages: role and content of each turn.
        read: takes the JSON body of an answer and gives what is wanted of it, or raises `chat.Malformed`.
        again: the messages after a malformed answer; None asks with the same ones.
    """

    messages: list[dict[str, str]]
    read: Callable[[Any], T]
    again: list[dict[str, str]] | None = None


class Completions:
    """A model behind a server.

    Args:
        options: of which `model` (as the server names it), `base_url` (else the variable OPENAI_BASE_URL, else
            OpenAI's own), `api_key_env` (the variable may be unset), `concurrency`, `retries` (further tries of a
            question, for whatever reason), `timeout` (seconds without a byte of an answer), `token_budget`,
            `max_new_tokens` and `seed` count. A user and password in `base_url` go in place of the key.
        temperature: of sampling; 0 is greedy, until an answer is malformed.
        extra: further fields of each request's body, which a server may know.

    Attributes:
        tokens: used so far, as `prompt` and `completion`.
        estimated_tokens: how many of these the server did not count; they are estimated as one for 4 bytes of UTF-8.

    Raises:
        ValueError: an option is missing or wrong.
    """

    def __init__(self, options: EngineOptions, temperature: float = 0, extra: dict[str, Any] | None = None) -> None:
        _check_options(options)
        self.tokens = {"prompt": 0, "completion": 0}
        self.estimated_tokens = 0
        self._options = options
        self._server = Server(options)
        self._parameters: dict[str, Any] = {"temperature": temperature, "seed": options.seed}
        self._extra = extra or None
        if options.max_new_tokens is not None:
            self._parameters["max_tokens"] = options.max_new_tokens
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="completions", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The server's address without user, password and query."""
        return self._server.url

    @property
    def client(self) -> str:
        """The client library and its version."""
        return f"openai {openai.__version__}"

    def each(self, questions: Iterable[Question[T]]) -> Iterator[tuple[int, T | Failure]]:
        """The place and the answer, or failure, of each question, as they come in.

        Raises:
            EngineError: the server cannot be reached or refuses, or the token budget is used up before all questions
                have been sent. What is under way then is waited for, given out and counted, so that a budget is passed
                by at most `concurrency` requests.
        """
        found: SimpleQueue[tuple[int, T | Failure] | None] = SimpleQueue()
        future = asyncio.run_coroutine_threadsafe(self._every(questions, found), self._loop)
        future.add_done_callback(lambda _: found.put(None))
        try:
            while (one := found.get()) is not None:
                yield one
            future.result()
        finally:
            future.cancel()

    def close(self) -> None:
        """Cancel what is under way and close all connections."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.client.close()
        await self._loop.shutdown_default_executor()  # threads that looked up host names

    async def _every(
        self, questions: Iterable[Question[T]], found: SimpleQueue[tuple[int, T | Failure] | None]
    ) -> None:
        waiting = iter(enumerate(questions))
        unsent = 0

        async def work() -> None:
            nonlocal unsent
            for i, question in waiting:
                answer = await self._one(question)
                if answer is None:
                    unsent += 1
                else:
                    found.put((i, answer))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._options.concurrency):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if unsent:
            raise EngineError(
                f"--token-budget: {self._used()} tokens are used (prompt {self.tokens['prompt']}, completion "
                f"{self.tokens['completion']}, {self.estimated_tokens} of them estimated) of "
                f"{self._options.token_budget}. Finished work is kept; to go on, raise --token-budget"
            )

    async def _one(self, question: Question[T]) -> T | Failure | None:
        """What a question gave; None where the budget is used up."""
        try:
            "".join(message["content"] for message in question.messages).encode()
        except UnicodeEncodeError:
            return Failure("holds half of a surrogate pair, which UTF-8 cannot write")
        tried = malformed = 0
        wrong = ""
        while tried <= self._options.retries:
            if self._options.token_budget is not None and self._used() >= self._options.token_budget:
                return None
            messages = (question.again if malformed else None) or question.messages
            try:
                body, tries = await self._ask(messages, malformed, self._options.retries - tried)
            except _Refused as error:
                return Failure(str(error))
            self._count(*chat.tokens(body, messages))
            try:
                return question.read(body)
            except chat.Malformed as error:
                tried, malformed, wrong = tried + tries, malformed + 1, self._server.quote(error)
        return Failure(f"no usable answer in {tried} tries; the last {wrong}")

    async def _ask(self, messages: list[dict[str, str]], malformed: int, retries: int) -> tuple[Any, int]:
        """The JSON body of an answer and the requests it took, at most `retries` + 1."""
        tries = 0
        while True:
            other = {"temperature": _OTHER_TEMPERATURE, "seed": self._options.seed + malformed} if malformed else {}
            parameters = {name: other.get(name, value) for name, value in self._parameters.items()}
            completions = self._server.client.with_options(max_retries=retries - tries).chat.completions
            try:
                answer = await completions.with_raw_response.create(
                    model=str(self._options.model), messages=cast(Any, messages), extra_body=self._extra, **parameters
                )
            except openai.APIError as error:
                if isinstance(error, openai.BadRequestError) and self._do_without(error.param, parameters):
                    continue
                if about_the_text(error):
                    raise _Refused(f"the server refuses it: {self._server.quote(said(error))}") from None
                raise EngineError(self._server.explain(error)) from None
            tries += 1 + answer.retries_taken
            try:
                return json.loads(answer.http_response.content), tries
            except ValueError:
                if tries > retries:
                    found = self._server.quote(answer.http_response.text)
                    raise EngineError(f"--base-url: {self._server.url} answers, but not in JSON: {found}") from None
            await asyncio.sleep(min(_PAUSE * 2 ** (tries - 1), _LONGEST_PAUSE))

    def _do_without(self, parameter: str | None, sent: dict[str, Any]) -> bool:
        """Leave out from now on what the model does not take, as OpenAI's reasoning models do not `temperature`."""
        if parameter not in ("temperature", "seed", "max_tokens") or parameter not in sent:
            return False
        value = self._parameters.pop(parameter, None)
        if value is not None:  # else a request beside this one has done it
            LOG.warning("%s does not take %s=%s, which is left out from now on", self._options.model, parameter, value)
            if parameter == "max_tokens":
                self._parameters["max_completion_tokens"] = value
        return True

    def _used(self) -> int:
        return self.tokens["prompt"] + self.tokens["completion"]

    def _count(self, prompt: int, completion: int, estimated: bool) -> None:
        self.tokens["prompt"] += prompt
        self.tokens["completion"] += completion
        if estimated:
            if not self.estimated_tokens:
                LOG.warning("%s does not count tokens; they are estimated", self._server.url)
            self.estimated_tokens += prompt + completion


class _Refused(Exception):
    """Why the server does not answer a question."""


def _check_options(options: EngineOptions) -> None:
    if not options.model:
        raise ValueError("--model: expected the model's name as the server knows it, found none")
    for name, value, least in (
        ("--batch-size", options.batch_size, 1),
        ("--concurrency", options.concurrency, 1),
        ("--retries", options.retries, 0),
        ("--max-new-tokens", options.max_new_tokens, 1),
        ("--token-budget", options.token_budget, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name}: expected at least {least}, found {value}")
    if not options.timeout > 0:
        raise ValueError(f"--timeout: expected more than 0 seconds, found {options.timeout}")
