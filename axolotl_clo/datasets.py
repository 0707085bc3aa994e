"""Paths of a config: the starter rows by name, local files and folders checked before anything is loaded."""

from __future__ import annotations

import json
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

STARTER = "axolotl_clo/starter"


def starter_folder() -> Path:
    """The folder with the starter rows (`train.jsonl`, `test.jsonl`)."""
    return Path(str(files("axolotl_clo") / "data" / "starter"))


def resolve_starter(cfg: Any) -> None:
    """Replace `path: axolotl_clo/starter` by the folder the rows were installed in."""
    for _, dataset in _entries(cfg):
        if dataset.get("path") == STARTER:
            dataset["path"] = str(starter_folder())


def check_local_files(cfg: Any) -> None:
    """Stop on a missing file of a dataset or of DeepSpeed, or a JSON line that does not parse.

    Raises:
        ValueError: names the option, the file and, for a broken line, its number.
    """
    deepspeed = cfg.get("deepspeed")
    if isinstance(deepspeed, str) and deepspeed.endswith(".json") and not Path(deepspeed).exists():
        raise ValueError(f"deepspeed: no such file: {deepspeed} (relative to {Path.cwd().name}/)")
    for option, dataset in _entries(cfg):
        path = str(dataset.get("path") or "")
        named = dataset.get("data_files") or []
        for name in [path, *([named] if isinstance(named, str) else named)]:
            file = Path(name)
            if file.suffix in (".json", ".jsonl") and file.is_file():
                _check_json_lines(option, file)
            elif _looks_local(name) and not file.exists():
                raise ValueError(f"{option}: no such file or folder: {name} (relative to {Path.cwd().name}/)")


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
    entries = [entry for entry in cfg.get("datasets") or [] if str(value_of(entry, "type")).startswith("axolotl_clo.")]
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


def _entries(cfg: Any) -> list[tuple[str, Any]]:
    return [(f"{option}.path", entry) for option, entry in dataset_entries(cfg) if isinstance(entry, dict)]


def _looks_local(name: str) -> bool:
    return "://" not in name and (name.startswith((".", "/", "~")) or Path(name).suffix in _DATA_SUFFIXES)


_DATA_SUFFIXES = {".json", ".jsonl", ".csv", ".parquet", ".arrow", ".txt"}


def _check_json_lines(option: str, file: Path) -> None:
    with file.open(encoding="utf-8") as stream:
        start = stream.read(1)
        if start == "[":
            return  # one JSON array; the dataset loader's own message is clear
        stream.seek(0)
        for number, line in enumerate(stream, start=1):
            if not line.strip():
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
