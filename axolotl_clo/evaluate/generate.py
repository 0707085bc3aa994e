"""`axolotl-clo generate`: a model's answers to a file of prompts."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from axolotl_clo.evaluate.answers import FORMAT, about_file
from axolotl_clo.evaluate.journal import Journal
from axolotl_clo.evaluate.models import ModelOptions, Reply, describe, open_model
from axolotl_clo.evaluate.prompts import Prompt, digest, read_prompts
from axolotl_clo.evaluate.shots import Shots, as_turns


@dataclass(frozen=True)
class PromptOptions:
    """What is asked.

    Attributes:
        source: as `read_prompts` takes it.
        languages: of these, the languages to take; all by default.
        top: take the first so many rows.
        shots: examples before each prompt.
        shots_from: where they come from; None takes the training part of the starter rows.
    """

    source: str
    languages: tuple[str, ...] = ()
    top: int | None = None
    shots: int = 0
    shots_from: str | None = None


class Generation:
    """One run.

    Attributes:
        prompts: what is asked, with the counts of what is left out.
    """

    def __init__(self, asked: PromptOptions, model: ModelOptions, command: str = "") -> None:
        """Read prompts and shots; the model is loaded when there is something to answer.

        Raises:
            ValueError: names the option, file or row at fault.
        """
        self._asked, self._options, self._command = asked, model, command
        self.prompts = read_prompts(asked.source, asked.languages, asked.top)
        self._shots = Shots(asked.shots, asked.shots_from, self.prompts.rows, asked.source, model.seed)

    def run(self, out: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
        """Answer what is not answered yet, and write the file.

        Args:
            out: the answers file.
            on_progress: told how many prompts are answered, of how many.

        Returns:
            What stands beside the file.

        Raises:
            OutputError: the file cannot be written, or belongs to another run.
            ValueError, EngineError: the model cannot be loaded, or cannot go on.
        """
        journal = Journal(out, about_file(out), self._run())
        with journal.locked():
            if about := journal.finished():
                return about
            before = journal.results()
            loaded: dict[str, Any] = next((row["loaded"] for row in before if "loaded" in row), {})
            rows = {(row["id"], row["language"]): row for row in before if "id" in row}
            left = [prompt for prompt in self.prompts.rows if (prompt.id, prompt.language) not in rows]
            if left:
                model = open_model(self._options)
                on_progress(len(rows), len(self.prompts.rows))
                try:
                    if not loaded:
                        loaded = model.about
                        journal.append([{"loaded": loaded}])
                    turns = [as_turns(prompt, self._shots.of(prompt)) for prompt in left]
                    for batch in model.answers(turns):
                        found = [self._row(left[place], reply) for place, reply in batch]
                        journal.append(found)
                        rows |= {(row["id"], row["language"]): row for row in found}
                        on_progress(len(rows), len(self.prompts.rows))
                finally:
                    model.close()
            ordered = [rows[prompt.id, prompt.language] for prompt in self.prompts.rows]
            return journal.finish(ordered, self._about(loaded, len(ordered)))

    def _run(self) -> dict[str, Any]:
        """All that shapes the answers."""
        return {
            **describe(self._options),
            "prompts": self.prompts.digest(),
            "shots": self._asked.shots,
            "shots_from": digest(self._shots.rows) if self._asked.shots else None,
        }

    def _about(self, loaded: Mapping[str, Any], rows: int) -> dict[str, Any]:
        options, asked = self._options, self._asked
        return {
            "format": FORMAT,
            "model": options.model if options.adapter is None else f"{options.model} + {options.adapter}",
            "options": {
                "prompts": asked.source,
                "shots": asked.shots,
                "shots_from": self._shots.source if asked.shots else None,
                "max_new_tokens": options.max_new_tokens,
                "temperature": options.temperature,
                "seed": options.seed,
                **loaded,
            },
            "command": self._command,
            "versions": versions("openai") if options.server else versions("torch", "transformers", "peft"),
            "rows": rows,
            "left_out": self.prompts.left_out,
        }

    def _row(self, prompt: Prompt, reply: Reply) -> dict[str, Any]:
        row = {
            "id": prompt.id,
            "language": prompt.language,
            "prompt": prompt.text,
            "answer": reply.answer,
            "shots": self._asked.shots,
        }
        more = {
            "text": reply.text if reply.text.strip() != reply.answer else None,
            "cut_off": reply.cut_off or None,
            "problem": reply.problem,
        }
        return row | {key: value for key, value in more.items() if value is not None}


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, of this package and of those that are there of the others."""
    found = {"python": platform.python_version()}
    for package in ("axolotl-clo", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
