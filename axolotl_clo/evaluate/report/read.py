"""Finds what the folders and files given to `axolotl-clo report` hold, and makes runs of it."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from axolotl_clo.evaluate.report import formats
from axolotl_clo.evaluate.report.harness import Results, read_results
from axolotl_clo.evaluate.report.names import method_in, rows_in
from axolotl_clo.evaluate.report.runs import BASE, METHODS, Curves, Run, Score, ScoreKey, merge_seeds

# Folders with nothing to read and possibly very many files.
_SKIPPED = {"prepared", "last_run_prepared", ".work", ".git", "wandb", "__pycache__"}
_ACCEPTED = (
    "lm-eval results (results_*.json), trainer_state.json, judge.json, answers of `axolotl-clo generate`, or what "
    "`python -m axolotl_clo.quickstart` and `python -m axolotl_clo.compare` leave"
)


def read_runs(paths: Sequence[Path], names: Sequence[str] = ()) -> list[Run]:
    """Runs from folders and files; the folder of a quickstart or a comparison makes several.

    Args:
        paths: one for each run.
        names: one for each path, in their order; without, the folders' names.

    Raises:
        ValueError: there is no path, one holds nothing that is known, the names do not fit, or a file cannot be read.
    """
    if not paths:
        raise ValueError(f"RUN: no runs are given; give one or more folders with {_ACCEPTED}")
    if names and len(names) != len(paths):
        raise ValueError(
            f"--name: {len(names)} names for {len(paths)} runs; give one --name for each run, in their order"
        )
    for path in paths:
        if not path.exists():
            raise ValueError(f"RUN: {path} does not exist; give a folder with {_ACCEPTED}")
    shown = list(names) or _folder_names(paths)
    if repeated := [name for name, times in Counter(shown).items() if times > 1]:
        raise ValueError(f"--name: {repeated[0]!r} stands for more than one run; give each a name of its own")
    runs: list[Run] = []
    for path, name in zip(paths, shown, strict=True):
        found = _read(path, name, prefix=len(paths) > 1)
        if not found:
            raise ValueError(f"RUN: {path} holds nothing that can be reported; expected below it {_ACCEPTED}")
        runs += found
    return _with_unique_names(runs)


def _folder_names(paths: Sequence[Path]) -> list[str]:
    """Names of the folders, with as much of the path before them as tells them apart."""
    whole = [[part for part in path.resolve().parts if part != os.sep] for path in paths]
    for depth in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-depth:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    raise ValueError("RUN: the same folder is given more than once; give each run once")


def _with_unique_names(runs: list[Run]) -> list[Run]:
    counts, seen = Counter(run.name for run in runs), Counter[str]()
    unique = []
    for run in runs:
        seen[run.name] += 1
        unique.append(run if counts[run.name] == 1 else replace(run, name=f"{run.name} ({seen[run.name]})"))
    return unique


def _read(path: Path, name: str, prefix: bool) -> list[Run]:
    if (path / "base" / "scores.json").is_file() or next(path.glob("runs/*/scores.json"), None):
        return _comparison(path, f"{name}: " if prefix else "")
    if (path / "scores-before").is_dir() and (path / "scores-after").is_dir():
        return _quickstart(path, name, prefix)
    return _folder(path, name)


def _quickstart(path: Path, name: str, prefix: bool) -> list[Run]:
    models = sorted(card.parent for card in path.glob("*/README.md"))
    before, after = f"{name}: " if prefix else "", name if prefix else ""
    base = _folder(path / "scores-before", f"{before}base")
    trained = _folder(path / "scores-after", after, also=models)
    named = (replace(run, name=run.name or METHODS.get(run.method or "", "trained")) for run in trained)
    return [*(replace(run, method=BASE) for run in base), *named]


def _comparison(path: Path, prefix: str) -> list[Run]:
    """The runs of `python -m axolotl_clo.compare`, those that differ in their seed alone as one."""
    said = _base_model_line(path / "table.md")
    notes = []
    if searched := len(list(path.glob("search/*/scores.json"))):
        notes = [f"the {searched} runs of the search for learning rates are left out"]
    runs = []
    if (path / "base" / "scores.json").is_file():
        scores, answers, _ = formats.read_compared(path / "base" / "scores.json")
        base = Run(f"{prefix}base", path / "base", BASE, scores=scores, answers=tuple(answers), versions=said)
        runs.append(replace(base, notes=tuple(notes)))
    cells: dict[tuple[str, str, int], list[Run]] = defaultdict(list)
    for file in sorted(path.glob("runs/*/scores.json")):
        method, language, size, seed = file.parent.name.rsplit("-", 3)
        scores, answers, configs = formats.read_compared(file)
        commands = [formats.train_command(*found) for found in _configs(file.parent, configs)]
        found = Run(file.parent.name, file.parent, method, int(size), scores=scores, answers=tuple(answers))
        curves = _curves(_files(file.parent), f"seed {seed}")
        cells[method, language, int(size)].append(
            replace(found, commands=tuple(commands), curves=tuple(curves), versions=said)
        )
    languages = {language for _, language, _ in cells}
    for (method, language, rows), found_runs in sorted(cells.items(), key=lambda cell: _order(cell[0])):
        of_language = f" {language}" if len(languages) > 1 else ""
        title = f"{prefix}{METHODS.get(method, method)}{of_language}, {rows} rows"
        runs.append(merge_seeds(title, found_runs))
    return runs


def _order(cell: tuple[str, str, int]) -> tuple[str, int, int]:
    method, language, rows = cell
    return language, rows, list(METHODS).index(method) if method in METHODS else len(METHODS)


def _configs(folder: Path, recipe: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Path, str]]:
    for config in recipe:
        file = folder / f"{Path(config['output_dir']).name.removeprefix('model-')}.yml"
        if file.is_file() and (found := formats.read_config(file)):
            yield file, found[1]


def _base_model_line(table: Path) -> dict[str, str]:
    """Versions, from the last line of the comparison's table."""
    if not table.is_file():
        return {}
    lines = [line for line in table.read_text(encoding="utf-8").splitlines() if line.startswith("Base model: ")]
    if not lines:
        return {}
    model, _, versions = lines[-1].removeprefix("Base model: ").rstrip(".").partition(". ")
    pairs = [part.rpartition(" ") for part in versions.split(", ")]
    return {"base model": model} | {name: version for name, _, version in pairs if name}


@dataclass
class _Files:
    """What lies below a folder."""

    results: list[Path] = field(default_factory=list)
    states: list[Path] = field(default_factory=list)
    judgements: list[Path] = field(default_factory=list)
    answers: list[Path] = field(default_factory=list)
    configs: list[Path] = field(default_factory=list)

    def add(self, file: Path) -> None:
        name = file.name
        if name.startswith("results_") and file.suffix == ".json":
            self.results.append(file)
        elif name == "trainer_state.json":
            self.states.append(file)
        elif name == "judge.json":
            self.judgements.append(file)
        elif file.suffix == ".jsonl" and file.with_name(f"{name}.json").is_file():
            self.answers.append(file)
        elif file.suffix in (".yml", ".yaml") or name == "README.md":
            self.configs.append(file)


def _files(path: Path) -> _Files:
    found = _Files()
    if path.is_file():
        found.add(path)
        return found
    for folder, below, names in os.walk(path):
        below[:] = sorted(name for name in below if name not in _SKIPPED)
        for name in sorted(names):
            found.add(Path(folder, name))
    return found


def _folder(path: Path, name: str, also: Sequence[Path] = ()) -> list[Run]:
    """The run of a folder; several where results of several models lie in it."""
    files = _files(path)
    for folder in also:
        more = _files(folder)
        files.states += more.states
        files.configs += more.configs
    results = [read_results(file) for file in files.results]
    judgements = tuple(formats.read_judgement(file) for file in files.judgements)
    answers = [answer for file in files.answers for answer in formats.read_answers(file)]
    stated = [formats.stated_command(file.with_name(f"{file.name}.json")) for file in files.answers]
    stated += [formats.stated_command(file) for file in files.judgements]
    curves = _curves(files, name)
    if not (results or judgements or answers or curves):
        return []
    read = [(file, found) for file in files.configs if (found := formats.read_config(file))]
    ordered = formats.in_order((file, options, text) for file, (options, text, _) in _once(read))
    method, rows = formats.method_and_rows([options for _, options, _ in ordered])
    commands = tuple(formats.train_command(file, text) for file, _, text in ordered)
    told = [version for _, (_, _, version) in read if version]
    versions = {"axolotl": told[-1]} if told else {}
    versions |= {name: version for _, found in stated for name, version in found.items()}

    of_models: dict[str, list[Results]] = defaultdict(list)
    for result in results:
        of_models[result.model].append(result)
    runs = []
    for model, own in of_models.items() or [("", [])]:
        title = name if len(of_models) < 2 else f"{name}: {Path(model).name}"
        one = len(of_models) < 2
        run = _of_results(Run(title, path, versions=versions if one else {}), own)
        # Of several models nothing says which one the other files belong to, and a config would name the wrong method.
        if one:
            run = replace(
                run,
                method=method if method in METHODS else method_in(title),
                rows=rows or rows_in(title),
                answers=tuple(answers) or run.answers,
                curves=tuple(curves),
                commands=(*commands, *run.commands, *(command for found, _ in stated for command in found)),
            )
        else:
            run = replace(run, method=method_in(title), rows=rows_in(title))
        runs.append(run)
    runs[0] = replace(runs[0], judgements=judgements)
    return runs


def _once(read: list[tuple[Path, Any]]) -> list[tuple[Path, Any]]:
    """Configs without those told twice, as in a YAML and in the card of the model it made."""
    outputs: dict[str, tuple[Path, Any]] = {}
    for file, found in sorted(read, key=lambda pair: pair[0].suffix == ".md"):
        outputs.setdefault(str(found[0].get("output_dir")), (file, found))
    return list(outputs.values())


def _of_results(run: Run, results: Sequence[Results]) -> Run:
    """Put results files of one model together; a score in several is that of the latest."""
    latest = sorted(results, key=lambda result: result.date)
    scores: dict[ScoreKey, Score] = {}
    notes = list(run.notes)
    for result in latest:
        if again := len(scores.keys() & result.scores.keys()):
            notes.append(f"{again} scores stand in several results files; those of {result.file.name} are shown")
        scores.update(result.scores)
        notes += result.notes
    if len({result.chat_template for result in latest}) > 1:
        notes.append("some results were scored with a chat template and some without")
    versions = dict(run.versions)
    for result in latest:
        versions |= result.versions
    return replace(
        run,
        scores=scores,
        answers=tuple(dict.fromkeys(answer for result in latest for answer in result.answers)),
        commands=tuple(dict.fromkeys(result.command for result in latest)),
        versions=versions,
        notes=tuple(dict.fromkeys(notes)),
        chat_template=latest[-1].chat_template if latest else None,
    )


def _curves(files: _Files, name: str) -> list[Curves]:
    """Training curves, of each training those of its last checkpoint, which holds all before it."""
    last: dict[Path, Path] = {}
    for file in files.states:
        training = file.parent.parent if file.parent.name.startswith("checkpoint-") else file.parent
        last[training] = max(last.get(training, file), file, key=_step)
    found = []
    for training, file in last.items():
        label = name if len(last) == 1 else f"{name}, {training.name}"
        curves = formats.read_curves(file, label)
        found += [curves] if curves else []
    return found


def _step(file: Path) -> float:
    state = formats.load_json(file)
    return float(state.get("global_step") or 0) if isinstance(state, dict) else 0.0
