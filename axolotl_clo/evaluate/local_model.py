"""A causal language model run in this process by transformers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from axolotl_clo.evaluate.continuations import continuations
from axolotl_clo.evaluate.models import ModelOptions, Reply, reply_of
from axolotl_clo.evaluate.shots import END_OF_ANSWER, Turns, as_text
from axolotl_clo.translate.engines import EngineError

LOG = logging.getLogger(__name__)

_THINKING = "<think>"


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
                (i, reply_of(text, prompts[i][-1]["content"], cut_off, texts[i].rstrip().endswith(_THINKING)))
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

        stop = {} if self._templated else {"stop_strings": [END_OF_ANSWER], "tokenizer": self._tokenizer}
        torch.manual_seed(self._options.seed + seed)
        try:
            with torch.inference_mode():
                tokens = continuations(self._model, ids, self._tokenizer.pad_token_id, **stop)
        except torch.cuda.OutOfMemoryError as error:
            if self._batch == 1:
                raise EngineError(f"--batch-size 1: the GPU's memory does not suffice ({error})") from None
            self._batch = max(1, min(self._batch, len(ids)) // 2)
            LOG.warning("the GPU's memory does not suffice; going on with --batch-size %d", self._batch)
            torch.cuda.empty_cache()
            return None
        found = []
        for new in tokens:
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
