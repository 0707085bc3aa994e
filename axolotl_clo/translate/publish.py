"""Translated parts -> the dataset: what passes the filter, what does not and why, the manifest and the card."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from axolotl_clo.translate.card import dataset_card
from axolotl_clo.translate.quality import Corpus, Thresholds, reason
from axolotl_clo.translate.store import TURN, Store
from axolotl_clo.translate.workers import in_order

SHARD_ROWS = 50_000
SAMPLE_ROWS = 5_000  # rows from which the corpus learns what is usual

Row = dict[str, Any]


class Publisher:
    """Filters the finished parts of a run and writes what users read."""

    def __init__(
        self,
        store: Store,
        parts: int,
        source: str,
        targets: Sequence[str],
        thresholds: Thresholds,
        multi_turn: bool,
        workers: int = 1,
    ) -> None:
        self.store, self.parts, self.source, self.targets = store, parts, source, tuple(targets)
        self.thresholds, self.multi_turn, self.workers = thresholds, multi_turn, workers

    def publish(self, run: dict[str, Any]) -> dict[str, Any]:
        """Write dataset, rejected rows, card and manifest; returns the manifest.

        Args:
            run: what the manifest says of source, engine, options and versions.
        """
        folder = self.store.work / "final"
        shutil.rmtree(folder, ignore_errors=True)
        samples = {target: self._sample(target) for target in self.targets}
        corpora = {target: Corpus.fit(*sample) for target, sample in samples.items()}
        schema = self._schema({target: self._score_type(corpora[target], *samples[target]) for target in self.targets})
        judge = _Judge(self.store, self.source, self.targets, self.thresholds, self.multi_turn, corpora, schema)
        counts = Counts()
        with self.store.appending_text(folder / "rejected.jsonl") as rejected:
            self._write_shards(folder / "data", schema, self._judged(judge, counts, rejected))
        manifest = {
            **run,
            "engine": self._engine(),
            "languages": [self.source, *self.targets],
            "thresholds": asdict(self.thresholds),
            "corpus": {target: corpus.describe() for target, corpus in corpora.items()},
            "counts": {
                "source_rows": counts.rows,
                "unusable": dict(sorted(counts.unusable.items())),
                "rows": counts.written,
                "languages": {
                    target: {"kept": counts.kept[target], "dropped": _sorted(counts.dropped, target)}
                    for target in self.targets
                },
            },
        }
        self.store.write_text(folder / "README.md", dataset_card(manifest))
        self.store.write_text(folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        self.store.publish(folder)
        return manifest

    def _engine(self) -> dict[str, Any]:
        """What made the first part."""
        if not self.parts:
            return {}
        return json.loads((self.store.read_part(0).schema.metadata or {}).get(b"engine", b"{}"))  # type: ignore[no-any-return]

    def _sample(self, target: str) -> tuple[list[tuple[list[str], list[str]]], list[Row]]:
        """Pairs and scores of rows spread evenly over the parts."""
        share = max(1, -(-SAMPLE_ROWS // max(self.parts, 1)))
        pairs, scores = [], []
        for part in range(self.parts):
            table = self.store.read_part(part).select(["turns", f"{target}.texts", f"{target}.scores"])
            table = table.filter(table[f"{target}.scores"].is_valid())
            spread = range(0, len(table), max(1, len(table) // share))
            for row in table.take(pa.array(spread, pa.int64())).to_pylist():
                pairs.append(_pair(row, target))
                scores.append(json.loads(row[f"{target}.scores"]))
        return pairs, scores

    def _judged(self, judge: _Judge, counts: Counts, rejected: IO[str]) -> Iterator[pa.Table]:
        """For each part the rows that are kept; the others go to `rejected`."""
        for part in in_order(judge, self.parts, self.workers):
            counts.add(part.counts)
            rejected.write(part.rejected)
            yield part.kept

    def _schema(self, scores: dict[str, pa.DataType]) -> pa.Schema:
        languages = [self.source, *self.targets]
        texts = pa.struct([(language, pa.string()) for language in languages])
        said = (
            [("messages", pa.struct([(language, pa.list_(TURN)) for language in languages]))]
            if self.multi_turn
            else [("prompt", texts), ("response", texts)]
        )
        return pa.schema([("id", pa.string()), *said, ("scores", pa.struct(list(scores.items())))])

    @staticmethod
    def _score_type(corpus: Corpus, pairs: list[tuple[list[str], list[str]]], scores: list[Row]) -> pa.DataType:
        """A column for each score, typed by what the sample holds."""
        if not pairs:
            return pa.struct([("length_ratio", pa.float64())])
        merged = [{**old, **new} for old, new in zip(scores, corpus.score(pairs), strict=True)]
        return pa.struct(
            [
                (
                    key,
                    pa.string()
                    if "language" in key or any(isinstance(row[key], str) for row in merged)
                    else pa.float64(),
                )
                for key in merged[0]
            ]
        )

    def _write_shards(self, folder: Path, schema: pa.Schema, parts: Iterable[pa.Table]) -> None:
        """Shards of `SHARD_ROWS` rows or a little more; none where nothing passed, as `datasets` reads no empty one."""
        with ExitStack() as stack:
            writer, held, shards = None, 0, 0
            for rows in filter(len, parts):
                if writer is None or held >= SHARD_ROWS:
                    stack.close()
                    writer = stack.enter_context(self.store.appending(folder / f"train-{shards:05d}.parquet", schema))
                    shards, held = shards + 1, 0
                writer.write_table(rows)
                held += len(rows)


@dataclass
class Counts:
    """Rows by what became of them.

    Attributes:
        rows: of the source.
        written: kept in at least one language.
        unusable: by problem.
        kept: by language.
        dropped: by language and reason.
    """

    rows: int = 0
    written: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, more: Counts) -> None:
        self.rows += more.rows
        self.written += more.written
        self.unusable += more.unusable
        self.kept += more.kept
        self.dropped += more.dropped


@dataclass(frozen=True)
class _Judged:
    """A part after the filter: rows that are kept, lines for those that are not."""

    kept: pa.Table
    rejected: str
    counts: Counts


@dataclass(frozen=True)
class _Judge:
    """Filters one part at a time, in whatever process."""

    store: Store
    source: str
    targets: tuple[str, ...]
    thresholds: Thresholds
    multi_turn: bool
    corpora: dict[str, Corpus]
    schema: pa.Schema

    def __call__(self, part: int) -> _Judged:
        rows = self.store.read_part(part).to_pylist()
        scores = {target: _scores(rows, target, self.corpora[target]) for target in self.targets}
        counts, kept, rejected = Counts(rows=len(rows)), [], StringIO()
        for i, row in enumerate(rows):
            found = {target: scores[target][i] for target in self.targets}
            good = [target for target in self.targets if self._passes(row, target, found[target], counts, rejected)]
            if row["problem"] is not None:
                counts.unusable[row["problem"]] += 1
                _reject(rejected, row, row["problem"], row["detail"])
            elif good:
                kept.append(self._row(row, good, found))
        counts.written = len(kept)
        return _Judged(pa.Table.from_pylist(kept, schema=self.schema), rejected.getvalue(), counts)

    def _passes(self, row: Row, target: str, scores: Row | None, counts: Counts, rejected: IO[str]) -> bool:
        if row["problem"] is not None:
            return False
        if scores is None:
            why: tuple[str, str] | None = ("not translated", row[f"{target}.failure"])
        else:
            why = reason(scores, self.thresholds)
        if why is None:
            counts.kept[target] += 1
            return True
        counts.dropped[target, why[0]] += 1
        texts = {self.source: [turn["content"] for turn in row["turns"]], target: row[f"{target}.texts"]}
        _reject(rejected, row, *why, language=target, texts=texts, scores=scores)
        return False

    def _row(self, row: Row, good: list[str], scores: dict[str, Row | None]) -> Row:
        """The row as it is published; a language that did not pass is null."""
        turns = {self.source: row["turns"]}
        for target in self.targets:
            texts = row[f"{target}.texts"] if target in good else None
            turns[target] = texts and [
                {"role": turn["role"], "content": text} for turn, text in zip(row["turns"], texts, strict=True)
            ]
        found = {
            "id": row["id"],
            "scores": {target: scores[target] if target in good else None for target in turns if target != self.source},
        }
        if self.multi_turn:
            return {**found, "messages": turns}
        return {
            **found,
            "prompt": {language: said and said[0]["content"] for language, said in turns.items()},
            "response": {language: said and said[-1]["content"] for language, said in turns.items()},
        }


def _sorted(dropped: Counter[tuple[str, str]], target: str) -> dict[str, int]:
    return {why: number for (language, why), number in sorted(dropped.items()) if language == target}


def _pair(row: Row, target: str) -> tuple[list[str], list[str]]:
    return [turn["content"] for turn in row["turns"]], row[f"{target}.texts"]


def _scores(rows: list[Row], target: str, corpus: Corpus) -> list[Row | None]:
    """Each row's scores with those of the corpus; None where there is no translation."""
    column = f"{target}.scores"
    good = [i for i, row in enumerate(rows) if row[column] is not None]
    found: list[Row | None] = [None] * len(rows)
    for i, more in zip(good, corpus.score([_pair(rows[i], target) for i in good]), strict=True):
        found[i] = {**json.loads(rows[i][column]), **more}
    return found


def _reject(stream: IO[str], row: Row, key: str, detail: str, **more: Any) -> None:
    line = {"row": row["number"], "id": row["id"], "reason": key, "detail": detail, **more}
    stream.write(json.dumps(line, ensure_ascii=False) + "\n")
