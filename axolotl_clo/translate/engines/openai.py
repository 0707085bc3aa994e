"""Translation by a server that speaks the OpenAI chat completions protocol: vLLM, llama.cpp, Ollama, OpenAI itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from axolotl_clo.translate.engines import EngineOptions, Failure, chat
from axolotl_clo.translate.engines.completions import Completions, Question
from axolotl_clo.translate.engines.languages import english_name, normalise


class OpenAIEngine:
    """A model behind a server; each segment is one chat completion, at temperature 0 until an answer is malformed.

    Args:
        options: those of `Completions`, and `batch_size`.

    Attributes:
        tokens: used so far, as `prompt` and `completion`.
        estimated_tokens: how many of these the server did not count; they are estimated as one for 4 bytes of UTF-8.

    Raises:
        ValueError: an option is missing or wrong.
    """

    unit = "line"
    max_chars = 4000

    def __init__(self, options: EngineOptions) -> None:
        self._completions = Completions(options)
        self.batch = options.batch_size or 4 * options.concurrency
        self._options = options

    @property
    def tokens(self) -> dict[str, int]:
        return self._completions.tokens

    @property
    def estimated_tokens(self) -> int:
        return self._completions.estimated_tokens

    def describe(self) -> dict[str, Any]:
        """Model, address without user, password and query, prompt and sampling; never the key."""
        return {
            "engine": "openai",
            "model": self._options.model,
            "base_url": self._completions.url,
            "prompt": chat.PROMPT,
            "temperature": 0,
            "seed": self._options.seed,
            "max_new_tokens": self._options.max_new_tokens,
            "client": self._completions.client,
        }

    def check(self, source: str, target: str) -> None:
        """Accept any language that has a code; which of them the model knows cannot be asked.

        Raises:
            ValueError: there is no such code.
        """
        for code in (source, target):
            normalise(code)

    def translate(self, segments: Sequence[str], source: str, target: str) -> list[str | Failure]:
        """One request per segment, but for blank ones, which come back as they are.

        Raises:
            EngineError: the server cannot be reached or refuses, or the token budget is used up before all segments
                have been sent. What is under way then is waited for and counted, so that a budget is passed by at
                most `concurrency` requests.
        """
        results: list[str | Failure] = list(segments)
        asked = [i for i, segment in enumerate(segments) if segment.strip()]
        names = english_name(source), english_name(target)
        questions = [
            Question(chat.messages(segments[i], *names), partial(chat.translation, segment=segments[i])) for i in asked
        ]
        for place, result in self._completions.each(questions):
            results[asked[place]] = result
        return results

    def close(self) -> None:
        """Cancel what is under way and close all connections."""
        self._completions.close()
