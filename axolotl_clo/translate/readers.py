"""Raw rows of local files: JSON lines, JSON, CSV, TSV and Parquet, one at a time.

A file that cannot be read stops with its name and the line or reason; nothing is skipped.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_BLOCK = 1 << 20


def suffix_of(file: Path) -> str:
    """The ending that says how a file is read, without `.gz`."""
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file as dicts, in order.

    Raises:
        ValueError: names the file, the line where there are lines, and what is accepted.
    """
    suffix = suffix_of(file)
    if suffix == ".parquet":
        yield from _parquet(file)
    elif suffix in (".csv", ".tsv"):
        yield from _csv(file, "\t" if suffix == ".tsv" else ",")
    elif suffix in SUFFIXES:
        yield from _json(file)
    else:
        raise ValueError(f"{file}: files ending in {', '.join(SUFFIXES)} (also .gz) are accepted")


def digest(files: list[Path]) -> str:
    """SHA-256 over the contents of the files, in order."""
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                found.update(block)
    return found.hexdigest()


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _json(file: Path) -> Iterator[dict[str, Any]]:
    with _open(file) as stream:
        first = stream.read(1)
        while first.isspace():
            first = stream.read(1)
        stream.seek(0)
        if first == b"[":
            yield from _json_array(file, stream)
            return
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            row = _parse(line, where)
            if not isinstance(row, dict):
                raise ValueError(f"{where}: got a JSON {type(row).__name__}; one object per line is accepted")
            yield row


def _json_array(file: Path, stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(_parse(stream.read(), str(file))):
        if not isinstance(row, dict):
            raise ValueError(f"{file}, element {number}: got a JSON {type(row).__name__}; objects are accepted")
        yield row


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: not valid UTF-8 ({error.reason} at byte {error.start}); UTF-8 is accepted"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}); one JSON object per line, or one JSON "
            "array of objects, is accepted"
        ) from error


def _csv(file: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    number = 1
    with _open(file) as stream:
        try:
            rows = csv.DictReader((line.decode("utf-8-sig") for line in stream), delimiter=delimiter, strict=True)
            for row in rows:
                number = rows.line_num
                if None in row or None in row.values():
                    raise ValueError(
                        f"{file}, line {number}: its fields do not match the {len(rows.fieldnames or [])} columns of "
                        "the first line"
                    )
                yield row
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file}, after line {number}: not valid UTF-8 ({error.reason}); UTF-8 is accepted"
            ) from error
        except csv.Error as error:
            raise ValueError(f"{file}, after line {number}: not valid CSV ({error})") from error


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a Parquet file that can be read ({error})") from error
