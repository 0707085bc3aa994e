"""Translation models run by transformers: M2M100, NLLB, MADLAD-400 and Marian.

M2M100, NLLB and MADLAD-400 know many languages. A Marian model is made for one pair, which is checked where the
model's name tells it (`opus-mt-en-de`) and otherwise taken to be right.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from axolotl_clo.translate.engines import EngineOptions, Failure
from axolotl_clo.translate.engines.families import MARIAN, Codec, ModelSource, first_line, no_memory

LOG = logging.getLogger(__name__)

DEFAULT_MODEL = "facebook/m2m100_1.2B"
DTYPES = ("float32", "float16", "bfloat16")

# Padded source tokens of a batch. Beams multiply what a batch takes, and long batches gain nothing.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 8192


class Seq2SeqEngine:
    """What engines for encoder-decoder models share: everything but running the model."""

    name = ""
    unit: Literal["sentence", "line"] = "sentence"

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.model_source = ModelSource.find(options.model or DEFAULT_MODEL, options.model_revision)
        tokenizer = self.model_source.load_tokenizer()
        self.codec = Codec(tokenizer, self.model_source.name, options.max_new_tokens, self._positions())
        self.beam_size = self.codec.family.beam_size if options.beam_size is None else options.beam_size
        if self.beam_size < 1:
            raise ValueError(f"--beam-size: a number from 1 is accepted, got {options.beam_size}")
        # About four characters of English are one token; half of that leaves room for denser text.
        self.max_chars = 2 * self.codec.max_source_tokens
        self._fingerprint: str | None = None

    def check(self, source: str, target: str) -> None:
        """
        Raises:
            ValueError: the model does not know a language; names those it knows.
        """
        self.codec.check(source, target)
        if self.codec.family is MARIAN and self.codec.pair is None:
            LOG.warning(
                "%s does not say its languages; taking it to translate %s to %s", self.codec.model, source, target
            )

    def translate(self, segments: Sequence[str], source: str, target: str) -> list[str | Failure]:
        """One translation or failure per segment, in their order; empty segments stay as they are.

        Raises:
            ValueError: the model does not know a language.
            EngineError: not even one segment fits into memory.
        """
        translations: list[str | Failure] = list(segments)
        filled = [index for index, segment in enumerate(segments) if segment.strip()]
        encoded = self.codec.encode([segments[index] for index in filled], source, target) if filled else []
        inputs: dict[int, list[int]] = {}
        for index, ids in zip(filled, encoded, strict=True):
            if isinstance(ids, Failure):
                translations[index] = ids
            else:
                inputs[index] = ids
        outputs = self._generate(list(inputs.values()), self.codec.forced_token(target)) if inputs else []
        for index, ids in zip(inputs, outputs, strict=True):
            translations[index] = self.codec.decode(ids)
        return translations

    def describe(self) -> dict[str, Any]:
        """Model, commit or digest of its files, search options and versions."""
        import torch
        import transformers

        return {
            "engine": self.name,
            "model": self.model_source.name,
            "revision": self.fingerprint(),
            "family": self.codec.family.name,
            "beam_size": self.beam_size,
            "max_source_tokens": self.codec.max_source_tokens,
            "max_new_tokens": self.codec.max_new_tokens,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    def fingerprint(self) -> str:
        """What tells the model's weights from others."""
        if self._fingerprint is None:
            self._fingerprint = self.model_source.fingerprint()
        return self._fingerprint

    def close(self) -> None:
        """Give back what the engine holds."""

    @property
    def min_new_tokens(self) -> int:
        """Shortest translation: the language, where it comes first, and one token of text, without the end."""
        return 1 + int(self.codec.family.forces_first)

    def _positions(self) -> int | None:
        """Positions of the model, None for one without a limit."""
        from transformers import AutoConfig

        source = self.model_source
        try:
            config = AutoConfig.from_pretrained(source.name, revision=source.revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"--model: the config of {source.name} cannot be read ({error})") from error
        return getattr(config, "max_position_embeddings", None)

    def _generate(self, inputs: list[list[int]], forced: int | None) -> list[list[int]]:
        """Token ids of the best translation of each input, without the decoder's start token."""
        raise NotImplementedError


class TransformersEngine(Seq2SeqEngine):
    """Runs a model by transformers' beam search."""

    name = "transformers"

    def __init__(self, options: EngineOptions) -> None:
        """
        Raises:
            ValueError: the model cannot be found or read, or an option is wrong.
            EngineError: the model does not fit into the device's memory.
        """
        import torch

        super().__init__(options)
        self.device = torch_device(options.device)
        self.dtype = options.dtype or self._best_dtype()
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype: the transformers engine accepts {', '.join(DTYPES)}, got {self.dtype!r}")
        on_gpu = torch.device(self.device).type != "cpu"
        self.batch = options.batch_size or (64 if on_gpu else 16)
        self._batch_tokens = GPU_BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS
        self.model = load_model(self.model_source, getattr(torch, self.dtype)).eval()
        try:
            self.model.to(self.device)
        except torch.OutOfMemoryError as error:
            raise no_memory(self.device, "the model") from error
        self.model.generation_config = self._generation_config()

    def describe(self) -> dict[str, Any]:
        """As every engine for such models, with device and precision."""
        return {**super().describe(), "device": self.device, "dtype": self.dtype}

    def close(self) -> None:
        """Give the model's memory back."""
        import torch

        del self.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _best_dtype(self) -> str:
        import torch

        if not self.device.startswith("cuda"):
            return "float32"
        if self.codec.family.half_dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
            return "float32"
        return self.codec.family.half_dtype

    def _generation_config(self) -> Any:
        """The search, which leaves the model's own defaults only what its vocabulary needs."""
        from transformers import GenerationConfig

        own = self.model.generation_config
        return GenerationConfig(
            decoder_start_token_id=own.decoder_start_token_id,
            eos_token_id=self.codec.tokenizer.eos_token_id,
            pad_token_id=self.codec.tokenizer.pad_token_id,
            bad_words_ids=own.bad_words_ids,
            num_beams=self.beam_size,
            early_stopping=self.beam_size > 1,
            max_new_tokens=self.codec.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            renormalize_logits=True,
        )

    def _generate(self, inputs: list[list[int]], forced: int | None) -> list[list[int]]:
        import torch

        outputs: dict[int, list[int]] = {}
        batches = self._batches(inputs)
        while batches:
            batch = batches.pop()
            try:
                rows = self._search([inputs[index] for index in batch], forced)
            except torch.OutOfMemoryError:
                rows = None  # left behind outside, where the exception no longer holds the tensors
            if rows is None:
                torch.cuda.empty_cache()
                if len(batch) == 1:
                    raise no_memory(self.device)
                middle = len(batch) // 2
                batches += [batch[:middle], batch[middle:]]
                longest = max(len(inputs[index]) for index in batch)
                self._batch_tokens = min(self._batch_tokens, max(longest, len(batch) * longest // 2))
            else:
                outputs.update(zip(batch, rows, strict=True))
        return [outputs[index] for index in range(len(inputs))]

    def _batches(self, inputs: list[list[int]]) -> list[list[int]]:
        """Indices of the inputs in batches of like lengths, the longest last."""
        batches: list[list[int]] = []
        for index in sorted(range(len(inputs)), key=lambda index: len(inputs[index])):
            size = len(batches[-1]) + 1 if batches else 0
            if not batches or size > self.batch or size * len(inputs[index]) > self._batch_tokens:
                batches.append([])
            batches[-1].append(index)
        return batches

    def _search(self, inputs: list[list[int]], forced: int | None) -> list[list[int]]:
        import torch

        longest = max(map(len, inputs))
        pad = self.codec.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in inputs], device=self.device)
        lengths = torch.tensor([len(row) for row in inputs], device=self.device)
        mask = (torch.arange(longest, device=self.device)[None, :] < lengths[:, None]).long()
        with torch.inference_mode():
            found = self.model.generate(input_ids=ids, attention_mask=mask, forced_bos_token_id=forced)
        rows: list[list[int]] = found[:, 1:].tolist()
        return rows


def load_model(source: ModelSource, dtype: Any) -> Any:
    """A model as transformers loads it.

    Args:
        source: where it is.
        dtype: a torch dtype, or `auto` for that of the weights.

    Raises:
        ValueError: the weights are missing or of another kind of model.
    """
    from transformers import AutoModelForSeq2SeqLM

    try:
        model = AutoModelForSeq2SeqLM.from_pretrained(
            source.name, revision=source.revision, dtype=dtype, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"--model: {source.name} cannot be loaded as a translation model ({error})") from error
    untie_output(model)
    return model


def untie_output(model: Any) -> None:
    """Put right the input embeddings of a T5 model whose weights name them by the decoder alone, as MADLAD-400's do.

    transformers 5.16 ties the encoder's embeddings to the output projection there, though the weights hold it apart,
    and the model then writes nonsense. Where a version loads them right nothing is changed.
    """
    if model.config.model_type != "t5":
        return
    own = model.decoder.embed_tokens
    if model.shared.weight is model.lm_head.weight and model.shared.weight is not own.weight:
        model.set_input_embeddings(own)


def torch_device(device: str | None) -> str:
    """The device asked for, or the best there is.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {device!r} cannot be used ({first_line(error)})") from error
    return device
