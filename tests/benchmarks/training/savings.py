"""What CLO saves, and how each saving is switched off in a process that measures.

Where there is an option for it, the option is used; where there is none, the package's own code is replaced in the
running process, so that no option exists for measuring alone.
"""

from __future__ import annotations

import copy
import sys
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
    from axolotl_clo.scoring import ScoringTrainer

    patch(ScoringTrainer, "_find_layout", lambda *_: "padded")


def _materialise_logits(patch: Patch) -> None:
    import axolotl_clo.trainer  # noqa: F401 (and with it all that could have taken a name)
    from axolotl_clo import logprobs

    accepts = logprobs._accepts
    patch(logprobs, "_accepts", lambda model, name: name != "logits_to_keep" and accepts(model, name))
    # Scores in pieces of the output head, wherever the package took the function's name.
    for name, module in list(sys.modules.items()):
        if name.startswith("axolotl_clo.") and hasattr(module, "let_score"):
            patch(module, "let_score", lambda _: False)


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
    "full-logits": Saving("CLO, logits of all positions", patch=_materialise_logits),
    "reference-each-step": Saving("CLO, reference in each step", patch=_score_reference_each_step),
}


def clo_options(off: Iterable[str]) -> dict[str, Any]:
    """Options of `clo:` for a run without these savings."""
    return {key: value for name in off for key, value in SAVINGS[name].options.items()}


def switch_off(off: Iterable[str], patch: Patch = setattr) -> None:
    """Do in this process what no option does."""
    for name in off:
        SAVINGS[name].patch(patch)
