"""One run from its configs to `scores.json`, in the process that it is given to."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import time
import traceback
from pathlib import Path

import yaml

from axolotl_clo.compare.plan import Run
from axolotl_clo.compare.scoring import scores, search_scores


def attempt(run: Run) -> str | None:
    """Do a run with all output in its log; returns None, or the error in one line."""
    run.folder.mkdir(parents=True, exist_ok=True)
    error = None
    with (run.folder / "log.txt").open("w", encoding="utf-8") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    try:
        execute(run)
    except (Exception, SystemExit) as caught:
        traceback.print_exc()
        error = f"{type(caught).__name__}: {' '.join(str(caught).split())}"
    finally:
        if error or not run.keep_model:
            _remove_models(run.folder)
        shutil.rmtree(run.folder / "prepared", ignore_errors=True)
        _forget_run()
        sys.stdout.flush()
        sys.stderr.flush()
    return error


def _forget_run() -> None:
    """Leave nothing of a run to the next one in the same process."""
    if "axolotl.integrations.base" in sys.modules:
        from axolotl.integrations.base import PluginManager

        PluginManager.get_instance().plugins.clear()
    gc.collect()
    if "torch" in sys.modules:
        import torch

        torch.cuda.empty_cache()


def execute(run: Run) -> None:
    """Train and score one run in this process; `scores.json` appears once all is done."""
    folder = run.folder
    (folder / "scores.json").unlink(missing_ok=True)
    _remove_models(folder)
    start = time.perf_counter()
    for config in run.configs:
        file = folder / f"{Path(config['output_dir']).name.removeprefix('model-')}.yml"
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        train(file)
    trained = time.perf_counter()
    model = Path(run.configs[-1]["output_dir"]) if run.configs else run.base_model
    result = search_scores(model, run) if run.search else scores(model, run)
    if not run.configs:
        result["search"] = search_scores(model, run)["scores"]
    seconds = {"train": trained - start, "score": time.perf_counter() - trained}
    partial = folder / ".scores.json.partial"
    text = json.dumps({"recipe": run.recipe, **result, "seconds": seconds}, ensure_ascii=False, indent=1)
    partial.write_text(text, encoding="utf-8")
    partial.rename(folder / "scores.json")


def _remove_models(folder: Path) -> None:
    for path in (folder / "prepared", *folder.glob("model-*")):
        shutil.rmtree(path, ignore_errors=True)


def train(file: Path) -> None:
    """What `axolotl train` runs after its launcher, in this process."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets, load_preference_datasets
    from axolotl.train import train as axolotl_train

    cfg = load_cfg(str(file))
    meta = (load_preference_datasets if cfg.rl else load_datasets)(cfg=cfg)
    axolotl_train(cfg=cfg, dataset_meta=meta)
