"""Translation engines: what turns a batch of segments into another language.

An engine is anything with the methods of `Engine`. Those that come with the package stand in `ENGINES`; a third party's
is found by the entry-point group `axolotl_clo.engines`, whose entries are called with `EngineOptions`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol, runtime_checkable

ENTRY_POINTS = "axolotl_clo.engines"

ENGINES = {
    "transformers": "axolotl_clo.translate.engines.seq2seq:TransformersEngine",
    "ctranslate2": "axolotl_clo.translate.engines.ct2:CTranslate2Engine",
    "openai": "axolotl_clo.translate.engines.openai:OpenAIEngine",
    "command": "axolotl_clo.translate.engines.command:CommandEngine",
}


class EngineError(RuntimeError):
    """The engine cannot go on at all; the message says what to do."""


@dataclass(frozen=True)
class Failure:
    """Why one segment could not be translated, while others can."""

    reason: str


@dataclass(frozen=True)
class EngineOptions:
    """What a user may say about an engine; an engine ignores what does not concern it.

    Attributes:
        model: name or folder of the model; None takes the engine's default.
        model_revision: revision of the model on the hub.
        device: `cpu`, `cuda`, `cuda:1`, or None for what is there.
        batch_size: segments per batch; None takes the engine's default.
        beam_size: beams of the search; None takes the model family's default.
        max_new_tokens: longest translation of a segment in tokens; None takes the family's default.
        dtype: `float32`, `float16`, `bfloat16`, or a CTranslate2 type such as `int8`; None for the device's best.
        command: the line-in line-out command.
        back_command: the command from the target into the source language, for round trips.
        base_url: address of an OpenAI-compatible server.
        api_key_env: name of the environment variable that holds its key.
        concurrency: requests under way at a time.
        token_budget: tokens (prompt and completion) after which to stop; None is no limit.
        timeout: seconds to wait for an answer of a server, or for a batch of a command.
        retries: how often a request is tried again.
        seed: for engines that sample.
    """

    model: str | None = None
    model_revision: str | None = None
    device: str | None = None
    batch_size: int | None = None
    beam_size: int | None = None
    max_new_tokens: int | None = None
    dtype: str | None = None
    command: str | None = None
    back_command: str | None = None
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    token_budget: int | None = None
    timeout: float = 600.0
    retries: int = 5
    seed: int = 0
    extra: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class Engine(Protocol):
    """Translates segments: single lines of text without a newline.

    Attributes:
        batch: segments a call should get at best; calls get them sorted by length.
        max_chars: longest segment in characters; longer sentences are cut before they come here.
        unit: what one segment is, `sentence` or `line`.
    """

    batch: int
    max_chars: int
    unit: Literal["sentence", "line"]

    def describe(self) -> dict[str, Any]:
        """Name, model, versions and options, as JSON types and without secrets, for the manifest."""

    def check(self, source: str, target: str) -> None:
        """Stop where a language is not the model's.

        Raises:
            ValueError: names the language and those that are known.
        """

    def translate(self, segments: Sequence[str], source: str, target: str) -> list[str | Failure]:
        """One translation or failure per segment, in their order.

        Raises:
            EngineError: the engine cannot go on.
        """

    def close(self) -> None:
        """Give back what the engine holds."""


def open_engine(name: str, options: EngineOptions) -> Engine:
    """The engine of that name, made ready.

    Raises:
        ValueError: there is no such engine, or its options are wrong; names the option and what is accepted.
        EngineError: it cannot start.
    """
    return _factory(name)(options)


def known_engines() -> list[str]:
    """Names of the package's engines and of those that others registered."""
    return sorted({*ENGINES, *(entry.name for entry in entry_points(group=ENTRY_POINTS))})


def _factory(name: str) -> Callable[[EngineOptions], Engine]:
    if name in ENGINES:
        module, _, attribute = ENGINES[name].partition(":")
        return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            return entry.load()  # type: ignore[no-any-return]
    raise ValueError(f"--engine: no engine {name!r}; known are {', '.join(known_engines())}")
