"""k-shot prompts: examples with their responses before what is asked.

The second paper (Lee and Park) compares k = 0 and k = 5. Which examples stand before a prompt depends on the seed and
the prompt's id alone, so that all models see the same ones, in a run that was killed as well.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from axolotl_clo.evaluate.prompts import Prompt, read_prompts

Turns = list[dict[str, str]]

ASKED, ANSWERED = "Q:", "A:"
"""Marks of a prompt and a response in plain text, for models without a chat template."""

END_OF_ANSWER = f"\n{ASKED}"
"""Where a model without a chat template goes on with a question of its own."""


class Shots:
    """Draws examples.

    Args:
        k: how many stand before each prompt.
        source: where they come from, as `read_prompts` takes it; None takes the training part of the starter rows.
        prompts: what will be asked.
        prompt_source: where that comes from.
        seed: of the draw.

    Raises:
        ValueError: there are too few examples in one of the languages.
    """

    def __init__(self, k: int, source: str | None, prompts: Sequence[Prompt], prompt_source: str, seed: int) -> None:
        self.k, self._seed = k, seed
        self.rows: list[Prompt] = []
        self._same_source = source == prompt_source
        self._of: dict[str, list[Prompt]] = defaultdict(list)
        if not k:
            return
        languages = list(dict.fromkeys(prompt.language for prompt in prompts))
        self.source = source or f"starter-train:{','.join(languages)}"
        try:
            found = read_prompts(self.source, () if ":" in self.source else languages)
        except ValueError as error:
            hint = "" if source else " (--shots-from FILE takes others)"
            raise ValueError(f"--shots-from: {error}{hint}") from error
        self.rows = [row for row in found.rows if row.response is not None]
        for row in self.rows:
            self._of[row.language].append(row)
        for prompt in prompts:
            if len(self._others(prompt)) < k:
                raise ValueError(
                    f"--shots {k}: {self.source} has {len(self._others(prompt))} rows with a response in "
                    f"{prompt.language!r} beside prompt {prompt.id!r}; give fewer --shots, or other --shots-from"
                )

    def of(self, prompt: Prompt) -> list[Prompt]:
        """The examples that stand before a prompt, never itself."""
        if not self.k:
            return []
        return random.Random(f"{self._seed} {prompt.id}").sample(self._others(prompt), self.k)  # nosec B311 # no secret: reproducible draws

    def _others(self, prompt: Prompt) -> list[Prompt]:
        text = prompt.text.strip()
        return [
            row
            for row in self._of[prompt.language]
            if row.text.strip() != text and not (self._same_source and row.id == prompt.id)
        ]


def as_turns(prompt: Prompt, shots: Sequence[Prompt]) -> Turns:
    """Examples as earlier turns of a chat, then the prompt."""
    turns = []
    for shot in shots:
        turns += [{"role": "user", "content": shot.text}, {"role": "assistant", "content": str(shot.response)}]
    return [*turns, {"role": "user", "content": prompt.text}]


def as_text(turns: Turns) -> str:
    """The same as plain text, for a model without a chat template: questions and answers, up to the answer to come."""
    lines = [f"{ASKED if turn['role'] == 'user' else ANSWERED} {turn['content'].strip()}\n" for turn in turns]
    return "".join(line if i % 2 == 0 else f"{line}\n" for i, line in enumerate(lines)) + ANSWERED
