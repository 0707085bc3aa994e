"""`axolotl-clo report`: one page and a Markdown table of several runs.

`read.py` finds what folders hold (`harness.py`, `formats.py`, `documents.py`), `analysis.py` says what it means
(`noise.py`, `proficiency.py`), and `page.py` shows it (`figures.py`, `svg.py`, `texts.py`, `templates/`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from axolotl_clo.evaluate.report.analysis import Analysis, analyse
from axolotl_clo.evaluate.report.read import read_runs

__all__ = ["write_report"]


def write_report(
    runs: Sequence[str | Path],
    out: str | Path,
    names: Sequence[str] = (),
    reference: str | None = None,
    command: str = "",
) -> Analysis:
    """Write `report.html` and `report.md` of runs.

    Args:
        runs: folders or files; see `read.read_runs`.
        out: folder to write to.
        names: one for each run; without, the folders' names.
        reference: name of the run that others are compared with; without, the base model, or the first run.
        command: shown as the command that made the report.

    Returns:
        What the report says.

    Raises:
        ValueError: something given cannot be read; the message says what to change. Nothing is written then.
    """
    from importlib.metadata import PackageNotFoundError, version

    from axolotl_clo.evaluate.report import page

    analysis = analyse(read_runs([Path(run) for run in runs], names), reference)
    try:
        own_version = version("axolotl-clo")
    except PackageNotFoundError:  # a checkout that is not installed
        own_version = ""
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out: {folder} is a file; give a folder")
    pages = {
        "report.html": page.html(analysis, command, own_version),
        "report.md": page.markdown(analysis, command, own_version),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        partial = folder / f".{name}.partial"
        partial.unlink(missing_ok=True)  # a link of that name would be followed
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.replace(folder / name)
    return analysis
