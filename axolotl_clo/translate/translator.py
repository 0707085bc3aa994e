"""Source rows -> translations with their scores: the work of one part, done in one place by one engine."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from axolotl_clo.translate.document import Document
from axolotl_clo.translate.engines import Engine, EngineOptions, Failure, open_engine
from axolotl_clo.translate.quality import Scorer, round_trip_chrf
from axolotl_clo.translate.sources import SourceRow
from axolotl_clo.translate.store import TURN


@dataclass(frozen=True)
class Task:
    """What is to be done with every row.

    Attributes:
        engine: name of the engine.
        options: the engine's options.
        source: key of the source language.
        targets: keys of the target languages.
        round_trip: whether each translation is translated back and compared with the source.
    """

    engine: str
    options: EngineOptions
    source: str
    targets: tuple[str, ...]
    round_trip: bool = False


@dataclass(frozen=True)
class Cost:
    """What a part took.

    Attributes:
        seconds: time of translating and scoring.
        tokens: tokens a server counted, 0 for engines without.
    """

    seconds: float
    tokens: int


def part_schema(targets: Sequence[str]) -> pa.Schema:
    """Columns of a part: the source rows, and for each language texts, failure and scores (as JSON)."""
    fields = [
        pa.field("number", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("problem", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("turns", pa.list_(TURN)),
    ]
    for target in targets:
        fields += [
            pa.field(f"{target}.texts", pa.list_(pa.string())),
            pa.field(f"{target}.failure", pa.string()),
            pa.field(f"{target}.scores", pa.string()),
        ]
    return pa.schema(fields)


class Translator:
    """Translates rows by one engine, which it opens and holds."""

    def __init__(self, task: Task) -> None:
        """
        Raises:
            ValueError: the engine does not know a language, or an option of it is wrong.
            EngineError: it cannot start.
        """
        self.task = task
        self.engine: Engine = open_engine(task.engine, task.options)
        self._scorers = {target: Scorer(task.source, target) for target in task.targets}
        for target in task.targets:
            self.engine.check(task.source, target)
            if task.round_trip:
                self.engine.check(target, task.source)

    def close(self) -> None:
        """Give back what the engine holds."""
        self.engine.close()

    def part(self, rows: Sequence[SourceRow]) -> tuple[pa.Table, Cost]:
        """Translate rows into every target language; the table has `part_schema`, one row per source row.

        Raises:
            EngineError: the engine cannot go on.
        """
        start, tokens = time.perf_counter(), self._tokens()
        columns: dict[str, list[Any]] = {
            "number": [row.number for row in rows],
            "id": [row.id for row in rows],
            "problem": [row.problem for row in rows],
            "detail": [row.detail for row in rows],
            "turns": [row.turns for row in rows],
        }
        for target in self.task.targets:
            columns |= self._into(target, rows)
        made_by = {"engine": json.dumps(self.engine.describe(), ensure_ascii=False)}
        table = pa.table(columns, schema=part_schema(self.task.targets).with_metadata(made_by))
        return table, Cost(time.perf_counter() - start, self._tokens() - tokens)

    def _tokens(self) -> int:
        return sum(getattr(self.engine, "tokens", {}).values())

    def _into(self, target: str, rows: Sequence[SourceRow]) -> dict[str, list[Any]]:
        source = self.task.source
        usable = [i for i, row in enumerate(rows) if row.problem is None]
        originals = [[turn["content"] for turn in rows[i].turns] for i in usable]
        translated, failures = self._rows(originals, source, target)
        good = [k for k, failure in enumerate(failures) if failure is None]
        pairs = [(originals[k], translated[k]) for k in good]
        scores = self._scorers[target].score(pairs)
        round_trips = self._round_trips(pairs, target) if self.task.round_trip else [None] * len(pairs)

        texts: list[list[str] | None] = [None] * len(rows)
        failed: list[str | None] = [None] * len(rows)
        scored: list[str | None] = [None] * len(rows)
        for k, i in enumerate(usable):
            texts[i], failed[i] = translated[k], failures[k]
        for k, found, chrf in zip(good, scores, round_trips, strict=True):
            scored[usable[k]] = json.dumps({**found, "round_trip_chrf": chrf})
        return {f"{target}.texts": texts, f"{target}.failure": failed, f"{target}.scores": scored}

    def _round_trips(self, pairs: Sequence[tuple[list[str], list[str]]], target: str) -> list[float | None]:
        back, failures = self._rows([texts for _, texts in pairs], target, self.task.source)
        return [
            round_trip_chrf(original, again) if failure is None else 0.0
            for (original, _), again, failure in zip(pairs, back, failures, strict=True)
        ]

    def _rows(
        self, rows: Sequence[Sequence[str]], source: str, target: str
    ) -> tuple[list[list[str]], list[str | None]]:
        """Translations of the texts of each row, and why a row has none."""
        documents = [
            [Document(text, source=source, unit=self.engine.unit, max_chars=self.engine.max_chars) for text in row]
            for row in rows
        ]
        self._translate([document for row in documents for document in row], source, target)
        texts = [[document.text(target=target) for document in row] for row in documents]
        failures = [next((reason for document in row for reason in document.failures), None) for row in documents]
        return texts, failures

    def _translate(self, documents: Sequence[Document], source: str, target: str) -> None:
        """Give every document the translations it asks for, each text only once, similar lengths together."""
        asking = [(document, segments) for document in documents if (segments := document.pending())]
        while asking:
            unique = sorted({segment for _, segments in asking for segment in segments}, key=lambda s: (-len(s), s))
            known: dict[str, str | Failure] = {}
            for start in range(0, len(unique), self.engine.batch):
                batch = unique[start : start + self.engine.batch]
                known |= zip(batch, self.engine.translate(batch, source, target), strict=True)
            for document, segments in asking:
                document.accept([known[segment] for segment in segments])
            asking = [(document, segments) for document, _ in asking if (segments := document.pending())]
