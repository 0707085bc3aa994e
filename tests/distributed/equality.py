"""What a case left behind, and how far it is from the run of one process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


@dataclass(frozen=True)
class Run:
    """The folder of a case that ran."""

    folder: Path

    @cached_property
    def ranks(self) -> list[dict[str, Any]]:
        """What each rank said of itself; of a rank that failed, its log is shown."""
        files = sorted(self.folder.glob("rank*.json"))
        logs = sorted(self.folder.glob("rank*.log"))
        if len(files) < len(logs) or not logs:
            missing = [log for log in logs if not log.with_suffix(".json").exists()]
            ends = "\n".join(f"{log}:\n{log.read_text(errors='replace')[-3000:]}" for log in missing)
            raise AssertionError(f"ranks of {self.folder.name} failed\n{ends}")
        return [json.loads(file.read_text()) for file in files]

    def logged(self, name: str) -> list[float]:
        """Of the first rank, which logs for all."""
        return [entry[name] for entry in self.ranks[0]["history"] if name in entry]

    @cached_property
    def metrics(self) -> set[str]:
        names = {name for entry in self.ranks[0]["history"] for name in entry}
        return {name for name in names if name.removeprefix("eval_").startswith("clo/")}

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        (file,) = [*(self.folder / "out").glob("*.safetensors"), *(self.folder / "apart0").glob("*.safetensors")]
        return load_file(file)

    @property
    def reference(self) -> torch.Tensor:
        """`[rows, 4]`, by row."""
        return torch.tensor(self.ranks[0]["reference"])

    @property
    def cache_files(self) -> list[str]:
        return sorted(file.name for file in self.folder.glob("**/clo-*/reference/*.safetensors"))


def differences(run: Run, one: Run) -> dict[str, float]:
    """The largest differences of a run from that of one process: loss, metrics, gradient norm, weights, reference."""
    assert run.metrics == one.metrics
    losses = ("loss", "eval_loss")
    weights = {name: (run.weights[name] - value).abs().max().item() for name, value in one.weights.items()}
    return {
        "loss": max(_apart(run.logged(name), one.logged(name)) for name in losses),
        "metrics": max(_apart(run.logged(name), one.logged(name)) for name in one.metrics),
        "gradient norm": _apart(run.logged("grad_norm"), one.logged("grad_norm")),
        "weights": max(weights.values()),
        "reference": max((run.reference - one.reference).abs().flatten().tolist(), default=0.0),  # adapters have none
    }


def _apart(first: list[float], second: list[float]) -> float:
    assert len(first) == len(second) > 0
    return max(abs(a - b) for a, b in zip(first, second, strict=True))
