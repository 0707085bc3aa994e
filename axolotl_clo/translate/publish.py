"""Translated parts -> the dataset: what passes the filter, what does not and why, the manifest and the card."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from axolotl_clo.translate.card import dataset_card
from axolotl_clo.translate.quality import Corpus, Thresholds, reason
from axolotl_clo.translate.store import TURN, Store

SHARD_ROWS = 50_000
SAMPLE_ROWS = 5_000  # rows from which the corpus learns what is usual

Row = dict[str, Any]


class Publisher:
    """Filters the finished parts of a run and writes what users read."""

    def __init__(
        self, store: Store, parts: int, source: str, targets: Sequence[str], thresholds: Thresholds, multi_turn: bool
    ) -> None:
        self.store, self.parts, self.source, self.targets = store, parts, source, tuple(targets)
        self.thresholds, self.multi_turn = thresholds, multi_turn
        self.dropped: dict[str, Counter[str]] = {target: Counter() for target in self.targets}
        self.kept: Counter[str] = Counter()
        self.unusable: Counter[str] = Counter()
        self.rows = self.written = 0

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
        with self.store.appending_text(folder / "rejected.jsonl") as rejected:
            self._write_shards(folder / "data", schema, self._judged(corpora, rejected))
        manifest = {
            **run,
            "engine": self._engine(),
            "languages": [self.source, *self.targets],
            "thresholds": asdict(self.thresholds),
            "corpus": {target: corpus.describe() for target, corpus in corpora.items()},
            "counts": {
                "source_rows": self.rows,
                "unusable": dict(sorted(self.unusable.items())),
                "rows": self.written,
                "languages": {
                    target: {"kept": self.kept[target], "dropped": dict(sorted(self.dropped[target].items()))}
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

    def _judged(self, corpora: dict[str, Corpus], rejected: IO[str]) -> Iterator[list[Row]]:
        """For each part the rows that are kept; the others go to `rejected`."""
        for part in range(self.parts):
            rows = self.store.read_part(part).to_pylist()
            self.rows += len(rows)
            scores = {target: _scores(rows, target, corpora[target]) for target in self.targets}
            kept = []
            for i, row in enumerate(rows):
                found = {target: scores[target][i] for target in self.targets}
                good = [target for target in self.targets if self._passes(row, target, found[target], rejected)]
                if row["problem"] is not None:
                    self.unusable[row["problem"]] += 1
                    _reject(rejected, row, row["problem"], row["detail"])
                elif good:
                    kept.append(self._row(row, good, found))
            self.written += len(kept)
            yield kept

    def _passes(self, row: Row, target: str, scores: Row | None, rejected: IO[str]) -> bool:
        if row["problem"] is not None:
            return False
        if scores is None:
            why: tuple[str, str] | None = ("not translated", row[f"{target}.failure"])
        else:
            why = reason(scores, self.thresholds)
        if why is None:
            self.kept[target] += 1
            return True
        self.dropped[target][why[0]] += 1
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

    def _write_shards(self, folder: Path, schema: pa.Schema, parts: Iterable[list[Row]]) -> None:
        """Shards of `SHARD_ROWS` rows or a little more; none where nothing passed, as `datasets` reads no empty one."""
        with ExitStack() as stack:
            writer, held, shards = None, 0, 0
            for rows in filter(None, parts):
                if writer is None or held >= SHARD_ROWS:
                    stack.close()
                    writer = stack.enter_context(self.store.appending(folder / f"train-{shards:05d}.parquet", schema))
                    shards, held = shards + 1, 0
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                held += len(rows)


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
