"""`axolotl-clo judge`: which of two models answers better, by a third.

As AlpacaEval has it (Li et al. 2023), a judge sees a prompt with both answers and names the better one; the win rate is
the mean of its verdicts, a tie counting half. Here every pair is shown in both orders, as judges favour a place: a
score of 1 says that model a won in both, 0.75 that it won in one and tied in the other, 0.5 that both were ties or that
the verdicts cancel out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_clo.evaluate import verdicts
from axolotl_clo.evaluate.answers import Answers, Key, read_answers
from axolotl_clo.evaluate.generate import versions
from axolotl_clo.evaluate.journal import Journal
from axolotl_clo.evaluate.win_rate import Judged, summarise
from axolotl_clo.translate.engines import EngineOptions, Failure, chat

FORMAT = "axolotl-clo judge 1"
ORDERS = ("ab", "ba")

NO_VERDICT, REFUSED = "no verdict from the judge", "refused by the judge's server"


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    id: str
    language: str
    prompt: str
    a: str
    b: str

    def rule(self) -> tuple[float, str] | None:
        """The score where nobody need be asked, and why."""
        a, b = self.a.strip(), self.b.strip()
        if a == b:
            return 0.5, "both answers are the same" if a else "both answers are empty"
        if not a or not b:
            return (0.0, "the first answer is empty") if not a else (1.0, "the second answer is empty")
        return None


@dataclass(frozen=True)
class Estimate:
    """What is left to ask.

    Attributes:
        requests: two for each pair.
        tokens: of prompts, one for 4 bytes of UTF-8, and of verdicts; more where a reply has to be asked for again.
    """

    requests: int
    tokens: int


class Judgement:
    """One run.

    Attributes:
        a: answers of the first model, whose wins are counted.
        b: answers of the second.
        pairs: what is compared.
        left_out: prompts that one of them does not answer, by reason.
    """

    def __init__(
        self,
        a: Path,
        b: Path,
        judge: EngineOptions,
        common: bool = False,
        max_answer_chars: int = 20_000,
        command: str = "",
    ) -> None:
        """Read both files.

        Args:
            a: answers of the first model.
            b: answers of the second.
            judge: the judge and its server.
            common: whether prompts that only one model answers are left out; else they are an error.
            max_answer_chars: longest answer and prompt that a judge is shown, in characters; the rest is cut.
            command: what the user typed.

        Raises:
            ValueError: a file cannot be read, or the two do not answer the same prompts; says what to do.
        """
        self.a, self.b = read_answers(a), read_answers(b)
        self._options, self._limit, self._command = judge, max_answer_chars, command
        self.pairs, self.left_out = _pairs(self.a, self.b, common)

    def estimate(self, done: Mapping[tuple[Key, str], Any] | None = None) -> Estimate:
        """What is left to ask, and what it costs."""
        asked = [messages for _, _, messages, _ in self._questions(done or {})]
        prompt = sum(chat.estimate("".join(turn["content"] for turn in messages)) for messages in asked)
        return Estimate(len(asked), prompt + verdicts.VERDICT_TOKENS * len(asked))

    def run(
        self,
        out: Path,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        confirm: Callable[[Estimate], None] = lambda estimate: None,
    ) -> dict[str, Any]:
        """Ask what has not been asked yet, and write `verdicts.jsonl` and `judge.json`.

        Args:
            out: folder of the two.
            on_progress: told how many verdicts there are, of how many.
            confirm: told what the rest costs before anything is asked; raises to stop.

        Returns:
            What `judge.json` holds.

        Raises:
            OutputError: the folder cannot be written, or belongs to another run.
            ValueError: an option of the judge is wrong.
            EngineError: the server cannot be reached or refuses, or the token budget is used up.
        """
        journal = Journal(out / "verdicts.jsonl", out / "judge.json", self._run())
        with journal.locked():
            if about := journal.finished():
                return about
            found = {((row["id"], row["language"]), row["order"]): row for row in journal.results()}
            estimate = self.estimate(found)
            total = len(found) + estimate.requests
            if estimate.requests:
                confirm(estimate)
                on_progress(len(found), total)
                for row in self._ask(found):
                    journal.append([row])
                    found[(row["id"], row["language"]), row["order"]] = row
                    on_progress(len(found), total)
            rows = [self._verdict(pair, found) for pair in self.pairs]
            return journal.finish(rows, self._about(rows))

    def _ask(self, done: Mapping[tuple[Key, str], Any]) -> Iterator[dict[str, Any]]:
        from axolotl_clo.translate.engines.completions import Completions, Question

        asked = list(self._questions(done))
        completions = Completions(self._options)
        try:
            questions = [Question(messages, verdicts.read, again) for _, _, messages, again in asked]
            for place, verdict in completions.each(questions):
                pair, order, _, _ = asked[place]
                row = {"id": pair.id, "language": pair.language, "order": order}
                if isinstance(verdict, Failure):
                    problem = REFUSED if verdict.reason.startswith("the server refuses") else NO_VERDICT
                    yield row | {"problem": problem, "detail": verdict.reason}
                else:
                    better = "tie" if verdict.better == "tie" else order[int(verdict.better) - 1]
                    of = dict(zip(order, verdict.languages, strict=True))
                    yield row | {"better": better, "languages": [of["a"], of["b"]], "reason": verdict.reason}
        finally:
            completions.close()

    def _questions(
        self, done: Mapping[tuple[Key, str], Any]
    ) -> Iterator[tuple[Pair, str, list[dict[str, str]], list[dict[str, str]]]]:
        for pair in self.pairs:
            if pair.rule():
                continue
            prompt, a, b = (verdicts.shown(text, self._limit)[0] for text in (pair.prompt, pair.a, pair.b))
            for order in ORDERS:
                if ((pair.id, pair.language), order) not in done:
                    first, second = (a, b) if order == "ab" else (b, a)
                    yield pair, order, *verdicts.ask(prompt, first, second, pair.language)

    def _verdict(self, pair: Pair, found: Mapping[tuple[Key, str], Mapping[str, Any]]) -> dict[str, Any]:
        """The line of `verdicts.jsonl`."""
        line: dict[str, Any] = {"id": pair.id, "language": pair.language, "lengths": [len(pair.a), len(pair.b)]}
        if rule := pair.rule():
            score, why = rule
            return line | {"outcome": _outcome(score), "score": score, "by_rule": why}
        orders = [found[(pair.id, pair.language), order] for order in ORDERS]
        for name, row in zip(("first", "second"), orders, strict=True):
            line[name] = {key: row[key] for key in ("better", "languages", "reason", "problem", "detail") if key in row}
        if problem := next((row["problem"] for row in orders if "problem" in row), None):
            return line | {"outcome": None, "score": None, "problem": problem}
        score = sum({"a": 1.0, "tie": 0.5, "b": 0.0}[row["better"]] for row in orders) / len(orders)
        return line | {"outcome": _outcome(score), "score": score}

    def _run(self) -> dict[str, Any]:
        """All that shapes the verdicts."""
        return {
            "judge": self._options.model,
            "prompt_version": verdicts.PROMPT_VERSION,
            "seed": self._options.seed,
            "max_new_tokens": self._options.max_new_tokens,
            "max_answer_chars": self._limit,
            "pairs": _digest(self.pairs),
        }

    def _about(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        judged = [
            Judged(pair.id, pair.language, pair.a, pair.b, row)
            for pair, row in zip(self.pairs, rows, strict=True)
            if row["score"] is not None
        ]
        problems = Counter(row["problem"] for row in rows if row["score"] is None)
        return {
            "format": FORMAT,
            "prompt_version": verdicts.PROMPT_VERSION,
            "judge": self._options.model,
            "a": {"model": self.a.model, "answers": self.a.file.name, "shots": self.a.shots},
            "b": {"model": self.b.model, "answers": self.b.file.name, "shots": self.b.shots},
            "languages": summarise(judged),
            "unjudged": {**self.left_out, **problems},
            "by_rule": dict(Counter(row["by_rule"] for row in rows if "by_rule" in row)),
            "shown_otherwise": self.shown_otherwise(),
            "command": self._command,
            "versions": versions("openai"),
        }

    def shown_otherwise(self) -> dict[str, int]:
        """How many answers the judge does not see as they are, by reason."""
        found: Counter[str] = Counter()
        for pair in self.pairs:
            for model, text in (("first", pair.a), ("second", pair.b)):
                seen, cut = verdicts.shown(text, self._limit)
                found[f"{model} model's answer cut at {self._limit} characters"] += cut
                found[f"{model} model's answer with control characters"] += seen.count("\ufffd") > text.count("\ufffd")
        return {reason: count for reason, count in found.items() if count}


def _pairs(a: Answers, b: Answers, common: bool) -> tuple[list[Pair], dict[str, int]]:
    """The prompts that both answer, in the order of the first, and how many only one does."""
    shared = [key for key in a.rows if key in b.rows]
    only_a, only_b = [key for key in a.rows if key not in b.rows], [key for key in b.rows if key not in a.rows]
    both = f"{a.file} and {b.file}"
    if not shared:
        raise ValueError(
            f"{both} answer no prompt in common: {_named(only_a)} and {_named(only_b)}. Generate both "
            "from the same prompts"
        )
    if (only_a or only_b) and not common:
        sides = ((only_a, a.file), (only_b, b.file))
        only = [f"{len(keys)} only in {file} ({_named(keys)})" for keys, file in sides if keys]
        raise ValueError(
            f"{both} do not answer the same prompts: {len(shared)} are in both, {' and '.join(only)}. Generate both "
            "from the same prompts, or judge what is in both with --common"
        )
    for key in shared:
        if a.rows[key]["prompt"] != b.rows[key]["prompt"]:
            raise ValueError(
                f"{both}: id {key[0]!r} in {key[1]!r} is another prompt in each: {a.rows[key]['prompt']!r:.60} and "
                f"{b.rows[key]['prompt']!r:.60}. Generate both from the same prompts"
            )
    pairs = [Pair(*key, a.rows[key]["prompt"], a.rows[key]["answer"], b.rows[key]["answer"]) for key in shared]
    left_out = {"answered by the first model alone": len(only_a), "answered by the second model alone": len(only_b)}
    return pairs, {reason: count for reason, count in left_out.items() if count}


def _named(keys: Sequence[Key]) -> str:
    named = ", ".join(f"{identity!r} in {language!r}" for identity, language in keys[:2])
    return named + (", …" if len(keys) > 2 else "")


def _outcome(score: float) -> str:
    return "tie" if score == 0.5 else "win" if score > 0.5 else "loss"


def _digest(pairs: Sequence[Pair]) -> str:
    found = hashlib.sha256()
    for pair in pairs:
        found.update(json.dumps([pair.id, pair.language, pair.prompt, pair.a, pair.b]).encode())
    return found.hexdigest()
