"""Every engine takes the steps that one process takes: losses, metrics, weights and the reference, over two processes.

The same on four processes, with weights kept in main memory, in bf16 and for further scopes is `make test-distributed`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import starter_rows, weights, write_rows
from engines import ENGINES, EVERY, FURTHER, HELD_OUT, ROWS, STEPS, USUAL, Case, baseline, needs_deepspeed, run
from equality import Run, differences
from filelock import FileLock
from peft import PeftModel
from transformers import AutoModelForCausalLM

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(torch.cuda.is_available(), reason="CPU processes are for machines without a GPU"),
]

# Margins are differences of sums over a response, hundreds of nats, of which float32 resolves 3e-5.
TOLERANCE = {"loss": 1e-5, "metrics": 2e-5, "gradient norm": 1e-5, "weights": 1e-5, "reference": 1e-4}
# bf16 has 8 bits, and DeepSpeed adds up gradients in it: AdamW steps as far for a gradient near 0 of either sign, so
# weights go apart by as much as they move.
TOLERANCE_BF16 = {"loss": 4e-2, "gradient norm": 1e-1, "reference": 1.0}


class Runs:
    """Gives the run of a case; who asks first starts all of its group, once for all workers of pytest-xdist."""

    def __init__(self, folder: Path, base_model: Path) -> None:
        self.folder, self.base_model = folder, base_model

    def of(self, case: Case) -> Run:
        return Run(self._group(case) / case.name)

    def one_process(self, case: Case) -> Run:
        return Run(self._group(case) / baseline(case.scope).name)

    def _group(self, case: Case) -> Path:
        group = FURTHER if case in FURTHER else USUAL
        place = self.folder / ("further" if case in FURTHER else "usual")
        with FileLock(f"{place}.lock"):
            if not (place / "done").exists():
                base, rows = place / "tiny-llama", place / "rows.jsonl"
                shutil.copytree(self.base_model, base)
                baselines = dict.fromkeys(baseline(case.scope) for case in group)
                run([*baselines, *group], base, write_rows(rows, starter_rows()[:ROWS]), place)
                (place / "done").touch()
        return place


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Runs:
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "distributed"
    folder.mkdir(exist_ok=True)
    return Runs(folder, tiny_llama)


def parameters(cases: list[Case]) -> list[Any]:
    """The cases as parameters of a test; those beyond the usual are for `make test-distributed`."""
    return [pytest.param(case, id=case.name, marks=_marks(case)) for case in cases]


def _marks(case: Case) -> list[pytest.MarkDecorator]:
    marks = [pytest.mark.distributed] if case in FURTHER else []
    return [*marks, needs_deepspeed] if case.engine.startswith("zero") else marks


ALL = parameters(USUAL + FURTHER)


@pytest.mark.parametrize("case", ALL)
def test_ran_on_what_it_says(case: Case, runs: Runs) -> None:
    """Without this a run of two processes may be two runs, or another engine, that look alike."""
    engine = ENGINES[case.engine]
    ranks = runs.of(case).ranks
    assert [rank["rank"] for rank in ranks] == list(range(case.processes))
    for rank in ranks:
        assert (rank["distributed_type"], rank["processes"]) == (engine.distributed_type, case.processes)
        assert rank["wrapper"] == engine.wrapper.replace("Llama", "PeftModel" if "lora" in case.scope else "Llama")
        assert engine.parameter in rank["parameters"]
        # Axolotl's LoRA kernels leave the adapter gathered after an evaluation.
        assert engine.parameter == "Parameter" or all(".lora_" in name for name in rank["plain"])
        assert rank["partitioned"] == engine.partitioned


@pytest.mark.parametrize("case", ALL)
def test_equals_one_process(case: Case, runs: Runs) -> None:
    tolerance = TOLERANCE_BF16 if "bf16" in case.scope else TOLERANCE
    run = runs.of(case)
    assert len(run.logged("loss")) == STEPS
    found = differences(run, runs.one_process(case))
    assert {name: found[name] for name, most in tolerance.items() if found[name] > most} == {}, found


@pytest.mark.parametrize("case", parameters([case for case in USUAL + FURTHER if case.scope.startswith("attention")]))
def test_trains_attention_and_leaves_the_rest_bit_for_bit(case: Case, runs: Runs, tiny_llama: Path) -> None:
    before = weights(tiny_llama)
    after = runs.of(case).weights
    moved = {name for name, value in before.items() if not _same(value, after[name], "bf16" in case.scope)}
    assert moved == {name for name in before if ".self_attn." in name}


def _same(before: torch.Tensor, after: torch.Tensor, bf16: bool) -> bool:
    """Bit for bit; of a run in bf16, as it was read or rounded, whatever it is saved in."""
    read = (before, before.bfloat16()) if bf16 else (before,)
    return any(torch.equal(value.to(after.dtype), after) for value in read)


@pytest.mark.parametrize(
    "case", parameters([c for c in USUAL + FURTHER if "adapter" not in c.scope and "bf16" not in c.scope])
)
def test_key_of_the_reference_is_that_of_whole_weights(case: Case, runs: Runs) -> None:
    """So that what one engine has computed another can read.

    In bf16 engines differ in what they keep in float32, such as embeddings, and so do their references and keys.
    """
    assert len(runs.of(case).cache_files) == 1
    assert runs.of(case).cache_files == runs.one_process(case).cache_files


@pytest.mark.parametrize("case", ALL)
def test_what_is_saved_loads_in_plain_transformers(case: Case, runs: Runs, tiny_llama: Path) -> None:
    out = runs.of(case).folder / "out"
    if "lora" in case.scope:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), out)
    else:
        model = AutoModelForCausalLM.from_pretrained(out)
    assert type(model.get_base_model() if "lora" in case.scope else model).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def test_ranks_had_different_numbers_of_tokens_and_gradients_were_clipped(runs: Runs) -> None:
    """What the cases are to show, they must contain."""
    one = runs.one_process(USUAL[0])
    assert max(one.logged("grad_norm")) > 0.5
    assert (ROWS - HELD_OUT) % 4 == 1


@pytest.mark.parametrize(
    "engine", [e if e == "ddp" else pytest.param(e, marks=[pytest.mark.distributed, needs_deepspeed]) for e in EVERY]
)
def test_a_resumed_run_ends_where_it_would_have(engine: str, tiny_llama: Path, tmp_path: Path) -> None:
    """From a checkpoint inside an epoch, which holds trained weights, though the cache of the reference is gone."""
    case = Case(engine, "attention")
    rows = write_rows(tmp_path / "rows.jsonl", starter_rows()[:ROWS])
    saving = {"save_strategy": "steps", "save_steps": STEPS // 2, "auto_resume_from_checkpoints": True}
    folder = tmp_path / case.name
    run([case], tiny_llama, rows, tmp_path, **saving)
    straight = Run(folder)
    expected = straight.weights, straight.reference, straight.logged("loss")
    shutil.rmtree(folder / "out" / f"checkpoint-{STEPS}")
    (folder / "out" / "model.safetensors").unlink()
    for cache in folder.glob("**/reference/*.safetensors"):
        cache.unlink()
    run([case], tiny_llama, rows, tmp_path, **saving)
    resumed = Run(folder)
    assert len(resumed.ranks[0]["step_seconds"]) == STEPS // 2
    assert torch.equal(resumed.reference, expected[1])
    torch.testing.assert_close(resumed.logged("loss"), expected[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(resumed.weights, expected[0], atol=1e-5, rtol=0)
