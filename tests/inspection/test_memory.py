"""Parts of the memory, against figures of the ZeRO paper and by hand."""

import pytest

from axolotl_clo.inspection.config import Engine
from axolotl_clo.inspection.duration import operations, steps_by_batches, steps_by_examples
from axolotl_clo.inspection.ledger import Peak
from axolotl_clo.inspection.memory import Model, estimate, optimizer_bytes, piece_of_logits
from axolotl_clo.inspection.model import Matrices
from axolotl_clo.inspection.simulate import Step

GB = 10**9
BILLIONS = 7_500_000_000
# bfloat16 weights that all train; activations are not in the paper's figure.
PAPER = Model(weights=2 * BILLIONS, trained=2 * BILLIONS, trained_count=BILLIONS, block=0)
NO_ACTIVATIONS = Step(0, Peak(total=2 * BILLIONS, kept=0, named=2 * BILLIONS), 2 * BILLIONS)


@pytest.mark.parametrize(("stage", "expected"), [("0", 120), ("1", 31.4), ("2", 16.6), ("3", 1.9)])
def test_zero_shards_as_its_paper_says(stage: str, expected: float) -> None:
    """Figure 1 of arXiv 1910.02054: 7.5 billion parameters, 64 devices, mixed precision, Adam."""
    found = estimate(PAPER, Engine(64, stage), "adamw_torch_fused", NO_ACTIVATIONS)
    assert found.moments["forward and backward"] / GB == pytest.approx(expected, rel=0.02)


def test_one_device_without_an_engine_keeps_moments_in_the_dtype_of_the_weights() -> None:
    found = estimate(PAPER, Engine(), "adamw_torch_fused", NO_ACTIVATIONS)
    assert (found.weights, found.optimizer, found.gradients) == tuple(n * BILLIONS for n in (2, 4, 2))
    assert found.total == 8 * BILLIONS


def test_frozen_weights_cost_neither_gradients_nor_state_and_are_sharded_too() -> None:
    part = Model(weights=2 * BILLIONS, trained=2 * GB, trained_count=GB, block=GB // 10)
    step = Step(0, Peak(total=2 * GB, kept=0, named=2 * GB), 2 * GB)
    one = estimate(part, Engine(8, "2"), "adamw_torch", step)
    assert one.optimizer == pytest.approx(12 * GB / 8)
    three = estimate(part, Engine(8, "3"), "adamw_torch", step)
    assert three.weights == pytest.approx(2 * BILLIONS / 8 + 2 * GB / 10)


def test_what_is_offloaded_is_on_the_host() -> None:
    there = estimate(PAPER, Engine(4, "3", offload_optimizer=True, offload_weights=True), "adamw_torch", NO_ACTIVATIONS)
    assert there.optimizer == 0
    assert there.host == pytest.approx((12 + 2) * BILLIONS / 4)


def test_the_worst_moment_is_the_total_and_its_parts_add_up() -> None:
    busy = Step(20 * GB, Peak(total=40 * GB, kept=20 * GB, named=GB), 2 * BILLIONS)
    for step, reference, moment in (
        (busy, 0, "forward and backward"),
        (Step(0, Peak(0, 0, 0), 2 * BILLIONS), 0, "optimizer step"),
        (busy, 90 * GB, "reference"),
    ):
        found = estimate(PAPER, Engine(), "adamw_torch_fused", step, reference)
        assert max(found.moments, key=lambda name: found.moments[name]) == moment
        parts = (found.weights, found.gradients, found.optimizer, found.activations, found.working, found.buffers)
        assert sum(parts) == found.total == found.moments[moment]


@pytest.mark.parametrize(
    ("name", "bytes_a_weight", "known"),
    [
        ("adamw_torch", 4, True),
        ("adamw_torch_fused", 4, True),
        ("adamw_bnb_8bit", 2 * (1 + 4 / 256), True),
        ("paged_adamw_8bit", 2 * (1 + 4 / 256), True),
        ("lion_8bit", 1 + 4 / 256, True),
        ("sgd", 0, True),
        ("of_a_friend", 4, False),
    ],
)
def test_state_of_optimizers(name: str, bytes_a_weight: float, known: bool) -> None:
    found, is_known = optimizer_bytes(name, PAPER)
    assert found == pytest.approx(bytes_a_weight * BILLIONS)
    assert is_known is known


def test_logits_are_those_of_a_piece() -> None:
    assert piece_of_logits(50_000, 2**22, scored=10_000, in_pieces=True) == 83 * 50_000 * 4
    assert piece_of_logits(50_000, 2**22, scored=10, in_pieces=True) == 10 * 50_000 * 4
    assert piece_of_logits(50_000, 2**22, scored=10_000, in_pieces=False) == 10_000 * 50_000 * 4


def test_steps_and_epochs() -> None:
    assert vars(steps_by_examples(100, 16, 2, None)) == {"total": 13, "per_epoch": 7, "epochs": 2.08}
    assert steps_by_examples(100, 10, 3, 5).epochs == 0.5
    assert vars(steps_by_batches(16, 2, 4, 3, None)) == {"total": 6, "per_epoch": 2, "epochs": 3}


def test_operations_are_those_of_the_benchmarks_floor() -> None:
    products = Matrices(body=106, trained=27, head=28, head_trains=False)
    forward = 2 * 106 * 1000 + 2 * 28 * 600
    assert operations(products, 1000, 600, 1, reference=True) == 3 * forward + 2 * 27 * 1000
    assert operations(products, 1000, 600, 3, reference=False) == 3 * (2 * forward + 2 * 27 * 1000)
