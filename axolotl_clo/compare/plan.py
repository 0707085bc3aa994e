"""What is trained: methods, budgets, and the Axolotl configs of each run."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from axolotl_clo.datasets import STARTER, starter_folder

METHODS = {"sft": "SFT", "sft_dpo": "SFT, then DPO", "orpo": "ORPO", "clo": "CLO"}
# Candidates of the search; of `sft_dpo` those of its DPO stage, whose SFT stage takes what was chosen for `sft`.
LEARNING_RATES: dict[str, tuple[float, ...]] = {
    "sft": (1e-4, 3e-4, 1e-3),
    "sft_dpo": (1e-5, 5e-5, 2e-4),
    "orpo": (1e-4, 3e-4, 1e-3),
    "clo": (1e-4, 3e-4, 1e-3),
}
HELD_OUT_EVERY = 8  # every eighth training row scores the search: two of each category
SEARCH_SEED = 0


@dataclass(frozen=True)
class Grid:
    """How much is trained.

    Attributes:
        sizes: parallel rows trained on.
        seeds: of the rows drawn and of training.
        search_size: rows of the search for the learning rate, at most; no more than the largest size.
        search_steps: optimizer steps of the search, at most; no more than those of any run.
        min_steps: least optimizer steps of a run.
        passes: passes over the rows of a run that this gives more steps.
    """

    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    search_size: int
    search_steps: int
    min_steps: int
    passes: int


FULL = Grid(sizes=(8, 16, 32, 64, 128), seeds=(1, 2, 3), search_size=64, search_steps=128, min_steps=64, passes=2)
SMALL = Grid(sizes=(32, 8), seeds=(1, 2), search_size=32, search_steps=32, min_steps=32, passes=1)

BETA = 0.1  # of CLO and DPO, the usual one (arXiv 2305.18290); TRL's default for ORPO too
SOURCE = "en"

Rows = list[dict[str, Any]]
Cell = tuple[str, str, int, int]  # method, language, size, seed


@dataclass(frozen=True)
class Run:
    """One unit of work: Axolotl configs trained one after the other, then scored.

    Attributes:
        name: its folder below `out`.
        out: where all runs lie; `out/base/scores.json` is what a trained model is compared with.
        languages: target languages it is scored in.
        configs: Axolotl configs in the order they train; none for the base model.
        base_model: folder of the model before training.
        search: score bits per byte on the held-out training rows instead of the tasks.
        keep_model: leave the trained weights.
    """

    name: str
    out: Path
    languages: tuple[str, ...]
    configs: tuple[dict[str, Any], ...]
    base_model: Path
    search: bool = False
    keep_model: bool = False

    @property
    def folder(self) -> Path:
        return self.out / self.name

    @property
    def recipe(self) -> dict[str, Any]:
        """What `scores.json` was made with; another recipe is another run."""
        return {"base_model": str(self.base_model), "languages": list(self.languages), "configs": list(self.configs)}

    def result(self) -> dict[str, Any] | None:
        """The stored result, or None where there is none of this recipe (or its model is to be kept and is gone)."""
        file = self.folder / "scores.json"
        if not file.is_file() or (self.keep_model and not Path(self.configs[-1]["output_dir"]).is_dir()):
            return None
        stored = json.loads(file.read_text(encoding="utf-8"))
        return stored if stored["recipe"] == json.loads(json.dumps(self.recipe)) else None


@dataclass(frozen=True)
class Comparison:
    """The command's options after checking, and the runs they ask for."""

    out: Path
    base_model: Path
    methods: tuple[str, ...]
    languages: tuple[str, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    grid: Grid
    given_steps: int | None
    jobs: int
    keep_models: bool

    def steps(self, size: int) -> int:
        """Optimizer steps of a run on `size` rows, one row each."""
        return self.given_steps or max(self.grid.min_steps, self.grid.passes * size)

    @property
    def search_size(self) -> int:
        return min(self.grid.search_size, max(self.sizes))

    @property
    def search_steps(self) -> int:
        return min(self.grid.search_steps, *(self.steps(size) for size in self.sizes))

    @property
    def search_phases(self) -> list[list[str]]:
        """Methods whose learning rate is searched; SFT, then DPO waits for SFT's."""
        first = [
            m for m in METHODS if m != "sft_dpo" and (m in self.methods or (m == "sft" and "sft_dpo" in self.methods))
        ]
        return [first, [m for m in self.methods if m == "sft_dpo"]]

    @property
    def cells(self) -> list[Cell]:
        """All runs of the table, ordered so that those done first make a table of their own."""
        return [
            (method, language, size, seed)
            for size in self.sizes
            for seed in self.seeds
            for language in self.languages
            for method in self.methods
        ]

    def base(self) -> Run:
        """The model before training."""
        return Run("base", self.out, self.languages, (), self.base_model)

    def search(self, method: str, language: str, rate: float, sft_rate: float | None) -> Run:
        """One candidate of the search; `sft_rate` is that of the SFT stage of `sft_dpo`."""
        name = f"search/{method}-{language}-{rate:g}"
        rows = str(self.out / "search" / "rows.jsonl")
        stages = _stages(method, rate, sft_rate, self.search_steps)
        configs = self._configs(name, language, self.search_size, SEARCH_SEED, stages, rows)
        return Run(name, self.out, (language,), configs, self.base_model, search=True)

    def run(self, method: str, language: str, size: int, seed: int, rate: float, sft_rate: float | None) -> Run:
        """One run of the table."""
        name = f"runs/{method}-{language}-{size}-{seed}"
        stages = _stages(method, rate, sft_rate, self.steps(size))
        configs = self._configs(name, language, size, seed, stages, STARTER)
        return Run(name, self.out, (language,), configs, self.base_model, keep_model=self.keep_models)

    def _configs(
        self, name: str, language: str, size: int, seed: int, stages: list[tuple[str, float, int]], rows: str
    ) -> tuple[dict[str, Any], ...]:
        configs: list[dict[str, Any]] = []
        for stage, rate, steps in stages:
            strategy = {"sft": "sft", "clo": "cross_lingual"}.get(stage, "preference")
            config: dict[str, Any] = {
                "base_model": configs[-1]["output_dir"] if configs else str(self.base_model),
                "plugins": ["axolotl_clo.CLOPlugin"],
                "clo": {"target_lang": language, "max_examples": size, "train_modules": "attention"},
                "datasets": [{"path": rows, "type": f"axolotl_clo.{strategy}"}],
                "dataset_prepared_path": str(self.out / name / "prepared"),
                "dataset_num_proc": 0,
                "dataloader_num_workers": 0,
                "output_dir": str(self.out / name / f"model-{stage}"),
                "sequence_len": 512,
                "micro_batch_size": 1 if stage == "clo" else 2,
                "gradient_accumulation_steps": 1,
                "max_steps": steps,
                "num_epochs": math.ceil(steps / size),
                "optimizer": "adamw_torch",
                "learning_rate": rate,
                "lr_scheduler": "cosine",
                "warmup_steps": steps // 20,
                "weight_decay": 0.0,
                "seed": seed,
                "gradient_checkpointing": False,
                "save_strategy": "no",
                "logging_steps": 1,
                **_precision(),
            }
            if stage == "clo":
                config["rl"] = "clo"
                config["clo"]["beta"] = BETA
            elif stage != "sft":
                config["rl"] = stage
                config["orpo_alpha" if stage == "orpo" else "rl_beta"] = BETA
            configs.append(config)
        return tuple(configs)


def _stages(method: str, rate: float, sft_rate: float | None, steps: int) -> list[tuple[str, float, int]]:
    """What trains after what: name, learning rate and optimizer steps of each."""
    if method != "sft_dpo":
        return [(method, rate, steps)]
    assert sft_rate is not None, "SFT's learning rate is chosen first"  # nosec B101 # tells the type checker
    return [("sft", sft_rate, steps // 2), ("dpo", rate, steps - steps // 2)]


@lru_cache
def _precision() -> dict[str, Any]:
    """Float32 on a GPU too: weights of bfloat16 would round away most updates at the learning rates of DPO."""
    import torch

    return {"bf16": False, "tf32": torch.cuda.is_available(), "attn_implementation": "sdpa"}


def starter_rows() -> Rows:
    """The training rows of the package."""
    lines = (starter_folder() / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
