"""Plugins that give training over several processes a bad day."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from axolotl.integrations.base import BasePlugin


class NoNumber(BasePlugin):
    """The loss is no number in the second step on rank 1, in the third on all."""

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        terms_of = trainer._terms

        def spoilt(model: Any, inputs: Any) -> Any:
            terms, step, rank = terms_of(model, inputs), trainer.state.global_step, trainer.accelerator.process_index
            bad = step == 2 or (step == 1 and rank == 1)
            return terms._replace(nll=terms.nll * float("nan")) if bad else terms

        trainer._terms = spoilt


class Sigterm(BasePlugin):
    """A scheduler calls rank 1 in the second step."""

    step = 2

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        terms_of = trainer._terms

        def called(model: Any, inputs: Any) -> Any:
            if trainer.state.global_step == self.step - 1 and trainer.accelerator.process_index == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return terms_of(model, inputs)

        trainer._terms = called


class LateSigterm(Sigterm):
    """A scheduler calls rank 1 in the last step but one, of which the last brings word."""

    step = 3


class NoData(BasePlugin):
    """No batch comes to rank 1 in the second step."""

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        collate = trainer.data_collator

        def collated(rows: Any) -> Any:
            # One batch is fetched ahead.
            if trainer.state.global_step == 1 and trainer.accelerator.process_index == 1:
                time.sleep(600)
            return collate(rows)

        trainer.data_collator = collated


class DeathInCheckpoint(BasePlugin):
    """Rank 1 dies before it has written its part of a checkpoint."""

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        if trainer.accelerator.process_index == 1:
            trainer._save_rng_state = lambda _folder: os._exit(9)
