"""`axolotl-clo report`: what a user types to put runs on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from axolotl_clo.cli_common import STDERR, typed_command


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN...",
            help="Folders or files with lm-eval results, trainer states, verdicts or answers of a model each; the "
            "folder of a quickstart or a comparison holds several.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write report.html and report.md to.")] = Path("report"),
    name: Annotated[
        list[str] | None,
        typer.Option(help="Name of a run: give one for each, in their order. Default: the folders' names."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Name of the run all others are compared with. Default: the base model, or the first run."),
    ] = None,
) -> None:
    """Put several runs on one page: target proficiency against English retention, every score with its interval and a
    test against the base model, training curves, data efficiency, answers side by side, commands and versions.

    **Examples**

        axolotl-clo report outputs/quickstart --out report

        axolotl-clo report scores/base scores/sft scores/clo --name base --name SFT --name "CLO 6400 rows" --out report
    """
    from axolotl_clo.evaluate.report import write_report

    found = write_report(runs or [], out, name or [], reference, typed_command())
    for note in found.notes:
        STDERR.print(f"[yellow]note:[/yellow] {escape(note)}", soft_wrap=True)
    STDERR.print(f"{len(found.runs)} runs written to {escape(str(out / 'report.html'))} and report.md", soft_wrap=True)
