"""A run's config, validated as `axolotl train` does, without writing where the run will."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import yaml

SUFFIXES = (".yml", ".yaml")
# What a validated config of a machine without a GPU is checked against when the run is planned for GPUs.
PLANNED_GPU = {"bf16": True, "fp8": True, "tf32": True, "n_gpu": 1, "compute_capability": "sm_90"}


class Engine(NamedTuple):
    """What the run is spread over.

    gpus: processes, each with a device.
    zero: DeepSpeed's ZeRO stage, `fsdp`, or None where neither is there.
    offload_optimizer, offload_weights: kept in the memory of the host.
    """

    gpus: int = 1
    zero: str | None = None
    offload_optimizer: bool = False
    offload_weights: bool = False

    @property
    def name(self) -> str:
        """As a reader calls it."""
        if self.zero is None:
            return "one process" if self.gpus == 1 else "DDP"
        return "FSDP" if self.zero == "fsdp" else f"DeepSpeed ZeRO-{self.zero}"


def is_config(path: Path) -> bool:
    """Whether a path names a run's config, not a dataset."""
    return path.suffix.lower() in SUFFIXES


def read_config(file: Path) -> dict[str, Any]:
    """The YAML of a CLO run.

    Raises:
        ValueError: no such file, not YAML, or not a run with `rl: clo`.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid YAML ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: accepted is a config with options such as base_model, got {type(found).__name__}")
    if found.get("rl") != "clo":
        has = f"rl: {found['rl']}" if found.get("rl") else "no `rl:`"
        raise ValueError(f"{file}: accepted are configs with `rl: clo`, got {has}")
    return found


@contextmanager
def loaded(file: Path, gpus: int | None) -> Iterator[tuple[Any, list[str]]]:
    """The config as `axolotl train` validates it, and notes on what differs.

    It is there as long as a folder that takes the place of `output_dir` and `dataset_prepared_path`.

    Args:
        file: the YAML.
        gpus: how many the run is planned for, where that is said.

    Raises:
        ValueError: the errors of `axolotl train`.
    """
    raw = read_config(file)
    with _as_before(), tempfile.TemporaryDirectory(prefix="clo-inspect-") as folder, redirect_stdout(sys.stderr):
        import torch
        from axolotl.cli import config as axolotl_config
        from axolotl.utils.tee import close_debug_log

        notes = []
        instead: dict[str, Any] = {
            "output_dir": str(Path(folder) / "out"),
            "dataset_prepared_path": str(Path(folder) / "prepared"),
        }
        probe = axolotl_config.gpu_capabilities
        if gpus and not torch.cuda.is_available():
            notes.append("no GPU here: the config was checked as on an H100 (compute capability 9.0)")
            env = {"torch_version": str(torch.__version__).split("+")[0]}
            axolotl_config.gpu_capabilities = lambda: (dict(PLANNED_GPU), env)
            if raw.get("bf16") == "auto":
                instead["bf16"] = True
        try:
            cfg = axolotl_config.load_cfg(str(file), **instead)
        except OSError as error:
            raise ValueError(f"{file}: {error}") from error
        finally:
            axolotl_config.gpu_capabilities = probe
            close_debug_log()
        cfg.push_dataset_to_hub = None
        yield cfg, notes


@contextmanager
def _as_before() -> Iterator[None]:
    """Put back the environment, which Axolotl sets up for a run."""
    environment, disabled = dict(os.environ), logging.root.manager.disable
    os.environ.setdefault("AXOLOTL_TEE_STDOUT", "0")
    logging.disable(logging.INFO)  # what Axolotl and the package would tell is in the report
    try:
        yield
    finally:
        logging.disable(disabled)
        os.environ.clear()
        os.environ.update(environment)


def engine_of(cfg: Any, gpus: int | None, zero: str | None) -> Engine:
    """What a validated config says of sharding, or what the user asks for instead.

    Raises:
        ValueError: the file that `deepspeed:` names cannot be read.
    """
    count = gpus or 1
    if zero is not None:
        return Engine(count, None if zero == "0" else zero)
    if cfg.deepspeed:
        stage = _deepspeed(cfg.deepspeed).get("zero_optimization") or {}
        return Engine(
            count,
            str(stage.get("stage", 0)),
            offload_optimizer=_is_offloaded(stage.get("offload_optimizer")),
            offload_weights=_is_offloaded(stage.get("offload_param")),
        )
    if cfg.fsdp or cfg.fsdp_config:
        offloaded = bool((cfg.fsdp_config or {}).get("offload_params"))
        return Engine(count, "fsdp", offload_optimizer=offloaded, offload_weights=offloaded)
    return Engine(count)


def _deepspeed(given: Any) -> dict[str, Any]:
    if isinstance(given, str):
        try:
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"deepspeed: {given} cannot be read ({error})") from error
    return dict(given)


def _is_offloaded(section: Any) -> bool:
    return bool(section) and section.get("device", "none") not in (None, "none")
