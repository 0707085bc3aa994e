"""Steps, floating-point operations, and the time of a run from a few real steps."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from axolotl_clo.inspection.model import Matrices


@dataclass(frozen=True)
class Steps:
    """Optimizer steps of a run, in all and in an epoch, and the epochs they come to."""

    total: int
    per_epoch: int
    epochs: float


def steps_by_examples(rows: int, rows_per_step: int, epochs: float, max_steps: int | None) -> Steps:
    """Steps as Axolotl counts them where batches have a number of examples.

    Args:
        rows: to train on.
        rows_per_step: micro-batch times accumulation times devices.
        epochs: `num_epochs`.
        max_steps: where it is set.
    """
    per_epoch = ceil(rows / rows_per_step)
    total = max_steps or ceil(rows * epochs / rows_per_step)
    return Steps(total, per_epoch, total * rows_per_step / rows)


def steps_by_batches(batches: int, accumulated: int, devices: int, epochs: float, max_steps: int | None) -> Steps:
    """Steps as the trainer counts them where batches have a number of tokens.

    Args:
        batches: micro-batches of an epoch, over all devices.
        accumulated: of them before a step, on each device.
        devices: how many.
        epochs: `num_epochs`.
        max_steps: where it is set.
    """
    per_epoch = ceil(batches / devices / accumulated)
    total = max_steps or ceil(per_epoch * epochs)
    return Steps(total, per_epoch, total / per_epoch)


def operations(matrices: Matrices, tokens: int, scored: int, epochs: float, reference: bool) -> float:
    """Floating-point operations of a run: 2 for each weight and token of a matrix product.

    With B weights in the decoder's matrices, A of them trained, H in the output head, T tokens and N scored ones of an
    epoch: F = 2 B T + 2 H N forward, F again backward to what goes into each product, and 2 A T to the weights that
    train; F once more for the reference. Attention scores and recomputation under checkpointing are left out.

    Args:
        matrices: B, A and H.
        tokens: T, as laid out.
        scored: N.
        epochs: how many.
        reference: whether rows are scored before.
    """
    forward = 2.0 * (matrices.body * tokens + matrices.head * scored)
    to_weights = 2.0 * (matrices.trained * tokens + matrices.head * matrices.head_trains * scored)
    return reference * forward + epochs * (2 * forward + to_weights)


@dataclass(frozen=True)
class Calibration:
    """Seconds that a few real steps took on this machine.

    device: what computed.
    micro_seconds, micro_tokens: of the micro-batches measured, forward and backward, with tokens as laid out.
    optimizer_seconds: of one optimizer step.
    reference_seconds, reference_tokens: of the rows scored without gradients.
    layout: how the trainer found that batches can be laid out.
    peak: bytes above the loaded model at the worst moment, None where the machine does not tell.
    """

    device: str
    micro_seconds: float
    micro_tokens: int
    optimizer_seconds: float
    reference_seconds: float
    reference_tokens: int
    layout: str
    peak: int | None

    def seconds(self, tokens: int, epochs: float, steps: int, devices: int) -> float:
        """Of a run, if devices like this one share its tokens evenly and without loss.

        Args:
            tokens: of an epoch, as laid out.
            epochs: how many.
            steps: optimizer steps.
            devices: how many.
        """
        micro = self.micro_seconds / self.micro_tokens * tokens * epochs
        reference = self.reference_seconds / self.reference_tokens * tokens if self.reference_tokens else 0.0
        return (micro + reference) / devices + self.optimizer_seconds * steps
