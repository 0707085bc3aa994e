"""Micro-batches by tokens: nothing lost, nothing above the budget, the same order for one seed."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from conftest import load_config, logged, train, train_on_two_ranks, weights
from hypothesis import given
from hypothesis import strategies as st

from axolotl_clo.batches import TokenBatchSampler, pack
from axolotl_clo.collator import SEQUENCES

Write = Callable[..., Path]

LENGTHS = [random.Random(1).randint(40, 1500) for _ in range(500)]


def tokens(batch: list[int]) -> int:
    return sum(LENGTHS[row] for row in batch)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 5))
def test_packing_keeps_every_item_within_the_budget(costs: list[int], multiple: int) -> None:
    batches = pack(costs, 100, multiple)
    assert len(batches) % multiple == 0
    assert all(sum(costs[i] for i in batch) <= 100 for batch in batches)
    seen = Counter(chain.from_iterable(batches))
    assert set(seen) == set(range(len(costs)))
    if len(batches) <= len(costs):
        assert set(seen.values()) == {1}


def test_packing_fills_its_batches() -> None:
    assert len(pack(LENGTHS, 8000)) <= math.ceil(sum(LENGTHS) / 8000) + 1


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_an_epoch_holds_each_row_once_in_even_steps(ranks: int) -> None:
    sampler = TokenBatchSampler(LENGTHS, 4000, ranks=ranks, seed=5)
    shares = [list(BatchSamplerShard(sampler, ranks, rank, even_batches=False)) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(sampler) // ranks}
    assert sorted(chain.from_iterable(chain.from_iterable(shares))) == list(range(len(LENGTHS)))
    for step in zip(*shares, strict=True):
        sizes = [tokens(batch) for batch in step]
        assert max(sizes) <= 4000
        assert max(sizes) - min(sizes) < 400
    assert not sampler.repeated


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def epochs(seed: int) -> list[list[list[int]]]:
        number = iter(range(3))
        sampler = TokenBatchSampler(LENGTHS, 4000, seed=seed, epoch=lambda: next(number))
        return [list(sampler) for _ in range(3)]

    first, again, other = epochs(5), epochs(5), epochs(6)
    assert first == again
    assert first != other
    assert len({len(epoch) for epoch in first}) == 1
    together = [{frozenset(batch) for batch in epoch} for epoch in first]
    assert len(together[0] & together[1]) < 0.2 * len(together[0])  # other rows meet


def test_too_few_rows_for_the_ranks_come_twice() -> None:
    sampler = TokenBatchSampler([10, 10, 10], 10, ranks=2)
    assert len(sampler) == 4
    assert sampler.repeated == 1


# ---- in training ----


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int], int]]:
    """(step, row numbers, tokens) of each micro-batch."""
    from axolotl_clo.trainer import CLOTrainer

    batches: list[tuple[int, list[int], int]] = []
    compute_loss = CLOTrainer.compute_loss

    def spy(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        batches.append((self.state.global_step, inputs["example_index"].tolist(), inputs["input_ids"].numel()))
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(CLOTrainer, "compute_loss", spy)
    return batches


def budgeted(**clo: Any) -> dict[str, Any]:
    return {"clo": {"target_lang": "de", **clo}, "micro_batch_size": None, "max_steps": None}


def prepared(write_config: Write) -> Any:
    from axolotl.common.datasets import load_datasets

    return load_datasets(cfg=load_config(write_config())).train_dataset


def longest(write_config: Write) -> int:
    return max(prepared(write_config)["length"])


def test_epochs_steps_and_rows(write_config: Write, seen: list[Any]) -> None:
    budget = 2 * longest(write_config)
    trainer = train(
        write_config(**budgeted(tokens_per_batch=budget), num_epochs=3, gradient_accumulation_steps=2, logging_steps=1)
    )
    in_an_epoch = len(seen) // 3
    assert 1 < in_an_epoch < 12
    steps = math.ceil(in_an_epoch / 2)
    assert trainer.state.global_step == trainer.state.max_steps == 3 * steps
    for epoch in range(3):
        mine = seen[epoch * in_an_epoch : (epoch + 1) * in_an_epoch]
        assert sorted(chain.from_iterable(rows for _, rows, _ in mine)) == list(range(12))
        assert {step for step, *_ in mine} == set(range(epoch * steps, (epoch + 1) * steps))
    lengths = trainer.train_dataset["length"]
    assert all(sum(lengths[row] for row in rows) <= budget for _, rows, _ in seen)


def test_the_loss_is_the_mean_over_the_whole_step(write_config: Write, seen: list[Any]) -> None:
    """One step over all rows is the same in one batch and in several by tokens."""
    budget = 2 * longest(write_config)
    plain = train(write_config(micro_batch_size=12, max_steps=1))
    seen.clear()
    by_tokens = train(
        write_config(**budgeted(tokens_per_batch=budget) | {"max_steps": 1}, gradient_accumulation_steps=64)
    )
    assert len(seen) > 1
    assert logged(by_tokens, "loss") == pytest.approx(logged(plain, "loss"), abs=1e-5)
    assert logged(by_tokens, "clo/nll") == pytest.approx(logged(plain, "clo/nll"), abs=2e-5)


def test_resuming_sees_what_was_left(write_config: Write, seen: list[Any], tmp_path: Path) -> None:
    options = budgeted(tokens_per_batch=2 * longest(write_config)) | {"num_epochs": 2, "save_steps": 3}
    options |= {"save_strategy": None, "output_dir": str(tmp_path / "run")}
    whole = train(write_config(**options))
    expected, weights_expected = list(seen), weights(tmp_path / "run")
    assert whole.state.global_step > 6
    for resumed_from in (3, 6):  # within the first epoch and the second
        seen.clear()
        checkpoint = tmp_path / "run" / f"checkpoint-{resumed_from}"
        train(write_config(**options), resume_from_checkpoint=str(checkpoint))
        assert seen == expected[resumed_from:]
        for name, value in weights(tmp_path / "run").items():
            torch.testing.assert_close(value, weights_expected[name], atol=1e-6, rtol=0)


def test_warmup_is_a_share_of_the_steps_there_are(write_config: Write) -> None:
    budget = 2 * longest(write_config)
    trainer = train(
        write_config(**budgeted(tokens_per_batch=budget), num_epochs=4, warmup_ratio=0.5, lr_scheduler="linear")
    )
    rates = logged(trainer, "learning_rate")
    assert len(rates) == trainer.state.max_steps
    assert abs(rates.index(max(rates)) - len(rates) / 2) <= 1


@pytest.mark.bad_input("config")
def test_a_row_above_the_budget_is_named(write_config: Write) -> None:
    most = longest(write_config)
    with pytest.raises(ValueError, match=rf"tokens_per_batch: {most - 1} is less than {most}, the tokens of row \d+"):
        train(write_config(**budgeted(tokens_per_batch=most - 1)))


@pytest.mark.bad_input("config")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_batch_size": 4}, "forms the batches, not `micro_batch_size: 4`; remove it"),
        ({"auto_find_batch_size": True}, "not `auto_find_batch_size: True`"),
        ({"curriculum_sampling": True}, "not `curriculum_sampling: True`"),
    ],
)
def test_what_forms_batches_otherwise_is_refused(options: dict[str, Any], message: str, write_config: Write) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write_config(**budgeted(tokens_per_batch=4096) | options))


@pytest.mark.process
@pytest.mark.skipif(
    torch.version.cuda is not None and not torch.cuda.is_available(),
    reason="Axolotl asks a CUDA build of torch for a driver as soon as there are two processes",
)
def test_two_ranks_share_an_epoch(write_config: Write, tmp_path: Path) -> None:
    """Two ranks take the steps that one takes with twice the accumulation, as one step is the whole epoch."""
    options = budgeted(tokens_per_batch=2 * longest(write_config)) | {"gradient_accumulation_steps": 64}
    options |= {"optimizer": "sgd", "learning_rate": 0.1, "num_epochs": 2}
    one = train(write_config(**options, output_dir=str(tmp_path / "one")))
    config = write_config("two.yml", **options, output_dir=str(tmp_path / "two"))
    said = train_on_two_ranks(config)
    assert logged(one, "loss")[0] == pytest.approx(float(said.split("RANK0 loss ")[1].split()[0]), abs=1e-5)
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, atol=1e-5, rtol=0)


def test_the_columns_of_a_row_count_all_four_sequences(write_config: Write) -> None:
    for row in prepared(write_config):
        assert row["length"] == sum(len(row[name]) for name in SEQUENCES)
