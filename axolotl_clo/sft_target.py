"""The prompt strategy `type: axolotl_clo.sft_target`: SFT on the target languages of parallel rows alone."""

from __future__ import annotations

from typing import Any

from axolotl_clo.cross_lingual import strategy_options
from axolotl_clo.sft import SFTStrategy


def load(tokenizer: Any, cfg: Any, ds_cfg: Any = None) -> SFTStrategy:
    """Called by Axolotl; see `axolotl_clo.sft`."""
    return SFTStrategy(("target_chosen",), **strategy_options(tokenizer, cfg, ds_cfg))
