"""What CLO saves, and how each saving is switched off in a process that measures.

Where there is an option for it, the option is used; where there is none, the package's own code is replaced in the
running process, so that no option exists for measuring alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Patch = Callable[[Any, str, Any], None]  # `setattr`, or what undoes itself after a test


@dataclass(frozen=True)
class Saving:
    """One saving, by how to go without it.

    label: what the run without it is called in the table.
    options: of `clo:`, that switch it off.
    patch: switches it off in this process, given the function that sets an attribute.
    """

    label: str
    options: dict[str, Any] = field(default_factory=dict)
    patch: Callable[[Patch], None] = lambda _: None


def _pad(patch: Patch) -> None:
    from axolotl_clo import scoring

    patch(scoring, "packing_is_exact", lambda *_, **__: False)
    patch(scoring.ScoringTrainer, "_cannot_share", lambda *_: "sequences are padded")


def _materialise_logits(patch: Patch) -> None:
    from axolotl_clo import logprobs
    from axolotl_clo.scoring import ScoringTrainer

    accepts = logprobs._accepts
    patch(logprobs, "_accepts", lambda model, name: name != "logits_to_keep" and accepts(model, name))
    patch(ScoringTrainer, "_scores_in_pieces", lambda *_: False)


def _score_reference_each_step(patch: Patch) -> None:
    import torch

    from axolotl_clo.scoring import ScoringTrainer

    train = ScoringTrainer.train

    def train_beside_a_copy(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.second_model = copy.deepcopy(self.model).eval().requires_grad_(False)
        return train(self, *args, **kwargs)

    def score(self: Any, _model: Any, inputs: Any) -> Any:
        with torch.no_grad():
            return self._score_batch(self.second_model, inputs)

    patch(ScoringTrainer, "train", train_beside_a_copy)
    patch(ScoringTrainer, "_precomputes", False)
    patch(ScoringTrainer, "_without_adapter", score)


# One entry each; the name is what `--runs` takes.
SAVINGS = {
    "unshared": Saving("CLO, each prompt twice", options={"share_prompts": False}),
    "padded": Saving("CLO, padded (and each prompt twice)", patch=_pad),
    "full-logits": Saving("CLO, logits of all positions at once", patch=_materialise_logits),
    "reference-each-step": Saving("CLO, reference in each step", patch=_score_reference_each_step),
}


def clo_options(off: Iterable[str]) -> dict[str, Any]:
    """Options of `clo:` for a run without these savings."""
    return {key: value for name in off for key, value in SAVINGS[name].options.items()}


def switch_off(off: Iterable[str], patch: Patch = setattr) -> None:
    """Do in this process what no option does."""
    for name in off:
        SAVINGS[name].patch(patch)
