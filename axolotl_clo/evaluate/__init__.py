"""Evaluation of trained models: what their answers are measured on and with."""

from pathlib import Path

__all__ = ["task_folder"]


def task_folder() -> Path:
    """The folder with this package's lm-evaluation-harness tasks (`clo_*`), as for its `--include_path`.

    In a checkout this is `eval_tasks`; a wheel puts the same files where the harness looks by itself.

    Raises:
        FileNotFoundError: the tasks lie in neither place.
    """
    root = Path(__file__).resolve().parents[2]
    folders = (root / "eval_tasks", root / "lm_eval" / "tasks" / "axolotl_clo")
    for folder in folders:
        if (folder / "clo_en.yaml").is_file():
            return folder
    tried = " or ".join(str(folder.relative_to(root)) for folder in folders)
    raise FileNotFoundError(f"no clo_en.yaml in {tried} beside the package: install axolotl-clo again")
