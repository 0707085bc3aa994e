"""Results and samples of lm-evaluation-harness, as `lm_eval --output_path OUT --log_samples` leaves them."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from axolotl_clo.evaluate.report.documents import per_document
from axolotl_clo.evaluate.report.names import task_language
from axolotl_clo.evaluate.report.runs import Answer, Command, Score, ScoreKey
from axolotl_clo.redact import redact_options

OLDEST = (0, 4, 11)
_NEEDED = ("results", "configs", "n-shot", "higher_is_better", "config")
_MANY_TASKS = 8  # of one dataset; from here on a group's score stands for theirs


class Results(NamedTuple):
    """One results file and the samples beside it."""

    file: Path
    model: str
    date: float
    scores: dict[ScoreKey, Score]
    answers: list[Answer]
    command: Command
    versions: dict[str, str]
    chat_template: bool
    notes: list[str]


def read_results(file: Path) -> Results:
    """Read a results file of the harness, 0.4.11 or later.

    Raises:
        ValueError: the file is not whole, or of another version; the message says how to get one that is read.
    """
    data = _load(file)
    tasks, collapsed = data["configs"], _collapsed(data)
    samples = _Samples(file)
    scores: dict[ScoreKey, Score] = {}
    hidden = {leaf for leaves in collapsed.values() for leaf in leaves}
    for task in (*(t for t in data["results"] if t in tasks and t not in hidden), *collapsed):
        leaves = collapsed.get(task, [task])
        values = data["results"].get(task) or data["groups"][task]
        language = task_language(task, tasks[leaves[0]]) or task_language(leaves[0], tasks[leaves[0]])
        better = data["higher_is_better"].get(task) or data["higher_is_better"].get(leaves[0]) or {}
        for metric, filter_name, value in _metrics(values):
            name = metric if filter_name == "none" else f"{metric}, {filter_name}"
            key = ScoreKey(language, task, name, int(data["n-shot"].get(leaves[0]) or 0))
            raw, parts = samples.of(leaves, metric, filter_name)
            error = values.get(f"{metric}_stderr,{filter_name}")
            scores[key] = Score(
                key,
                value,
                better.get(metric),
                error=float(error) if isinstance(error, int | float) and math.isfinite(error) else None,
                documents=per_document(raw, value, parts if len(leaves) > 1 else None),
                count=len(raw) or _count(data, leaves),
            )
    notes = (
        [] if samples.files else [f"{file.name} has no samples beside it, so no test by document: add --log_samples"]
    )
    limit = data["config"].get("limit")
    if limit:
        notes.append(f"scored with --limit {limit:g}: the first documents of each task alone")
    return Results(
        file,
        str(data.get("model_name") or data["config"].get("model_args") or "unknown"),
        float(data.get("date") or 0.0),
        scores,
        samples.answers(data["n-shot"]),
        Command(_command(data)),
        _versions(data),
        bool(data.get("chat_template")),
        notes,
    )


def _load(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file}: not a whole JSON file ({error}); score the model again, or remove the file"
        ) from None
    again = "score the model again with `pip install 'lm_eval>=0.4.11'`, or leave this run out"
    version = data.get("lm_eval_version") if isinstance(data, dict) else None
    if version is None:
        raise ValueError(
            f"{file}: names no lm_eval_version, so it is no results file of lm-evaluation-harness 0.4.11 or later; "
            f"{again}"
        )
    if tuple(map(int, re.findall(r"\d+", str(version))[:3])) < OLDEST:
        raise ValueError(f"{file}: written by lm-evaluation-harness {version}; 0.4.11 and later are read; {again}")
    missing = [name for name in _NEEDED if not isinstance(data.get(name), dict)]
    if missing:
        raise ValueError(
            f"{file}: written by lm-evaluation-harness {version} in a format that is not known here "
            f"(without {', '.join(missing)}); {again}"
        )
    return data


def _metrics(values: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    for name, value in values.items():
        metric, comma, filter_name = name.partition(",")
        if not comma or metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if math.isfinite(value):
            yield metric, filter_name, float(value)


def _collapsed(data: Mapping[str, Any]) -> dict[str, list[str]]:
    """Groups that stand for their tasks: many parts of one dataset, as the 57 subjects of MMLU."""
    children: Mapping[str, list[str]] = data.get("group_subtasks") or {}
    groups = data.get("groups") or {}

    def leaves(name: str) -> list[str]:
        below = children.get(name) or []
        return [leaf for child in below for leaf in leaves(child)] if below else [name]

    found: dict[str, list[str]] = {}
    for group in sorted(groups, key=lambda name: -len(leaves(name))):
        parts = leaves(group)
        datasets = {data["configs"].get(leaf, {}).get("dataset_path") or leaf for leaf in parts}
        taken = any(set(parts) <= set(others) for others in found.values())
        if len(parts) >= _MANY_TASKS and len(datasets) == 1 and not taken and any(_metrics(groups[group])):
            found[group] = parts
    return found


def _count(data: Mapping[str, Any], leaves: list[str]) -> int | None:
    counts = [(data.get("n-samples") or {}).get(leaf, {}).get("effective") for leaf in leaves]
    return sum(counts) if all(isinstance(count, int) for count in counts) else None


class _Sample(NamedTuple):
    """What is kept of a line of a samples file."""

    document: str
    filter: str
    values: dict[str, Any]
    answer: Answer | None


class _Samples:
    """The samples files of one results file."""

    def __init__(self, results: Path) -> None:
        date = results.stem.removeprefix("results_")
        ending = f"_{date}.jsonl"
        self.files = {
            file.name.removeprefix("samples_").removesuffix(ending): file
            for file in sorted(results.parent.glob("samples_*"))
            if file.name.endswith(ending)
        }
        self._read: dict[str, list[_Sample]] = {}

    def lines(self, task: str) -> list[_Sample]:
        """The samples of a task, less what is large and not needed here."""
        if task not in self._read:
            self._read[task] = list(_samples(self.files[task])) if task in self.files else []
        return self._read[task]

    def of(self, tasks: list[str], metric: str, filter_name: str) -> tuple[dict[str, Any], dict[str, str]]:
        """What is stored of a score for each document, and the task of each."""
        raw: dict[str, Any] = {}
        parts: dict[str, str] = {}
        for task in tasks:
            for sample in self.lines(task):
                if sample.filter == filter_name and sample.values.get(metric) is not None:
                    document = f"{task}/{sample.document}" if len(tasks) > 1 else sample.document
                    raw[document], parts[document] = sample.values[metric], task
        return raw, parts

    def answers(self, shots: Mapping[str, int]) -> list[Answer]:
        found = (
            sample.answer._replace(shots=int(shots.get(task) or 0))
            for task in self.files
            for sample in self.lines(task)
            if sample.answer
        )
        return list(dict.fromkeys(found))


def _samples(file: Path) -> Iterator[_Sample]:
    seen: dict[tuple[str, str], int] = defaultdict(int)
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                sample = json.loads(line)
                doc, hash_, metrics = sample["doc"], sample["doc_hash"], sample["metrics"]
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f"{file}, line {number}: no sample of lm-evaluation-harness 0.4.11 or later ({error!r}); score "
                    "the model again with --log_samples, or remove the file"
                ) from None
            filter_name = sample.get("filter", "none")
            document = document_key(doc, hash_)
            seen[document, filter_name] += 1
            if (times := seen[document, filter_name]) > 1:
                document = f"{document}#{times}"
            said, answer = (sample.get("filtered_resps") or [None])[0], None
            if isinstance(doc, dict) and "language" in doc and "prompt" in doc and isinstance(said, str):
                answer = Answer(str(doc["language"]), str(doc["prompt"]), said)
            yield _Sample(document, filter_name, {name: sample.get(name) for name in metrics}, answer)


def document_key(doc: Any, hash_: str = "") -> str:
    """What two runs know a document by: its prompt where it has one, which tasks share, else the harness's hash."""
    if isinstance(doc, dict) and isinstance(doc.get("prompt"), str) and isinstance(doc.get("language"), str):
        return hashlib.sha256(f"{doc['language']}\n{doc['prompt']}".encode()).hexdigest()[:16]
    return hash_[:16]


def _command(data: Mapping[str, Any]) -> str:
    """The command line, rebuilt from what the results file states."""
    config, children = data["config"], data.get("group_subtasks") or {}
    inside = {child for below in children.values() for child in below}
    tasks = [name for name in (children or data["results"]) if name not in inside]
    arguments = config.get("model_args") or {}
    if isinstance(arguments, str):
        arguments = dict(part.partition("=")[::2] for part in arguments.split(","))
    stated = ",".join(f"{name}={value}" for name, value in arguments.items())
    words = ["lm_eval", "--model", str(config.get("model")), "--model_args", stated, "--tasks", ",".join(tasks)]
    shots = {int(data["n-shot"].get(task) or 0) for task in data["configs"]}
    if len(shots) == 1 and shots != {0}:
        words += ["--num_fewshot", str(shots.pop())]
    if data.get("chat_template"):
        words.append("--apply_chat_template")
    for option in ("batch_size", "device", "limit", "gen_kwargs"):
        if config.get(option):
            words += [f"--{option}", str(config[option])]
    return shlex.join(map(redact_options, words))


def _versions(data: Mapping[str, Any]) -> dict[str, str]:
    found = {"lm_eval": data["lm_eval_version"], "transformers": data.get("transformers_version")}
    torch = re.search(r"^PyTorch version: (.+)$", str(data.get("pretty_env_info")), re.MULTILINE)
    python = re.search(r"^Python version: (\S+)", str(data.get("pretty_env_info")), re.MULTILINE)
    found |= {"torch": torch and torch[1], "Python": python and python[1]}
    dtype, size = data["config"].get("model_dtype"), data["config"].get("model_num_parameters")
    found |= {"weights": dtype and str(dtype).removeprefix("torch.")}
    found |= {"parameters": f"{size:,}" if isinstance(size, int) and size > 0 else None}
    return {name: str(value) for name, value in found.items() if value}
