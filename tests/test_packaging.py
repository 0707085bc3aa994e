"""Wheel and sdist build; the wheel brings the tasks to lm-evaluation-harness and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import LANGUAGES, ROOT

pytestmark = pytest.mark.process


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env={**os.environ, **env}, timeout=900
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


def test_wheel_holds_package_data_and_tasks(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(archive.read(n).decode() for n in names if n.endswith("METADATA"))
    assert {
        "axolotl_clo/py.typed",
        "axolotl_clo/data/starter/train.jsonl",
        "axolotl_clo/data/starter/test.jsonl",
    } <= names
    assert {f"lm_eval/tasks/axolotl_clo/clo_{lang}.yaml" for lang in LANGUAGES} <= names
    tasks = [file.relative_to(ROOT / "eval_tasks") for file in (ROOT / "eval_tasks").rglob("*yaml")]
    assert {f"lm_eval/tasks/axolotl_clo/{task}" for task in tasks} <= names
    assert {f"lm_eval/tasks/axolotl_clo/{folder}utils.py" for folder in ("", "mmmlu/", "kobest/")} <= names
    assert not [n for n in names if n.startswith(("tests/", "example_configs/"))]
    assert "Requires-Dist: axolotl<0.22,>=0.19" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    for extra in ("quickstart", "deepspeed", "flash-attn", "dev"):
        assert f"Provides-Extra: {extra}" in metadata


def test_sdist_holds_what_a_packager_needs(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"LICENSE", "README.md", "pyproject.toml", "eval_tasks/clo_de.yaml", "tests/conftest.py"} <= names
    assert "example_configs/clo_ko.yml" in names
    assert not [n for n in names if n.startswith((".venv", "outputs"))]


def test_installed_wheel_lists_its_tasks_and_uninstalls_without_trace(distributions: Path, tmp_path: Path) -> None:
    """A new environment with the wheel and lm_eval of its own; other dependencies are borrowed from this one."""
    (wheel,) = distributions.glob("*.whl")
    from importlib.metadata import version

    environment = tmp_path / "venv"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=tmp_path).strip())
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", f"lm_eval=={version('lm_eval')}", wheel, cwd=tmp_path)
    harness = {p.relative_to(site) for p in (site / "lm_eval").rglob("*") if "axolotl_clo" not in p.parts}
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"])

    listing = run(environment / "bin" / "lm_eval", "ls", "tasks", cwd=tmp_path)
    for lang in LANGUAGES:
        assert f"clo_{lang}" in listing
        assert f"axolotl_clo_{lang}_fidelity" in listing
        assert f"axolotl_clo_{lang}_belebele" in listing
    where = "from axolotl_clo.evaluate import task_folder; print(task_folder())"
    assert run(python, "-c", where, cwd=tmp_path).strip() == str(site / "lm_eval" / "tasks" / "axolotl_clo")

    (site / "borrowed.pth").unlink()
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "axolotl-clo", cwd=tmp_path)
    left = {p for p in site.rglob("*clo*") if ("axolotl_clo" in p.name and any(p.rglob("*"))) or p.is_file()}
    assert {p for p in left if "axolotl_clo" in str(p) or "axolotl-clo" in str(p)} == set()
    assert harness <= {p.relative_to(site) for p in (site / "lm_eval").rglob("*")}
