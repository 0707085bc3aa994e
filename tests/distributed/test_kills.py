"""Training that is killed at any moment goes on to the weights and losses of training that was not.

Over two processes it is `make test-distributed`.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import SMALL_RUN, starter_rows, weights, write_rows
from engines import start
from filelock import FileLock

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(torch.cuda.is_available(), reason="CPU processes are for machines without a GPU"),
]

STEPS, SAVED_EVERY = 40, 10
RANDOM = random.Random(7)
KILLS: dict[str, dict[str, Any]] = {
    **{f"at-{share:.2f}": {"share": share} for share in sorted(RANDOM.uniform(0.05, 0.98) for _ in range(6))},
    "writing-the-reference": {"writing": "reference"},
    **{f"writing-checkpoint-{n + 1}": {"writing": "checkpoint", "whole": n} for n in (0, 1, 3)},
}


def write_config(folder: Path, base_model: Path, rows: Path, processes: int) -> Path:
    config = {
        "base_model": str(base_model),
        "plugins": ["axolotl_clo.CLOPlugin"],
        "rl": "clo",
        "clo": {"target_lang": "de", "eval_answers": 0},
        "datasets": [{"path": str(rows), "type": "axolotl_clo.cross_lingual"}],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "out"),
        **SMALL_RUN,
        "micro_batch_size": 2 // processes,
        "max_steps": STEPS,
        "num_epochs": STEPS,
        "lr_scheduler": "cosine",
        "save_steps": SAVED_EVERY,
        "auto_resume_from_checkpoints": True,
    }
    folder.mkdir(parents=True)
    file = folder / "config.yml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Any:
    """Gives the folder with all runs of a number of processes; who asks first starts them."""
    own = tmp_path_factory.getbasetemp()
    place = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "kills"
    place.mkdir(exist_ok=True)

    def of(processes: int) -> Path:
        group = place / str(processes)
        with FileLock(f"{group}.lock"):
            if not group.exists():
                rows = write_rows(place / f"rows{processes}.jsonl", starter_rows()[:7])
                jobs = []
                for name, kill in {"undisturbed": None, **KILLS}.items():
                    config = write_config(group / name, tiny_llama, rows, processes)
                    jobs.append(
                        {"config": str(config), "folder": str(group / name), "processes": processes, "kill": kill}
                    )
                start("kills.py", jobs, group)
        return group

    return of


PROCESSES = [1, pytest.param(2, marks=pytest.mark.distributed)]


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("name", KILLS)
def test_a_killed_run_goes_on_as_if_it_had_not_been(name: str, processes: int, runs: Any) -> None:
    group = runs(processes)
    found = json.loads((group / name / "found.json").read_text())
    assert found["ended"], (group / name / "rank0.log").read_text()[-3000:]
    straight, resumed = (json.loads((group / x / "rank0.json").read_text()) for x in ("undisturbed", name))
    exact = {"atol": 0.0, "rtol": 0.0} if processes == 1 else {"atol": 1e-5, "rtol": 0.0}
    assert len(resumed["reference"]) == len(straight["reference"]) == 7
    torch.testing.assert_close(torch.tensor(resumed["reference"]), torch.tensor(straight["reference"]), **exact)
    ours, theirs = (
        torch.tensor([step["loss"] for step in x["history"] if "loss" in step]) for x in (resumed, straight)
    )
    assert len(ours) == STEPS
    torch.testing.assert_close(ours, theirs, **exact)
    for key, weight in weights(group / "undisturbed" / "out").items():
        torch.testing.assert_close(weights(group / name / "out")[key], weight, **exact)


@pytest.mark.parametrize("processes", PROCESSES)
def test_the_kills_came_where_they_were_to(processes: int, runs: Any) -> None:
    found = {name: json.loads((runs(processes) / name / "found.json").read_text()) for name in KILLS}
    assert sum(x["killed"] for x in found.values()) >= len(KILLS) - 1, "the last moment may come too late"
    half = [name for name, x in found.items() if any(x["left"].values())]
    assert any(name.startswith("writing-checkpoint") for name in half), "one left half a checkpoint"
