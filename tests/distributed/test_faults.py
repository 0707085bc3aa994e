"""Two ranks, one of which has a bad day: they go on together, or end together and name the right one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import starter_rows, weights, write_rows
from engines import ENGINES, Case, start, write_config
from filelock import FileLock

from axolotl_clo.checkpoints import TERMINATED, problem_of

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(torch.cuda.is_available(), reason="CPU processes are for machines without a GPU"),
]

RUN: dict[str, Any] = {
    "max_steps": 4,
    "num_epochs": 4,
    "gradient_accumulation_steps": 1,
    "eval_strategy": "no",
    "eval_steps": None,
    "val_set_size": 0,
    "save_strategy": "steps",
    "save_steps": 4,
}
LIMIT = 20  # seconds that a rank waits for the others
BAD_DAYS: dict[str, dict[str, Any]] = {
    "NoNumber": {"clo": {"target_lang": "de", "eval_answers": 0, "nonfinite_loss": "skip"}},
    "Sigterm": {},
    "LateSigterm": {},
    "DeathInCheckpoint": {},
    "NoData": {"ddp_timeout": LIMIT, "dataloader_num_workers": 0},
}


@pytest.fixture(scope="session")
def days(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """The folder of the short bad days; who asks first starts them."""
    own = tmp_path_factory.getbasetemp()
    place = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "bad-days"
    with FileLock(f"{place}.lock"):
        if not place.exists():
            live_through([day for day in BAD_DAYS if day != "NoData"], tiny_llama, place)
    return place


def live_through(days: list[str], base_model: Path, place: Path) -> None:
    """Train two ranks on each of the bad days, see `run_cases.py` for what they leave behind."""
    place.mkdir()
    rows = write_rows(place / "rows.jsonl", starter_rows()[:12])
    jobs = []
    for day in days:
        plugins = ["axolotl_clo.CLOPlugin", f"bad_days.{day}"]
        run = {**RUN, "clo": {"target_lang": "de", "eval_answers": 0}, "plugins": plugins, **BAD_DAYS[day]}
        config = write_config(Case("ddp", "attention"), base_model, rows, place / day, run)
        jobs.append({"config": str(config), "folder": str(place / day), "processes": 2})
    start("run_cases.py", jobs, place)


def log_of(folder: Path, rank: int) -> str:
    return (folder / f"rank{rank}.log").read_text(errors="replace")


@pytest.mark.bad_input("long runs")
def test_a_loss_that_is_no_number_on_one_rank_is_skipped_on_all(days: Path) -> None:
    """The ranks stay in step, though only one of them has a metric less to tell; so they do where no rank has any."""
    ranks = [json.loads((days / "NoNumber" / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["distributed_type"] for rank in ranks] == [ENGINES["ddp"].distributed_type] * 2
    steps = {entry["step"]: entry for entry in ranks[0]["history"] if "loss" in entry}
    assert [step for step, entry in steps.items() if "clo/nll" in entry] == [1, 2, 4]
    assert all(entry["clo/nll"] > 0 for step, entry in steps.items() if step != 3)
    assert "step 2 is left out; 1 so far" in log_of(days / "NoNumber", 0)
    assert "step 3 is left out; 2 so far" in log_of(days / "NoNumber", 0)
    assert "the loss of step 2 is nan on rank 1" in log_of(days / "NoNumber", 1)
    assert "the loss of step 2 is nan" not in log_of(days / "NoNumber", 0)
    assert all(weight.isfinite().all() for weight in weights(days / "NoNumber" / "out").values())


def test_a_checkpoint_that_a_rank_did_not_finish_is_not_whole(days: Path) -> None:
    checkpoint = days / "DeathInCheckpoint" / "out" / "checkpoint-4"
    assert (checkpoint / "rng_state_0.pth").exists()
    assert not (checkpoint / "rng_state_1.pth").exists()
    assert problem_of(checkpoint) == "trainer_state.json is missing"


def test_sigterm_on_one_rank_ends_all_after_the_same_step_with_a_checkpoint(days: Path) -> None:
    out = days / "Sigterm" / "out"
    assert [folder.name for folder in out.glob("checkpoint-*")] == ["checkpoint-3"]
    assert problem_of(out / "checkpoint-3") is None
    assert "SIGTERM came; checkpoint-3 is written" in log_of(days / "Sigterm", 0)
    for rank in (0, 1):
        assert f"SystemExit: {TERMINATED}" in log_of(days / "Sigterm", rank)


def test_sigterm_of_which_the_last_step_brings_word_ends_nothing(days: Path) -> None:
    for rank in (0, 1):
        ended = json.loads((days / "LateSigterm" / f"rank{rank}.json").read_text())
        assert len(ended["step_seconds"]) == RUN["max_steps"]
    assert (days / "LateSigterm" / "out" / "model.safetensors").exists()


@pytest.mark.distributed
@pytest.mark.bad_input("long runs")
def test_only_the_rank_without_data_is_named_and_both_end(tiny_llama: Path, tmp_path: Path) -> None:
    live_through(["NoData"], tiny_llama, tmp_path / "days")
    one, other = (log_of(tmp_path / "days" / "NoData", rank) for rank in (0, 1))
    assert f"rank 1 has waited {0.9 * LIMIT:.0f} s for a batch of data" in other
    assert "bad_days.py" in other, "where it stands"
    assert "has waited" not in one
    assert "Traceback (most recent call last)" in one, "ended by itself"
