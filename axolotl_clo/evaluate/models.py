"""What answers prompts: a model run here by transformers, or one behind an OpenAI-compatible server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from axolotl_clo.evaluate.shots import Turns
from axolotl_clo.translate.engines import EngineOptions, Failure, chat

DTYPES = ("auto", "float32", "float16", "bfloat16")
_WEIGHTS = (".safetensors", ".bin", ".json", ".jinja")


@dataclass(frozen=True)
class Reply:
    """What a model said to a prompt.

    Attributes:
        answer: its final answer, without what it thought before.
        text: all of it.
        cut_off: whether it reached the longest answer.
        problem: why there is no answer, None where there is one.
    """

    answer: str = ""
    text: str = ""
    cut_off: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class ModelOptions:
    """Which model answers, and how.

    Attributes:
        model: name or folder of the model; behind a server, its name there.
        revision: of the model on the hub.
        adapter: name or folder of a PEFT adapter.
        dtype: one of `DTYPES`; `auto` is that of the checkpoint on a GPU and float32 on a CPU.
        device: `cpu`, `cuda`, `cuda:1`, or `auto`, which spreads a large model over all GPUs; None for what is there.
        batch_size: prompts in a batch; halved for as long as memory does not suffice.
        max_new_tokens: longest answer in tokens, thinking included.
        temperature: of sampling; 0 is greedy.
        seed: of sampling, and of the draw of shots.
        chat_template: whether prompts go through the tokenizer's chat template; None does so where there is one.
        template_options: further variables of the chat template, such as `enable_thinking`.
        trust_remote_code: whether code that comes with the model may run.
        server: address of an OpenAI-compatible server and how to talk to it; None runs the model here.
    """

    model: str
    revision: str | None = None
    adapter: str | None = None
    dtype: str = "auto"
    device: str | None = None
    batch_size: int = 8
    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    chat_template: bool | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    server: EngineOptions | None = None


class Model(Protocol):
    """Answers prompts.

    Attributes:
        about: name, versions and whatever else shapes the answers, as JSON types and without secrets.
    """

    about: dict[str, Any]

    def answers(self, prompts: Sequence[Turns]) -> Iterator[list[tuple[int, Reply]]]:
        """The place of each prompt and the reply to it, in batches and any order.

        Raises:
            EngineError: the model cannot go on.
        """

    def close(self) -> None:
        """Give back what the model holds."""


def describe(options: ModelOptions) -> dict[str, Any]:
    """What shapes the answers, known before the model is loaded; a model in a folder by its files' sizes and times."""
    shaping = {
        "model": options.model,
        "revision": options.revision,
        "adapter": options.adapter,
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "seed": options.seed,
        "chat_template": options.chat_template,
        "template_options": dict(options.template_options),
    }
    if options.server:
        return {**shaping, "backend": "openai"}
    files = {name: _files(name) for name in (options.model, options.adapter) if name and Path(name).is_dir()}
    return {**shaping, "backend": "transformers", "dtype": options.dtype, "files": files}


def open_model(options: ModelOptions) -> Model:
    """The model, made ready.

    Raises:
        ValueError: an option is wrong, or the model cannot be loaded; names the option.
        EngineError: a package is missing.
    """
    if options.dtype not in DTYPES:
        raise ValueError(f"--dtype: {options.dtype!r} is none of {', '.join(DTYPES)}")
    if options.server:
        return ServerModel(options)
    from axolotl_clo.evaluate.local_model import LocalModel

    return LocalModel(options)


def final_answer(text: str, asked: str, opened: bool = False) -> str:
    """What stands after a model's thinking.

    Args:
        text: all that the model said.
        asked: the prompt; where `<think>` tags stand in it, those of the answer are taken for its own.
        opened: whether the chat template itself opens the thinking.

    Raises:
        chat.Malformed: it never stopped thinking.
    """
    if opened and "</think>" not in text:
        raise chat.Malformed("stops while still thinking")
    return chat.without_thinking(text, asked).strip()


def reply_of(text: str, asked: str, cut_off: bool, opened: bool = False) -> Reply:
    """The reply whose whole text is `text`; other arguments as those of `final_answer`."""
    text = text.encode(errors="replace").decode()  # JSON may hold half of a surrogate pair
    if cut_off:
        text = text.rstrip("\ufffd")  # a character whose last bytes were to come
    try:
        return Reply(final_answer(text, asked, opened), text, cut_off)
    except chat.Malformed as error:
        return Reply("", text, cut_off, str(error))


class ServerModel:
    """A model behind a server; see `Completions`."""

    def __init__(self, options: ModelOptions) -> None:
        from axolotl_clo.translate.engines.completions import Completions

        if options.chat_template is False:
            raise ValueError(
                "--no-chat-template: a server applies its own template; run the model here, without --base-url"
            )
        if options.adapter:
            raise ValueError("--adapter: load it in the server, and give its name there as --model")
        extra = {"chat_template_kwargs": dict(options.template_options)} if options.template_options else None
        assert options.server is not None  # nosec B101 # tells the type checker
        server = replace(options.server, model=options.model, max_new_tokens=options.max_new_tokens, seed=options.seed)
        self._completions = Completions(server, options.temperature, extra)
        self.about = {"base_url": self._completions.url, "client": self._completions.client}

    def answers(self, prompts: Sequence[Turns]) -> Iterator[list[tuple[int, Reply]]]:
        from axolotl_clo.translate.engines.completions import Question

        questions = [Question(turns, partial(_read, turns[-1]["content"])) for turns in prompts]
        for place, found in self._completions.each(questions):
            yield [(place, Reply(problem=found.reason) if isinstance(found, Failure) else found)]

    def close(self) -> None:
        self._completions.close()


def _read(asked: str, body: Any) -> Reply:
    text, cut_off = chat.text_of(body)
    return reply_of(text, asked, cut_off)


def _files(folder: str) -> str:
    """A digest of names, sizes and times of a model's files: reading the weights would take as long as loading them."""
    found = hashlib.sha256()
    for file in sorted(Path(folder).iterdir()):
        if file.suffix in _WEIGHTS:
            status = file.stat()
            found.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()[:16]
