"""Log-probabilities of the model before training: computed once, cached, never from trained weights.

The cache is one safetensors file per model (its weights, dtype and quantisation) beside the prepared dataset. In
it each row is found by a digest of its own token sequences, so that the order of rows, a validation split or a
second dataset do not matter.

A trained model carries `clo_reference.json`, which names the weights it started from, so that `axolotl evaluate`
on it compares with those and not with itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from axolotl_clo.collator import SEQUENCES
from axolotl_clo.precision import as_read

RECORD_FILE = "clo_reference.json"


@dataclass(frozen=True)
class ReferenceRecord:
    """Which weights a model's training compared with.

    key: of the cache file (see `model_key`).
    base_model: name or path, as the config had it.
    lora_model_dir: adapter the run started from, or None.
    """

    key: str
    base_model: str
    lora_model_dir: str | None = None

    def write(self, folder: str | Path) -> None:
        """Write the record into a model's folder."""
        _replace(Path(folder) / RECORD_FILE, lambda p: p.write_text(json.dumps(asdict(self), indent=2) + "\n"))

    @classmethod
    def read(cls, folder: str | Path | None) -> ReferenceRecord | None:
        """The record in a model's folder, or None where there is none.

        Raises:
            ValueError: the file is there but cannot be read as a record, or its key is none, such as a path.
        """
        file = Path(folder) / RECORD_FILE if folder else None
        if file is None or not file.is_file():
            return None
        try:
            record = cls(**json.loads(file.read_text()))
            if not re.fullmatch(r"[0-9a-f]{32}", record.key):  # it becomes the name of a file
                raise TypeError(f"its key is {record.key[:80]!r}, not 32 hexadecimal digits")
            return record
        except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{file} is not readable ({error}); it says which weights this model was trained from. Restore it from "
                "a checkpoint folder, or delete it to compare the model with itself"
            ) from error


class ReferenceCache:
    """Reference log-probabilities of rows under one model, in memory and on disk."""

    def __init__(self, folder: str | Path, key: str) -> None:
        """
        Args:
            folder: where cache files lie; made when first written.
            key: see `model_key`.
        """
        self.file = Path(folder) / f"{key}.safetensors"
        self.rows: dict[str, torch.Tensor] = {}

    def load(self) -> str | None:
        """Read the file if it is there.

        Returns:
            What was wrong with a file that was there but unreadable (its rows are then computed again), or None.

        Raises:
            ValueError: the file may not be read; the message names it.
        """
        if not self.file.exists():
            return None
        try:
            content = load_file(self.file)
            digests, log_probs = content["digests"], content["log_probs"]
            if log_probs.shape != (len(digests), 2, 2):
                return f"log_probs has shape {tuple(log_probs.shape)}"
        except (SafetensorError, KeyError) as error:
            return str(error)
        except OSError as error:
            raise ValueError(
                f"the reference cache {self.file} cannot be read ({error}); make it readable or delete it, and it "
                "is computed again"
            ) from error
        names = (bytes(digest).hex() for digest in digests.numpy())
        self.rows = dict(zip(names, log_probs, strict=True))
        return None

    def save(self) -> None:
        """Write all rows, atomically."""
        content = {
            "digests": torch.tensor([list(bytes.fromhex(name)) for name in self.rows], dtype=torch.uint8),
            "log_probs": torch.stack([v.to(torch.float32) for v in self.rows.values()]),
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        _replace(self.file, lambda p: save_file(content, p))


def _replace(file: Path, write: Any) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # a link of that name would be followed
    try:
        write(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def row_digests(rows: Iterable[dict[str, Any]]) -> list[str]:
    """For each tokenized row a digest of its four sequences."""
    if hasattr(rows, "select_columns"):  # a dataset, whose other columns are long too
        rows = rows.select_columns(["prompt_lengths", *SEQUENCES])
    return [
        hashlib.blake2b(
            json.dumps([row["prompt_lengths"], *(row[name] for name in SEQUENCES)]).encode(), digest_size=16
        ).hexdigest()
        for row in rows
    ]


def model_key(model: nn.Module, *, without_adapter: bool, compute_dtype: str) -> str:
    """A digest of everything about a model that its log-probabilities depend on.

    Args:
        model: its weights count, element by element, and their dtype, so that a checkpoint and its base differ.
        without_adapter: leave adapter weights out, because the reference is taken with the adapter off.
        compute_dtype: dtype of the forward pass (autocast).

    Where ranks share the weights, each tensor is gathered in turn, so all must call this; the digest is that of the
    whole model, whatever shares it.
    """
    digest = hashlib.blake2b(digest_size=16)
    quantization: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    quantization = quantization.to_dict() if hasattr(quantization, "to_dict") else quantization
    digest.update(json.dumps([compute_dtype, quantization], sort_keys=True, default=str).encode())
    for name, tensor in _weights(model, without_adapter):
        with _gathered(as_read(tensor)) as whole:
            digest.update(f"{name} {whole.dtype} {tuple(whole.shape)} {_checksum(whole)}\n".encode())
    return digest.hexdigest()


def _weights(model: nn.Module, without_adapter: bool) -> Iterator[tuple[str, torch.Tensor]]:
    adapters = set(getattr(model, "peft_config", {})) if without_adapter else set()
    # As parameters, which know how to gather themselves.
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if isinstance(tensor, torch.Tensor) and not adapters & set(name.split(".")):
            yield name, tensor


@contextmanager
def _gathered(tensor: Any) -> Iterator[torch.Tensor]:
    """A tensor of which ranks may hold a part each."""
    if hasattr(tensor, "ds_id"):  # ZeRO-3
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            yield tensor
    else:
        yield tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # FSDP2's DTensor


def _checksum(tensor: torch.Tensor) -> tuple[int, int]:
    """Sum and position-weighted sum of the tensor's bits, on its own device, modulo 2⁶⁴."""
    flat = tensor.detach().contiguous().view(-1)
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = flat.view(widths[flat.element_size()])
    plain = weighted = 0
    for start in range(0, bits.numel(), 1 << 24):  # bounds the int64 copy at 128 MiB
        chunk = bits[start : start + (1 << 24)].to(torch.int64)
        position = torch.arange(start + 1, start + 1 + chunk.numel(), device=chunk.device)
        plain += int(chunk.sum())
        weighted += int((chunk * position).sum())
    return plain & (2**64 - 1), weighted & (2**64 - 1)
