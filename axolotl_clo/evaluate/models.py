"""What answers prompts: a model run here by transformers, or one behind an OpenAI-compatible server."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from axolotl_clo.evaluate.shots import END_OF_ANSWER, Turns, as_text
from axolotl_clo.translate.engines import EngineError, EngineOptions, Failure, chat

LOG = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "float16", "bfloat16")
_THINKING = "<think>"
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
    return ServerModel(options) if options.server else LocalModel(options)


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


def _reply(text: str, asked: str, cut_off: bool, opened: bool = False) -> Reply:
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
        assert options.server is not None
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
    return _reply(text, asked, cut_off)


class LocalModel:
    """A causal language model run by transformers: batched, padded on the left, longest prompts first."""

    def __init__(self, options: ModelOptions) -> None:
        self._options = options
        self._tokenizer = _load_tokenizer(options)
        self._templated = _wants_template(options, self._tokenizer)
        self._model = _load_model(options)
        self._limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self._batch = options.batch_size
        self._set_generation()
        self.about = {"chat_template": self._templated, "dtype": str(self._model.dtype).removeprefix("torch.")}

    def answers(self, prompts: Sequence[Turns]) -> Iterator[list[tuple[int, Reply]]]:
        texts = [self._render(turns) for turns in prompts]
        # A chat template writes its own special tokens; plain text gets those that the tokenizer adds.
        ids = self._tokenizer(texts, add_special_tokens=not self._templated)["input_ids"] if texts else []
        new = self._options.max_new_tokens
        fits = [i for i, tokens in enumerate(ids) if not self._limit or len(tokens) + new <= self._limit]
        if too_long := sorted(set(range(len(ids))) - set(fits)):
            yield [
                (i, Reply(problem=f"prompt and {new} new tokens are longer than the model's {self._limit} positions"))
                for i in too_long
            ]
        waiting = sorted(fits, key=lambda i: -len(ids[i]))
        while waiting:
            batch = waiting[: self._batch]
            found = self._generate([ids[i] for i in batch], seed=batch[0])
            if found is None:
                continue
            waiting = waiting[len(batch) :]
            yield [
                (i, _reply(text, prompts[i][-1]["content"], cut_off, texts[i].rstrip().endswith(_THINKING)))
                for i, (text, cut_off) in zip(batch, found, strict=True)
            ]

    def close(self) -> None:
        del self._model

    def _render(self, turns: Turns) -> str:
        if not self._templated:
            return as_text(turns)
        return str(
            self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **self._options.template_options
            )
        )

    def _set_generation(self) -> None:
        """Only what is asked for here: checkpoints bring temperatures and penalties of their own."""
        from transformers import GenerationConfig

        model = self._model.get_base_model() if self._options.adapter else self._model  # whose config an adapter uses
        given, tokenizer, options = model.generation_config, self._tokenizer, self._options
        ends = given.eos_token_id if isinstance(given.eos_token_id, list) else [given.eos_token_id]
        self._ends = sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None})
        sampling = {"do_sample": True, "temperature": options.temperature} if options.temperature else {}
        model.generation_config = GenerationConfig(
            bos_token_id=given.bos_token_id,
            eos_token_id=self._ends or None,
            pad_token_id=tokenizer.pad_token_id,
            max_new_tokens=options.max_new_tokens,
            **sampling,
        )

    def _generate(self, ids: list[list[int]], seed: int) -> list[tuple[str, bool]] | None:
        """The texts, and whether each was cut off; None where memory does not suffice and the batch was halved."""
        import torch

        width = max(map(len, ids))
        padding = [width - len(tokens) for tokens in ids]
        pad = self._tokenizer.pad_token_id
        batch = torch.tensor([[pad] * gap + tokens for gap, tokens in zip(padding, ids, strict=True)])
        mask = torch.tensor([[0] * gap + [1] * (width - gap) for gap in padding])
        stop = {} if self._templated else {"stop_strings": [END_OF_ANSWER], "tokenizer": self._tokenizer}
        torch.manual_seed(self._options.seed + seed)
        try:
            with torch.inference_mode():
                tokens = self._model.generate(
                    input_ids=batch.to(self._model.device), attention_mask=mask.to(self._model.device), **stop
                )
        except torch.cuda.OutOfMemoryError as error:
            if self._batch == 1:
                raise EngineError(f"--batch-size 1: the GPU's memory does not suffice ({error})") from None
            self._batch = max(1, min(self._batch, len(ids)) // 2)
            LOG.warning("the GPU's memory does not suffice; going on with --batch-size %d", self._batch)
            torch.cuda.empty_cache()
            return None
        found = []
        for new in tokens[:, width:]:
            text = self._tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            whole = bool(set(new.tolist()) & set(self._ends))
            if not self._templated and END_OF_ANSWER in text:
                text, whole = text.partition(END_OF_ANSWER)[0], True
            found.append((text, not whole))
        return found


def _load_tokenizer(options: ModelOptions) -> Any:
    from transformers import AutoTokenizer

    with _named("--model", options.model):
        tokenizer = AutoTokenizer.from_pretrained(
            options.model, revision=options.revision, trust_remote_code=options.trust_remote_code
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _wants_template(options: ModelOptions, tokenizer: Any) -> bool:
    if options.chat_template and not tokenizer.chat_template:
        raise ValueError(f"--chat-template: {options.model} has none; --no-chat-template asks in plain text")
    return bool(tokenizer.chat_template) if options.chat_template is None else options.chat_template


def _load_model(options: ModelOptions) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype: Any = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    if options.dtype == "auto" and device == "cpu":
        dtype = torch.float32
    with _named("--model", options.model):
        model = AutoModelForCausalLM.from_pretrained(
            options.model,
            revision=options.revision,
            dtype=dtype,
            trust_remote_code=options.trust_remote_code,
            **({"device_map": "auto"} if device == "auto" else {}),
        )
    if options.adapter:
        from peft import PeftModel

        with _named("--adapter", options.adapter):
            model = PeftModel.from_pretrained(model, options.adapter)
    if device != "auto":
        with _named("--device", device):
            model = model.to(device)
    return model.eval()


class _named:
    """Says which option an error of a library is about."""

    def __init__(self, option: str, value: str) -> None:
        self._what = f"{option} {value}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError | ValueError | RuntimeError | AssertionError | ImportError):
            said = " ".join(str(error).split())
            raise ValueError(f"{self._what}: cannot be loaded ({said[:300]})") from error


def _files(folder: str) -> str:
    """A digest of names, sizes and times of a model's files: reading the weights would take as long as loading them."""
    found = hashlib.sha256()
    for file in sorted(Path(folder).iterdir()):
        if file.suffix in _WEIGHTS:
            status = file.stat()
            found.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()[:16]
