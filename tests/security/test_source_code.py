"""What the package's source may not hold: code of others run unasked, pickle, shells, unsafe YAML."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

FOLDERS = ("axolotl_clo", "eval_tasks", "example_configs")
SOURCES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
CONFIGS = sorted(
    file
    for folder in FOLDERS
    for file in (ROOT / folder).rglob("*")
    if file.is_file() and file.suffix in (".yml", ".yaml", ".json", "")
)
# Classes whose `from_pretrained` runs no code of a model's: one class of transformers, and adapters.
CODE_FREE = {"PreTrainedTokenizerFast", "PeftModel"}
MODULES = {
    "pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib",
    "dbm",
    "runpy",
    "code",
    "telnetlib",
}
# Calls that run text as code, start a shell, or unpickle.
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.save",
    "torch.jit.load",
    "numpy.load",
    "np.load",
    "np.save",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.dump",
    "pd.read_pickle",
    "tempfile.mktemp",
}


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Each call with the dotted name of what is called; names that are computed are given as far as they are known."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((given.value for given in call.keywords if given.arg == name), None)


def problems(source: str) -> list[str]:
    """What of a source is not allowed, with its line."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES]
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code" and not _from_user(value):
                    found.append(f"{node.lineno}: trust_remote_code not from the user")
    for call, name in calls(tree):
        trusted = keyword(call, "trust_remote_code")
        if trusted is not None and not _from_user(trusted):
            found.append(f"{call.lineno}: {name} with trust_remote_code={ast.unparse(trusted)}")
        of_class = name.rpartition(".")[0]
        if name.endswith((".from_pretrained", ".from_config")) and of_class not in CODE_FREE and trusted is None:
            found.append(f"{call.lineno}: {name} does not say trust_remote_code")
        if name in CALLS:
            found.append(f"{call.lineno}: {name}")
        weights_only = keyword(call, "weights_only")
        if name == "torch.load" and not (isinstance(weights_only, ast.Constant) and weights_only.value is True):
            found.append(f"{call.lineno}: torch.load without weights_only=True")
        shell = keyword(call, "shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            found.append(f"{call.lineno}: {name} with a shell")
    return found


def _from_user(value: ast.expr) -> bool:
    """False, or an option of that name, which may be unset."""
    option = ast.unparse(value).removeprefix("bool(").removesuffix(")")
    return (isinstance(value, ast.Constant) and value.value is False) or option.endswith("trust_remote_code")


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_source_neither_runs_nor_unpickles_what_it_reads(file: Path) -> None:
    assert problems(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "AutoModel.from_pretrained('x')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=1 == 1)",
        "options = {'trust_remote_code': True}",
        "load_dataset('x', trust_remote_code=True)",
        "import pickle",
        "from cloudpickle import loads",
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "torch.save(x, 'x')",
        "yaml.load(text, Loader)",
        "subprocess.run('ls', shell=True)",
        "os.system('ls')",
        "eval('1')",
    ],
)
def test_the_scan_finds_what_it_looks_for(source: str) -> None:
    assert len(problems(source)) == 1


def test_no_config_or_task_trusts_remote_code() -> None:
    assert len(CONFIGS) > 200
    trusting = [
        f for f in CONFIGS if re.search(r"trust_remote_code[\"']?\s*[:=]\s*[\"']?(true|yes|1)", f.read_text(), re.I)
    ]
    assert trusting == []


def test_code_of_models_is_off_where_the_user_says_nothing() -> None:
    from axolotl_clo.cli_evaluate import generate
    from axolotl_clo.evaluate.models import ModelOptions

    assert ModelOptions("m").trust_remote_code is False
    assert inspect.signature(generate).parameters["trust_remote_code"].default is False
