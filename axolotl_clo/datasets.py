"""Paths of a config: the starter rows by name, local files and folders checked before anything is loaded."""

from __future__ import annotations

import json
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

STARTER = "axolotl_clo/starter"

# Bytes of a file of JSON lines that Hugging Face's loader reads at a time, with the rest of the line begun there.
LOADER_PIECE = 10 << 20


def starter_folder() -> Path:
    """The folder with the starter rows (`train.jsonl`, `test.jsonl`)."""
    return Path(str(files("axolotl_clo") / "data" / "starter"))


def resolve_starter(cfg: Any) -> None:
    """Replace `path: axolotl_clo/starter` by the folder the rows were installed in."""
    for _, dataset in _entries(cfg):
        if dataset.get("path") == STARTER:
            dataset["path"] = str(starter_folder())


def check_local_files(cfg: Any) -> None:
    """Stop on a missing file of a dataset or of DeepSpeed, a JSON line that does not parse, or one whose languages the
    dataset loader would fail at.

    Raises:
        ValueError: names the option, the file and, for a line at fault, its number.
    """
    deepspeed = cfg.get("deepspeed")
    if isinstance(deepspeed, str) and deepspeed.endswith(".json") and not Path(deepspeed).exists():
        raise ValueError(f"deepspeed: no such file: {deepspeed} (relative to {Path.cwd().name}/)")
    for option, dataset in _entries(cfg):
        path = str(dataset.get("path") or "")
        named = dataset.get("data_files") or []
        as_json = _is_ours(dataset) and dataset.get("ds_type") in (None, "json")
        expected = _Expected(cfg.get("clo") or {}) if as_json else None
        for name in [path, *([named] if isinstance(named, str) else named)]:
            file = Path(name)
            read = expected if (name == path) == Path(path).is_file() else None  # a file needs no `data_files`
            if file.suffix in (".json", ".jsonl") and file.is_file():
                _check_json_lines(option, file, read)
            elif _looks_local(name) and not file.exists():
                raise ValueError(f"{option}: no such file or folder: {name} (relative to {Path.cwd().name}/)")
            if read is not None and read.first is None:
                expected = None  # what the first file holds is not known


def check_folders(cfg: Any) -> None:
    """Make the folders that a run writes to, before hours are spent on what could not be kept.

    Raises:
        ValueError: names the option and the folder that cannot be made or written to.
    """
    for option in ("output_dir", "dataset_prepared_path"):
        folder = cfg.get(option)
        if not folder:
            continue  # Axolotl's default, below the working directory
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(f"{option}: {folder} cannot be written to ({error}); set another folder") from error


def dataset_entries(config: Any) -> list[tuple[str, Any]]:
    """The datasets of a config, each with the option that names it."""
    return [
        (f"{name}[{i}]", entry)
        for name in ("datasets", "test_datasets")
        for i, entry in enumerate(value_of(config, name) or [])
    ]


def value_of(config: Any, key: str) -> Any:
    """A value of a config or of a dataset's entry in it: dicts before Axolotl's validation, models after."""
    return config.get(key) if isinstance(config, dict) else getattr(config, key, None)


def training_entries(cfg: Any) -> list[Any]:
    """The entries of `datasets:` with a type of ours, one for each name where an entry lists several."""
    entries = [entry for entry in cfg.get("datasets") or [] if _is_ours(entry)]
    return [
        type(entry)({**entry, "name": name}) if isinstance(entry.get("name"), list) else entry
        for entry in entries
        for name in (entry["name"] if isinstance(entry.get("name"), list) else [None])
    ]


def load_rows(cfg: Any, entry: Any) -> Any:
    """The rows that Axolotl reads of an entry of `datasets:`."""
    from axolotl.utils.data.shared import load_dataset_with_config

    dataset = load_dataset_with_config(entry, cfg.hf_use_auth_token)
    if isinstance(dataset, dict):
        return dataset[entry.split if entry.split in dataset else "train"]
    return dataset


def _is_ours(entry: Any) -> bool:
    return str(value_of(entry, "type")).startswith("axolotl_clo.")


def _entries(cfg: Any) -> list[tuple[str, Any]]:
    return [(f"{option}.path", entry) for option, entry in dataset_entries(cfg) if isinstance(entry, dict)]


def _looks_local(name: str) -> bool:
    return "://" not in name and (name.startswith((".", "/", "~")) or Path(name).suffix in _DATA_SUFFIXES)


_DATA_SUFFIXES = {".json", ".jsonl", ".csv", ".parquet", ".arrow", ".txt"}


class _Expected:
    """The languages that Hugging Face's loader of JSON lines expects in the nested columns of a dataset.

    It takes them from the first piece of the first file. Where rows differ in them there, any may follow. Where they
    do not, the loader fails at a row further on with another language, and at a text where there was only `null`.
    """

    def __init__(self, section: dict[str, Any]) -> None:
        fields = section.get("fields")
        fields = fields if isinstance(fields, dict) else {}
        self.columns = [str(fields.get(name) or name) for name in ("prompt", "response", "messages")]
        self.first: Path | None = None
        self.blank = False
        # By column: languages with a place, and those of them with a text, in the first piece.
        self.places: dict[str, set[str]] = {}
        self.texts: dict[str, set[str]] = {}
        self.differing: set[str] = set()

    def learn(self, row: dict[str, Any]) -> None:
        """Take in a row of the first piece."""
        for column in list(self.columns):
            value = row.get(column)
            if isinstance(value, dict):
                places = self.places.setdefault(column, set(value))
                if places != value.keys():
                    self.differing.add(column)
                places.update(value)
                self.texts.setdefault(column, set()).update(key for key in value if value[key] is not None)
            elif value is not None:  # read as JSON, whatever follows
                self.columns.remove(column)

    def check(self, row: dict[str, Any], where: str) -> None:
        """Stop at a row after the first piece that the loader would fail at."""
        for column in self.columns:
            value = row.get(column)
            any_may_follow = column not in self.places or (column in self.differing and not self.blank)
            if any_may_follow or not isinstance(value, dict):
                continue
            for language, text in value.items():
                if language not in self.places[column] or (text is not None and language not in self.texts[column]):
                    raise ValueError(
                        f"{where}: `{column}` holds {language}, as none of the rows does from which the dataset loader "
                        "takes the languages; accepted are rows of all languages in the first "
                        f"{LOADER_PIECE >> 20} MiB of {self.first} (shuffle them), or an entry of `datasets:` for each "
                        "language"
                    )


def _check_json_lines(option: str, file: Path, expected: _Expected | None) -> None:
    with file.open(encoding="utf-8", newline="") as stream:
        start = stream.read(1)
        if start == "[":
            return  # one JSON array; the dataset loader's own message is clear
        stream.seek(0)
        if expected is not None and expected.first is None:
            expected.first = file
        place = 0
        for number, line in enumerate(stream, start=1):
            in_first_piece = expected is not None and file == expected.first and place <= LOADER_PIECE
            place += len(line.encode())
            if not line.strip():
                if expected is not None and in_first_piece:
                    expected.blank = True  # the loader then looks no closer
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{option}: {file}, line {number}: not valid JSON ({error.msg} at column {error.colno}); "
                    "one JSON object per line is accepted"
                ) from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"{option}: {file}, line {number}: got a JSON {type(row).__name__}; one object per line is accepted"
                )
            if expected is not None:
                if in_first_piece:
                    expected.learn(row)
                else:
                    expected.check(row, f"{option}: {file}, line {number}")
