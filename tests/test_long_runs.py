"""Bad days of a run: each ends with a message that says what to do, and training goes on as if it had not stopped."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as distributed
from accelerate.utils import send_to_device
from conftest import ROOT, load_config, logged, starter_rows, train, weights
from datasets import Dataset, concatenate_datasets
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_clo.checkpoints import TERMINATED, last_whole, problem_of, whole_checkpoint, written_whole
from axolotl_clo.collator import CLOCollator
from axolotl_clo.cross_lingual import CrossLingualStrategy
from axolotl_clo.faults import data_expected, memory_explained, named_rows, nonfinite_rows
from axolotl_clo.loss import CLOTerms
from axolotl_clo.reference import ReferenceCache
from axolotl_clo.schema import CLOConfig
from axolotl_clo.trainer import CLOTrainer

Write = Callable[..., Path]

STARTER = starter_rows()

RUN: dict[str, Any] = {
    "max_steps": 6,
    "num_epochs": 6,
    "micro_batch_size": 4,
    "save_steps": 2,
    "save_strategy": "steps",
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the output of a run that nothing disturbed is kept."""
    return tmp_path_factory.mktemp("straight")


@pytest.fixture
def run(write_config: Write, straight: Path, tmp_path: Path) -> Callable[..., Any]:
    """Trains six steps, writing a checkpoint every two; starts from a copy of what the undisturbed run wrote."""
    if not (straight / "out").exists():
        train(write_config(**RUN))
        shutil.copytree(tmp_path / "out", straight / "out")
    elif not (tmp_path / "out").exists():
        shutil.copytree(straight / "out", tmp_path / "out")
    return lambda **options: train(write_config(**(RUN | options)))


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def test_a_whole_checkpoint_has_no_problem_and_a_cut_file_is_named(run: Any, tmp_path: Path) -> None:
    checkpoint = tmp_path / "out" / "checkpoint-4"
    assert problem_of(checkpoint) is None
    looked_at = [f for f in checkpoint.iterdir() if f.suffix in (".safetensors", ".json", ".pt", ".pth", ".bin")]
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= {
        file.name for file in looked_at
    }
    for file in looked_at:
        content = file.read_bytes()
        cut(file)
        assert problem_of(checkpoint) == f"{file.name} is cut short"
        file.write_bytes(content)
    (checkpoint / "trainer_state.json").unlink()
    assert problem_of(checkpoint) == "trainer_state.json is missing"


ZERO2 = ["mp_rank_00_model_states.pt", *(f"zero_pp_rank_{n}_mp_rank_00_optim_states.pt" for n in range(2))]
ZERO3 = [f"bf16_zero_pp_rank_{n}_mp_rank_00_optim_states.pt" for n in range(3)]
ZERO3 += [f"zero_pp_rank_{n}_mp_rank_00_model_states.pt" for n in range(3)]
TWO_BY_TWO = [f"zero_pp_rank_{n}_mp_rank_0{m}_optim_states.pt" for n in range(2) for m in range(2)]
TWO_BY_TWO += [f"mp_rank_0{m}_model_states.pt" for m in range(2)]


@pytest.mark.parametrize(
    ("ranks", "deepspeed", "missing"),
    [
        (0, [], []),  # one process, or weights alone
        (3, [], ["rng_state_0.pth", "rng_state_1.pth"]),
        (2, ZERO2, ["rng_state_1.pth", *ZERO2[1:]]),
        (0, ZERO2, [ZERO2[1]]),  # nobody kept random states
        (3, ZERO3, ["rng_state_2.pth", *ZERO3]),
        (0, ZERO3, ZERO3),
        (4, TWO_BY_TWO, ["rng_state_3.pth", *TWO_BY_TWO[:4]]),  # model-parallel
        (2, ["mp_rank_00_model_states.pt"], ["rng_state_0.pth"]),  # the optimizer is not partitioned
    ],
)
def test_the_part_of_a_rank_that_is_missing_is_named(
    ranks: int, deepspeed: list[str], missing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")  # training may go on with another number of processes
    (tmp_path / "trainer_state.json").write_text("{}")
    (tmp_path / "global_step4").mkdir()
    files = [tmp_path / f"rng_state_{n}.pth" for n in range(ranks)] + [tmp_path / "global_step4" / x for x in deepspeed]
    for file in files:
        torch.save({}, file)
    assert problem_of(tmp_path) is None
    for file in files:
        if file.name in missing:
            file.unlink()
            assert problem_of(tmp_path) == f"{file.relative_to(tmp_path)} is missing"
            torch.save({}, file)


def test_pytorchs_distributed_checkpoints_are_held_against_their_index(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text("{}")
    folder = tmp_path / "pytorch_model_fsdp_0"
    writer = distributed.FileSystemWriter(folder, single_file_per_rank=False)
    distributed.save({"large": torch.ones(10_000), "small": torch.ones(3)}, storage_writer=writer, no_dist=True)
    shards = sorted(folder.glob("*.distcp"))
    assert len(shards) == 2
    assert problem_of(tmp_path) is None
    for file in (*shards, folder / ".metadata"):
        content = file.read_bytes()
        for left in (0, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:left])
            assert problem_of(tmp_path) == f"{file.relative_to(tmp_path)} is cut short"
        file.unlink()
        assert problem_of(tmp_path) == f"{file.relative_to(tmp_path)} is missing"
        file.write_bytes(content)


@pytest.mark.bad_input("long runs")
def test_a_cut_checkpoint_is_passed_over_for_the_one_before(
    run: Any, straight: Path, tmp_path: Path, clo_log: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    shutil.rmtree(out / "checkpoint-6")
    cut(out / "checkpoint-4" / "model.safetensors")
    trainer = run(auto_resume_from_checkpoints=True)
    passed = [r.getMessage() for r in clo_log.records if "passed over" in r.getMessage()]
    assert len(passed) == 1
    assert "checkpoint-4 is passed over, as model.safetensors is cut short; training goes on from" in passed[0]
    assert passed[0].endswith("checkpoint-2")
    assert trainer.state.global_step == 6
    for name, weight in weights(out).items():
        assert torch.equal(weight, weights(straight / "out")[name]), name


@pytest.mark.bad_input("long runs")
def test_a_cut_checkpoint_that_the_user_named_is_refused(run: Any, tmp_path: Path) -> None:
    named = tmp_path / "out" / "checkpoint-6"
    cut(named / "optimizer.pt")
    with pytest.raises(
        ValueError, match=r"checkpoint-6 cannot be resumed from, as optimizer.pt is cut short; .*-4 can"
    ):
        run(resume_from_checkpoint=str(named))


@pytest.mark.bad_input("long runs")
def test_without_a_whole_checkpoint_training_begins_anew(tmp_path: Path, clo_log: pytest.LogCaptureFixture) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    assert whole_checkpoint(tmp_path / "checkpoint-2", found_by_itself=True) is None
    assert "no earlier one is whole: training begins anew" in clo_log.text


def test_sigterm_writes_a_checkpoint_and_the_run_goes_on_from_it(
    run: Any, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clo_log: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    shutil.rmtree(out)
    step = CLOTrainer.compute_loss

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # a launcher sends it on
        return step(self, *args, **kwargs)

    monkeypatch.setattr(CLOTrainer, "compute_loss", called)
    with pytest.raises(SystemExit) as ended:
        run(save_steps=100)
    assert ended.value.code == TERMINATED == 143
    assert "checkpoint-3 is written" in clo_log.text
    assert last_whole(out) == out / "checkpoint-3"
    assert not (out / "model.safetensors").exists(), "a model that is not finished must not look so"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.undo()
    trainer = run(auto_resume_from_checkpoints=True)
    assert trainer.state.global_step == 6
    for name, weight in weights(out).items():
        assert torch.equal(weight, weights(straight / "out")[name]), name


# ---- losses that are no number ----


@pytest.fixture
def poisoned(tiny_llama: Path, tmp_path: Path, parallel_file: Path) -> tuple[Path, int]:
    """A model that gives one row no number, as one token's embedding is broken, and that row's number."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    used = [
        {
            token
            for side in ("prompt", "response")
            for lang in ("en", "de")
            for token in tokenizer(row[side][lang]).input_ids
        }
        for row in map(json.loads, parallel_file.read_text(encoding="utf-8").splitlines())
    ]
    row, token = next(
        (i, token)
        for i, mine in enumerate(used)
        for token in sorted(mine)
        if not any(token in other for j, other in enumerate(used) if j != i)
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.get_input_embeddings().weight.data[token] = torch.nan
    model.save_pretrained(tmp_path / "poisoned")
    tokenizer.save_pretrained(tmp_path / "poisoned")
    return tmp_path / "poisoned", row + 1


@pytest.mark.bad_input("long runs")
def test_a_reference_that_is_no_number_names_the_row(poisoned: tuple[Path, int], write_config: Write) -> None:
    model, row = poisoned
    named = rf"no number \(rows {row} \(id {STARTER[row - 1]['id']}\) of the dataset\)"
    with pytest.raises(ValueError, match=rf"gives 1 of 12 rows a log-probability that is {named}"):
        train(write_config(base_model=str(model)))


@pytest.mark.bad_input("long runs")
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_row(
    poisoned: tuple[Path, int], write_config: Write
) -> None:
    model, row = poisoned
    clo = {"target_lang": "de", "preference_loss": "orpo"}  # without a reference
    named = rf"\(rows {row} \(id {STARTER[row - 1]['id']}\) of the dataset\)"
    with pytest.raises(ValueError, match=rf"the loss of step \d is nan on rank 0: 1 of 4 examples {named}"):
        train(write_config(base_model=str(model), clo=clo, max_steps=3))


@pytest.mark.bad_input("long runs")
def test_a_loss_that_is_no_number_is_skipped_where_that_is_asked_for(
    poisoned: tuple[Path, int], write_config: Write, tmp_path: Path, clo_log: pytest.LogCaptureFixture
) -> None:
    model, row = poisoned
    clo = {"target_lang": "de", "preference_loss": "orpo", "nonfinite_loss": "skip"}
    trainer = train(write_config(base_model=str(model), clo=clo, max_steps=3, optimizer="adamw_torch"))
    assert trainer.state.global_step == 3
    assert f"(rows {row} (id {STARTER[row - 1]['id']}) of the dataset)" in clo_log.text
    left_out = [r.getMessage() for r in clo_log.records if "is left out" in r.getMessage()]
    assert len(left_out) == 1, "the row comes once in an epoch of three steps"
    trained = weights(tmp_path / "out")
    assert all(weight.isfinite().all() for name, weight in trained.items() if "attn" in name)
    assert len([x for x in logged(trainer, "clo/nll") if x == x]) == 2, "metrics are of the steps that counted"


@pytest.mark.bad_input("config")
def test_skipping_is_refused_where_the_engine_takes_its_steps_itself(write_config: Write) -> None:
    config = write_config(
        clo={"target_lang": "de", "nonfinite_loss": "skip"},
        deepspeed=str(ROOT / "example_configs/deepspeed/zero2.json"),
    )
    with pytest.raises(ValueError, match=r"clo.nonfinite_loss: skip .* DeepSpeed"):
        train(config)


# ---- memory, disks, silence ----


def test_the_id_of_a_row_reaches_its_batch(chatml_tokenizer: Any) -> None:
    strategy = CrossLingualStrategy(chatml_tokenizer, CLOConfig(target_lang="de"), chatml_tokenizer.chat_template, 2048)

    def tokenized(ids: list[Any] | None) -> Any:
        rows = [{side: row[side] for side in ("prompt", "response")} for row in STARTER[:3]]
        named = rows if ids is None else [row | {"id": name} for row, name in zip(rows, ids, strict=True)]
        return strategy.wrap_dataset(Dataset.from_list(named))

    parts = [tokenized(ids) for ids in (["q-17", None, ""], [3, 4, None], [1.5, 2.5, 3.5], [[1], [2], [3]], None)]
    together = concatenate_datasets(parts)
    expected = ["q-17", "", "", "3", "4", "", "1.5", "2.5", "3.5", *[""] * 6]
    assert together["clo_id"][:] == expected
    (batch,) = DataLoader(together, batch_size=15, collate_fn=CLOCollator(), num_workers=1)
    assert send_to_device(batch, "cpu", non_blocking=True)["id"] == expected
    prepared_before = together.remove_columns("clo_id")
    assert "id" not in CLOCollator()(list(prepared_before))


def test_rows_are_named_by_number_and_where_they_have_one_by_id() -> None:
    assert named_rows([5]) == "rows 5 of the dataset"
    assert named_rows([5, 8], ["q-17", ""]) == "rows 5 (id q-17), 8 of the dataset"
    assert named_rows([1], ["x" * 1000 + "\n"]) == f"rows 1 (id {'x' * 80}) of the dataset"
    assert named_rows(range(30), ["a"] * 30).endswith("19 (id a), … of the dataset")
    batch = {"response_lengths": torch.ones(3, 2, 2), "row": torch.tensor([5, 8, 9]), "id": ["q-17", "", "q-19"]}
    good = torch.zeros(3)
    terms = CLOTerms(good / torch.tensor([0.0, 1, 0]), good, torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 2))
    assert nonfinite_rows(terms, batch) == "2 of 3 examples (rows 5 (id q-17), 9 (id q-19) of the dataset)"


def test_an_out_of_memory_error_says_in_which_batch_and_what_helps() -> None:
    batch = {
        "response_lengths": torch.ones(2, 2, 2),
        "input_ids": torch.ones(1, 77),
        "row": torch.tensor([5, 8]),
    }
    with (
        pytest.raises(
            RuntimeError,
            match=r"rank 3 ran out of memory in step 8, in a micro-batch of 2 rows and 77 tokens "
            r"\(rows 5, 8 of the dataset\); lower `micro_batch_size`.*can't allocate memory",
        ),
        memory_explained(batch, rank=3, step=7),
    ):
        torch.empty(2**50)
    with pytest.raises(RuntimeError, match=r"^another$"), memory_explained(batch, rank=3, step=7):
        raise RuntimeError("another")


@pytest.fixture
def full_disk() -> Iterator[Callable[..., None]]:
    """Call it, and no file can grow beyond some bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most=4096: resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.bad_input("long runs")
@pytest.mark.parametrize("kind", ["safetensors", "torch", "text"])
def test_half_a_checkpoint_is_not_left_behind(kind: str, tmp_path: Path, full_disk: Callable[..., None]) -> None:
    checkpoint, large = tmp_path / "checkpoint-4", torch.ones(10_000)
    checkpoint.mkdir()
    write: dict[str, Callable[[], Any]] = {
        "safetensors": lambda: save_file({"weight": large}, checkpoint / "model.safetensors"),
        "torch": lambda: torch.save({"weight": large}, checkpoint / "optimizer.pt"),
        "text": lambda: (checkpoint / "trainer_state.json").write_text(" " * 10_000),
    }
    full_disk()
    with (
        pytest.raises(ValueError, match=r"checkpoint-4 could not be written \(.*No checkpoint before it is there"),
        written_whole(checkpoint, tidy=True),
    ):
        write[kind]()
    assert not checkpoint.exists()


@pytest.mark.bad_input("long runs")
def test_a_checkpoint_stays_when_only_what_comes_after_it_fails(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uploaded(*_: Any, **__: Any) -> None:
        raise OSError("no route to the hub")

    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr("transformers.trainer.rotate_checkpoints", uploaded)
    with pytest.raises(ValueError, match=r"checkpoint-2 is written and whole, but .* failed \(no route to the hub\)"):
        run()
    assert problem_of(tmp_path / "out" / "checkpoint-2") is None


def test_what_a_killed_run_left_of_a_checkpoint_is_removed_before_it_is_written_again(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.rmtree(out)
    (out / "checkpoint-2").mkdir(parents=True)
    torch.save({}, out / "checkpoint-2" / "rng_state_3.pth")
    run(max_steps=2)
    assert problem_of(out / "checkpoint-2") is None
    assert not (out / "checkpoint-2" / "rng_state_3.pth").exists()


@pytest.mark.bad_input("long runs")
def test_a_full_disk_ends_the_run_and_names_the_checkpoint_that_is_whole(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[..., None]
) -> None:
    out = tmp_path / "out"
    shutil.rmtree(out)
    save = CLOTrainer.save_model

    def fill(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            full_disk()
        return save(self, *args, **kwargs)

    monkeypatch.setattr(CLOTrainer, "save_model", fill)
    with pytest.raises(ValueError, match=r"checkpoint-4 could not be written .*checkpoint-2 is whole: resume from it"):
        run()
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.bad_input("long runs")
def test_a_full_disk_under_the_reference_names_its_folder(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[..., None]
) -> None:
    save = ReferenceCache.save

    def fill(self: ReferenceCache) -> None:
        full_disk(64)
        try:
            save(self)
        finally:
            full_disk(2**40)

    monkeypatch.setattr(ReferenceCache, "save", fill)
    with pytest.raises(ValueError, match=r"reference cache .*/reference/.* cannot be written .*`dataset_pre"):
        train(write_config())
    (folder,) = (tmp_path / "prepared").glob("clo-*/reference")
    assert list(folder.iterdir()) == []


@pytest.mark.bad_input("config")
@pytest.mark.parametrize("option", ["output_dir", "dataset_prepared_path"])
@pytest.mark.parametrize("place", ["rows.jsonl", "rows.jsonl/below", "/proc/clo"])
def test_a_folder_that_cannot_be_written_to_is_named_at_once(
    option: str, place: str, write_config: Write, tmp_path: Path
) -> None:
    rows = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(ValueError, match=rf"{option}: .*{place} cannot be written to .*; set another folder"):
        load_config(write_config(**{option: str(tmp_path / place)}))
    assert (tmp_path / "rows.jsonl").read_bytes() == rows


def test_a_rank_whose_data_does_not_come_ends_with_its_name(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = os.fork()
    if child == 0:
        file = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        import logging

        logging.basicConfig(force=True, stream=os.fdopen(2, "w"))
        with data_expected(rank=1, timeout=0.5):
            time.sleep(60)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    said = log.read_text()
    assert "rank 1 has waited" in said
    assert "test_long_runs.py" in said, "where it stands"


def test_data_that_comes_in_time_ends_nothing() -> None:
    with data_expected(rank=0, timeout=0.2):
        pass
    time.sleep(0.4)
