"""`axolotl-clo inspect`: what is in a dataset, or what a run will do and cost."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from axolotl_clo.cli_common import say

CONFIG = "A run's config"


class Zero(StrEnum):
    """What weights, gradients and optimizer state are sharded by."""

    ZERO_0 = "0"
    ZERO_1 = "1"
    ZERO_2 = "2"
    ZERO_3 = "3"
    FSDP = "fsdp"


def inspect(
    what: Annotated[
        Path, typer.Argument(help="Folder that `axolotl-clo translate` wrote, or the config of a run (.yml, .yaml).")
    ],
    samples: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Rows to show: of a dataset, and rejected ones of each reason (3); of a run, as token sequences (1).",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    gpus: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=CONFIG, help="GPUs the run is planned for. Default: 1 process.")
    ] = None,
    zero: Annotated[
        Zero | None,
        typer.Option(
            rich_help_panel=CONFIG,
            help="DeepSpeed's ZeRO stage, or FSDP, to estimate memory for; 0 is DDP. Default: as the config has it.",
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            rich_help_panel=CONFIG,
            help="Load the model, train it for a few steps on this machine, and say how long the run would take.",
        ),
    ] = False,
) -> None:
    """Show what a dataset holds, what was left out and why, and samples side by side; or what a run will do and cost.

    Of a config with `rl: clo`: its errors, what trains, a row as the model reads it, tokens, rows that are dropped and
    why, steps, memory by part, and with `--calibrate` the time. Nothing is written, and no weights are loaded, but for
    `--calibrate` and `clo.train_modules: auto`.

    **Examples**

        axolotl-clo inspect data/alpaca-en-ko

        axolotl-clo inspect example_configs/clo_ko.yml --gpus 8 --zero 2

        axolotl-clo inspect my.yml --calibrate --json
    """
    from axolotl_clo.inspection.config import is_config

    if is_config(what):
        _inspect_config(what, samples, as_json, gpus, zero, calibrate)
        return
    for option, given in (("--gpus", gpus), ("--zero", zero), ("--calibrate", calibrate)):
        if given:
            raise ValueError(f"{option} is for a run's config (.yml, .yaml), and {what} is taken for a dataset")
    _inspect_dataset(what, 3 if samples is None else samples, as_json)


# ---- a dataset ----


def _inspect_dataset(out: Path, samples: int, as_json: bool) -> None:
    from axolotl_clo.translate.report import inspect as report

    found = report(out, samples)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    console, manifest = Console(), found["manifest"]
    console.print(f"[bold]{escape(manifest['source']['name'])}[/bold], engine {escape(json.dumps(manifest['engine']))}")
    print_counts(console, manifest)
    source, *targets = manifest["languages"]
    for row in found["samples"]:
        said = {language: _texts(row, language) for language in (source, *targets)}
        console.print(side_by_side(f"row {row['id']}", {language: texts for language, texts in said.items() if texts}))
    for key, rows in found["rejected"].items():
        for row in rows:
            title = f"left out ({key}): row {row['id']}, {row['detail']}"
            console.print(side_by_side(title, row.get("texts") or {}))


def _texts(row: dict[str, Any], language: str) -> list[str] | None:
    if "messages" in row:
        turns = row["messages"][language]
        return turns and [turn["content"] for turn in turns]
    both = [row["prompt"][language], row["response"][language]]
    return None if None in both else both


def side_by_side(title: str, said: dict[str, list[str]]) -> Table:
    """Texts of several languages, a column for each."""
    table = Table(*said, title=escape(title), title_justify="left", show_lines=True, expand=True)
    for texts in zip(*said.values(), strict=False):
        table.add_row(*(escape(text) for text in texts))
    return table


def print_counts(console: Console, manifest: dict[str, Any]) -> None:
    """How many rows a dataset has, and how many were left out, by reason."""
    counts = manifest["counts"]
    table = Table(
        "language", "what", "rows", title=f"{counts['source_rows']} source rows, {counts['rows']} rows written"
    )
    for why, count in counts["unusable"].items():
        table.add_row(manifest["languages"][0], f"cannot be used: {why}", str(count))
    for language, found in counts["languages"].items():
        table.add_row(language, "kept", str(found["kept"]))
        for why, count in found["dropped"].items():
            table.add_row(language, f"left out: {why}", str(count))
    for why, count in manifest["left_out"].items():
        table.add_row(manifest["languages"][0], f"not taken from the source: {why}", str(count))
    console.print(table)


# ---- a run ----


def _inspect_config(
    file: Path, samples: int | None, as_json: bool, gpus: int | None, zero: Zero | None, calibrate: bool
) -> None:
    from axolotl_clo.inspection.config import read_config

    read_config(file)  # before a minute of imports
    from axolotl_clo.inspection.report import inspect_run

    found = inspect_run(
        file,
        samples=1 if samples is None else samples,
        gpus=gpus,
        zero=zero and zero.value,
        calibrate=calibrate,
        say=say,
    )
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    from axolotl_clo.inspection.tables import show

    show(found, Console())
