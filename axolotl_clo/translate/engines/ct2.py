"""Translation models run by CTranslate2: the same models and search as the transformers engine, several times as fast.

A model is converted once, into `$XDG_CACHE_HOME/axolotl_clo/ctranslate2` (`~/.cache` where it is not set). A folder
that holds an already converted model is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from axolotl_clo.translate.engines import EngineError, EngineOptions
from axolotl_clo.translate.engines.families import ModelSource, no_memory
from axolotl_clo.translate.engines.seq2seq import (
    CPU_BATCH_TOKENS,
    GPU_BATCH_TOKENS,
    Seq2SeqEngine,
    load_model,
    torch_device,
)

LOG = logging.getLogger(__name__)

WEIGHTS = "model.bin"
DTYPES = ("int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32")
# Raised when the same weights would be converted otherwise than before.
CONVERSION = 1
# Beyond this many threads a batch gains little; the rest translates other batches.
THREADS_PER_BATCH = 4


class CTranslate2Engine(Seq2SeqEngine):
    """Runs a model by CTranslate2's beam search."""

    name = "ctranslate2"

    def __init__(self, options: EngineOptions) -> None:
        """
        Raises:
            ValueError: CTranslate2 is not installed, the model cannot be found or read, or an option is wrong.
            EngineError: the model cannot be converted or opened.
        """
        try:
            import ctranslate2  # type: ignore[import-untyped, unused-ignore]
        except ImportError as error:
            raise ValueError(
                "--engine: ctranslate2 is not installed; install axolotl-clo[translate], or take --engine transformers"
            ) from error
        super().__init__(options)
        self.device = torch_device(options.device)
        kind, _, number = self.device.partition(":")
        self.dtype = _dtype(options.dtype, kind, self.codec.family.half_dtype)
        self._batch_tokens = CPU_BATCH_TOKENS if kind == "cpu" else GPU_BATCH_TOKENS
        self.batch = options.batch_size or 256
        batches, threads = _threads()
        folder = self._converted()
        try:
            self.model = ctranslate2.Translator(
                str(folder),
                device=kind,
                device_index=int(number or 0),
                compute_type=self.dtype,
                inter_threads=batches if kind == "cpu" else 1,
                intra_threads=threads,
            )
        except RuntimeError as error:
            if "out of memory" in str(error):
                raise no_memory(self.device, "the model") from error
            raise EngineError(f"CTranslate2 cannot open the model in {folder} ({error}); convert it again") from error

    def describe(self) -> dict[str, Any]:
        """As every engine for such models, with device and precision."""
        import ctranslate2  # type: ignore[import-untyped, unused-ignore]

        described = super().describe()
        described["versions"]["ctranslate2"] = ctranslate2.__version__
        return {**described, "device": self.device, "dtype": self.dtype}

    def close(self) -> None:
        """Give the model's memory back."""
        self.model.unload_model()

    def _positions(self) -> int | None:
        if not self._is_converted:
            return super()._positions()
        return None  # CTranslate2's own config does not tell them

    @property
    def _is_converted(self) -> bool:
        return (self.model_source.folder / WEIGHTS).is_file()

    def _converted(self) -> Path:
        if self._is_converted:
            folder = self.model_source.folder
        else:
            folder = convert(self.model_source, self.fingerprint(), self.codec.tokenizer, self.dtype)
        _check_vocabulary(folder, self.codec.tokenizer)
        return folder

    def _generate(self, inputs: list[list[int]], forced: int | None) -> list[list[int]]:
        tokens = self.codec.tokenizer.convert_ids_to_tokens
        prefix = None if forced is None else [tokens([forced])] * len(inputs)
        sources = [tokens(row) for row in inputs]
        found = None
        while found is None:
            try:
                found = self._search(sources, prefix)
            except RuntimeError as error:
                if "out of memory" not in str(error):
                    raise EngineError(f"CTranslate2 failed: {error}") from error
                if self._batch_tokens <= max(map(len, inputs)):
                    raise no_memory(self.device) from error
                self._batch_tokens //= 2
        return [self.codec.tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in found]

    def _search(self, sources: list[list[str]], prefix: list[list[str]] | None) -> Any:
        return self.model.translate_batch(
            sources,
            prefix,
            max_batch_size=self._batch_tokens,
            batch_type="tokens",
            beam_size=self.beam_size,
            max_input_length=0,  # a longer input would be cut
            max_decoding_length=self.codec.max_new_tokens,
            min_decoding_length=self.min_new_tokens,
            return_end_token=True,  # counts in the length by which scores are divided, as it does in transformers
        )


def cache_folder() -> Path:
    """Where converted models are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "axolotl_clo" / "ctranslate2"


def convert(source: ModelSource, fingerprint: str, tokenizer: Any, dtype: str) -> Path:
    """The folder of a converted model, converting it where that has not been done.

    The folder appears only once it is complete, and one process at a time converts a model.

    Args:
        source: where the model is.
        fingerprint: what tells its weights from others.
        tokenizer: its tokenizer.
        dtype: precision of the converted weights.

    Raises:
        ValueError: the weights are missing or of another kind of model.
        EngineError: CTranslate2 cannot convert the model, or the cache cannot be written.
    """
    import ctranslate2  # type: ignore[import-untyped, unused-ignore]
    from filelock import FileLock

    parts = (fingerprint, dtype, ctranslate2.__version__, str(CONVERSION))
    folder = cache_folder() / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                LOG.info("converting %s to CTranslate2 (%s) in %s", source.name, dtype, folder)
                for abandoned in folder.parent.glob(f"{folder.name}.*.partial"):
                    shutil.rmtree(abandoned)
                partial = Path(tempfile.mkdtemp(".partial", f"{folder.name}.", folder.parent))
                try:
                    _convert_into(partial, source, tokenizer, dtype)
                    partial.replace(folder)
                except BaseException:
                    shutil.rmtree(partial, ignore_errors=True)
                    raise
    except OSError as error:
        raise EngineError(
            f"the converted model cannot be written to {folder.parent} ({error}); set XDG_CACHE_HOME to a folder with "
            "room for it"
        ) from error
    return folder


def _convert_into(folder: Path, source: ModelSource, tokenizer: Any, dtype: str) -> None:
    from ctranslate2.converters import TransformersConverter  # type: ignore[import-untyped, unused-ignore]

    model = load_model(source, "auto")
    # The converter takes T5's scale of the output from `tie_word_embeddings`; transformers 5 keeps it apart from that.
    if hasattr(model.config, "scale_decoder_outputs"):
        model.config.tie_word_embeddings = model.config.scale_decoder_outputs

    class Converter(TransformersConverter):  # type: ignore[misc, unused-ignore]
        """Converts what is loaded already; by itself the library asks for the revision of the weights alone."""

        def load_model(self, model_class: Any, model_name_or_path: str, **kwargs: Any) -> Any:
            return model

        def load_tokenizer(self, tokenizer_class: Any, model_name_or_path: str, **kwargs: Any) -> Any:
            return tokenizer

    try:
        Converter(str(source.folder)).convert(str(folder), quantization=dtype, force=True)
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, ValueError) as error:
        raise EngineError(f"CTranslate2 cannot convert {source.name} ({error}); take --engine transformers") from error


def _check_vocabulary(folder: Path, tokenizer: Any) -> None:
    """Stop where the model's tokens have other ids than the tokenizer's: its translations would be nonsense."""
    file = folder / "shared_vocabulary.json"
    if not file.is_file():
        return
    tokens = json.loads(file.read_text(encoding="utf-8"))
    for token, index in tokenizer.get_vocab().items():
        if index < len(tokens) and tokens[index] != token:
            raise EngineError(
                f"{folder}: token {index} is {tokens[index]!r} in the converted model and {token!r} in the tokenizer; "
                "convert the model again from the folder that this tokenizer is from"
            )


def _dtype(wanted: str | None, device: str, half: str) -> str:
    """The compute type: what is asked for, or int8 on a CPU and half precision on a GPU.

    Raises:
        ValueError: the device does not compute in it.
    """
    import ctranslate2  # type: ignore[import-untyped, unused-ignore]

    able = ctranslate2.get_supported_compute_types(device)
    if wanted is None:
        wanted = "int8" if device == "cpu" else half if half in able else "float32"
    if wanted not in DTYPES or wanted not in able:
        accepted = ", ".join(dtype for dtype in DTYPES if dtype in able)
        raise ValueError(f"--dtype: CTranslate2 accepts {accepted} on this {device}, got {wanted!r}")
    return wanted


def _threads() -> tuple[int, int]:
    """Batches translated at a time on a CPU, and threads for each."""
    import torch

    threads = torch.get_num_threads()
    batches = max(1, threads // THREADS_PER_BATCH)
    return batches, threads // batches
