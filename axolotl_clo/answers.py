"""Answers to held-out prompts at every evaluation: in which language does the model reply while it learns?

Preference and loss only say which of two given responses is the likelier one; a model can prefer the right language and
still begin its own answers in the other.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from axolotl_clo.evaluate.continuations import continuations
from axolotl_clo.evaluate.language import LANGUAGES, LanguageIdentifier, supported
from axolotl_clo.schema import CLOConfig

MAX_NEW_TOKENS = 64
_SHOWN_OF_PROMPT, _SHOWN_OF_ANSWER = 80, 160  # characters in the console


@dataclass(frozen=True)
class Answer:
    """A prompt and what the model replied.

    Attributes:
        language: in which it was asked.
        prompt: what it was asked, as the template renders it.
        text: its reply.
        identified: the language of the reply, None where it is unknown.
    """

    language: str
    prompt: str
    text: str = ""
    identified: str | None = None


class HeldOutPrompts:
    """Prompts of held-out rows, each in the source language and in the row's target language.

    Args:
        rows: prepared rows (see `CrossLingualStrategy.wrap_dataset`), of which some are taken, evenly spread.
        clo: the languages and how many rows to take.
        tokenizer: of the model.
    """

    def __init__(self, rows: Any, clo: CLOConfig, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        places = range(0, len(rows), max(1, len(rows) // clo.eval_answers)) if len(rows) else range(0)
        asked: dict[tuple[int, ...], str] = {}
        last: Counter[int] = Counter()
        for row in (rows[place] for place in places[: clo.eval_answers]):
            for side, language in (("source", clo.source_lang), ("target", clo.target_langs[row["language"]])):
                tokens, length = row[f"{side}_chosen"], row["prompt_lengths"][0 if side == "source" else 2]
                if supported(language) and tokens:
                    asked[tuple(tokens[:length])] = language
                    last[tokens[-1]] += 1
        self.prompts = list(asked)
        self.asked = [Answer(language, self._text(prompt)) for prompt, language in asked.items()]
        # What ends a response in the template need not be the tokenizer's own end of sequence.
        self._ends = {tokenizer.eos_token_id, *(token for token, _ in last.most_common(1))}
        known = dict.fromkeys(answer.language for answer in self.asked)
        further = LANGUAGES if set(known) <= set(LANGUAGES) else ()
        self._identifier = LanguageIdentifier([*known, *further]) if known else None

    def ask(self, model: Any, synced: bool) -> list[Answer]:
        """Greedy answers of at most `MAX_NEW_TOKENS` tokens to all prompts, in one batch.

        Args:
            model: what generates, in evaluation mode.
            synced: whether every rank must take the same number of steps, as where parameters are sharded.
        """
        if self._identifier is None:
            return []
        pad = self.tokenizer.pad_token_id
        output = continuations(
            model,
            self.prompts,
            self.tokenizer.eos_token_id if pad is None else pad,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=sorted(self._ends),
            synced_gpus=synced,
        )
        texts = [self._text(tokens) for tokens in output]
        found = self._identifier.identify_many(texts)
        return [
            replace(answer, text=text.strip(), identified=language)
            for answer, text, language in zip(self.asked, texts, found, strict=True)
        ]

    def _text(self, tokens: Any) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def fidelity(answers: Sequence[Answer], clo: CLOConfig) -> dict[str, float]:
    """Share of answers (0 to 1) in the language of their prompt: for the source, for all targets, for each of several.

    A reply whose language is unknown, such as an empty one, counts as wrong.
    """
    right: dict[str, list[bool]] = {}
    for answer in answers:
        names = ["source"] if answer.language == clo.source_lang else ["target"]
        if answer.language != clo.source_lang and len(clo.target_langs) > 1:
            names.append(f"target_{answer.language}")
        for name in names:
            right.setdefault(name, []).append(answer.identified == answer.language)
    return {f"clo/fidelity_{name}": sum(values) / len(values) for name, values in right.items()}


def show(answers: Sequence[Answer], step: int) -> None:
    """Print the table."""
    table = Table("asked", "answered", "prompt", "answer", title=f"Held-out prompts, step {step}", title_justify="left")
    for answer in answers:
        right = answer.identified == answer.language
        found = Text(answer.identified or "unknown", style="green" if right else "red")
        table.add_row(answer.language, found, Text(_end(answer.prompt)), Text(_start(answer.text)))
    Console().print(table)


def track(answers: Sequence[Answer], step: int, callbacks: Sequence[Any]) -> None:
    """Give the table to the trackers among a trainer's callbacks: W&B and TensorBoard."""
    columns = ["step", "asked", "answered", "prompt", "answer"]
    rows = [[str(step), a.language, a.identified or "unknown", a.prompt, a.text] for a in answers]
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.log({"clo/answers": wandb.Table(columns=columns, data=rows)}, commit=False)
    for writer in filter(None, (getattr(callback, "tb_writer", None) for callback in callbacks)):
        lines = [columns, ["---"] * len(columns), *([_cell(text) for text in row] for row in rows)]
        writer.add_text("clo/answers", "\n".join(f"| {' | '.join(line)} |" for line in lines), step)


def _end(prompt: str) -> str:
    """What was asked stands at the end of a rendered prompt."""
    words = " ".join(prompt.split())
    return words if len(words) <= _SHOWN_OF_PROMPT else f"… {words[-_SHOWN_OF_PROMPT:]}"


def _start(answer: str) -> str:
    words = " ".join(answer.split())
    return words if len(words) <= _SHOWN_OF_ANSWER else f"{words[:_SHOWN_OF_ANSWER]} …"


def _cell(text: str) -> str:
    """Text in a cell of a Markdown table, where it is shown as HTML."""
    return escape(text).replace("|", "&#124;").replace("\n", "<br>")
