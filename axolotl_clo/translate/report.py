"""What is in a parallel dataset: `axolotl-clo inspect`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def inspect(out: str | Path, samples: int = 3) -> dict[str, Any]:
    """The manifest of a dataset made by `translate`, with sample rows and rejected ones.

    Args:
        out: folder of the dataset.
        samples: how many rows, spread over the shards, and how many rejected ones of each reason.

    Returns:
        `manifest`, `samples` (rows as they are in the shards), `rejected` (lines of `rejected.jsonl`, by language and
        reason).

    Raises:
        ValueError: there is no finished dataset in the folder.
    """
    folder = Path(out)
    file = folder / "manifest.json"
    if not file.is_file():
        parts = len(list((folder / ".work" / "parts").glob("*.parquet")))
        found = f"an unfinished run with {parts} finished parts; run the same `translate` again" if parts else "none"
        raise ValueError(f"{folder}: no manifest.json, so no finished dataset; there is {found}")
    manifest = json.loads(file.read_text(encoding="utf-8"))
    rejected: dict[str, list[dict[str, Any]]] = {}
    with (folder / "rejected.jsonl").open(encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            key = f"{row.get('language', manifest['languages'][0])}: {row['reason']}"
            if len(of_reason := rejected.setdefault(key, [])) < samples:
                of_reason.append(row)
    return {"manifest": manifest, "samples": list(_spread(folder / "data", samples)), "rejected": rejected}


def _spread(folder: Path, samples: int) -> Iterator[dict[str, Any]]:
    """Rows spread evenly over the shards."""
    shards = sorted(folder.glob("*.parquet"))
    total = sum(pq.read_metadata(shard).num_rows for shard in shards)
    wanted = iter(sorted({total * i // samples for i in range(samples)})) if total else iter(())
    start, number = 0, next(wanted, None)
    for shard in shards:
        table = pq.read_table(shard)
        while number is not None and number < start + len(table):
            yield from islice(table.slice(number - start, 1).to_pylist(), 1)
            number = next(wanted, None)
        start += len(table)
