"""What is run: a run's settings, and the config Axolotl gets for them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .rows import TARGETS
from .savings import SAVINGS, clo_options

# What is measured of a run: training; the way to the first step, with caches being filled or there; losses; operators.
Kind = Literal["train", "fill", "startup", "curve", "profile"]

LABELS = {"clo": "CLO", "dpo": "stock `rl: dpo`", "sft": "stock SFT, all parameters, same tokens"}
LABELS |= {name: saving.label for name, saving in SAVINGS.items()} | {"plain": "CLO, no saving"}
RUNS = tuple(LABELS)
FIRST_EPOCHS_ONLY = ("sft", "unshared", "padded", "full-logits")  # a run of more epochs says nothing new of these


@dataclass(frozen=True)
class Run:
    """One process.

    name: one of `RUNS`.
    model: name of a shape, or a folder.
    length: tokens that rows are filled up to; 0: starter rows as they are.
    rows, batch: rows in all, and of an optimizer step.
    """

    name: str
    model: str
    length: int
    epochs: int
    rows: int
    batch: int
    repeat: int
    threads: int
    device: str
    attention: str
    checkpointing: bool = False
    kind: Kind = "train"
    steps: int = 0

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def off(self) -> tuple[str, ...]:
        """Names of the savings that are switched off."""
        return tuple(SAVINGS) if self.name == "plain" else (self.name,) if self.name in SAVINGS else ()

    @property
    def where(self) -> str:
        """The model and the rows, for people."""
        lengths = f", sequences of {self.length}" if self.length else ""
        return f"{Path(self.model).name}{lengths}{', checkpointed' if self.checkpointing else ''}"

    def __str__(self) -> str:
        kind = "" if self.kind == "train" else f" ({self.kind})"
        return f"{self.name}{kind}, {self.where}, {self.epochs} epochs, repeat {self.repeat + 1}"


def config(run: Run, model: Path, rows: Path, folder: Path) -> dict[str, Any]:
    """Axolotl's config for a run.

    A row is two pairs of `rl: dpo`. CLO's four sequences of a row are the two of SFT with each used twice, so SFT gets
    as many tokens, and as many in a step, with two rows for each of CLO's and twice the epochs.
    """
    cuda = run.device == "cuda"
    stock = {"dpo": "axolotl_clo.preference", "sft": "axolotl_clo.sft"}
    clo = {"target_lang": list(TARGETS[: run.rows]), "check_language": "off"} | clo_options(run.off)
    if run.name == "sft" and run.kind == "train":
        clo["train_modules"] = "all"
    options: dict[str, Any] = {
        "base_model": str(model),
        "plugins": ["axolotl_clo.CLOPlugin"],
        "clo": clo,
        "datasets": [{"path": str(rows), "type": stock.get(run.name, "axolotl_clo.cross_lingual")}],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "out"),
        "sequence_len": run.length or 1024,
        "micro_batch_size": run.batch * {"dpo": 2, "sft": 4}.get(run.name, 1),
        "gradient_accumulation_steps": 1,
        "num_epochs": run.epochs * (2 if run.name == "sft" else 1),
        "learning_rate": 1e-3 if run.kind == "curve" else 1e-5,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "bf16": cuda,
        "tf32": False,
        "attn_implementation": run.attention,
        "save_strategy": "no",
        "logging_steps": 1,
        "dataset_num_proc": 0,
        "seed": 3,
    }
    if run.checkpointing:
        options["gradient_checkpointing"] = True
        options["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    if run.steps:
        options["max_steps"] = run.steps
    if run.name != "sft":
        options["rl"] = "dpo" if run.name == "dpo" else "clo"
    return options
