"""Files other than the harness's: trainer state, Axolotl configs, answers, verdicts and results of the comparison."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from axolotl_clo.evaluate.language import LANGUAGES, LanguageIdentifier, supported
from axolotl_clo.evaluate.report.documents import per_document
from axolotl_clo.evaluate.report.harness import document_key
from axolotl_clo.evaluate.report.runs import Answer, Command, Curves, Judgement, Score, ScoreKey, Tally
from axolotl_clo.evaluate.tasks import is_echo
from axolotl_clo.redact import redact_options

ANSWERS_FORMAT = "axolotl-clo answers 1"
JUDGE_FORMAT = "axolotl-clo judge 1"
_CONFIG_IN_CARD = re.compile(r"axolotl version: `([^`]+)`\s*```yaml\n(.*?)\n```", re.DOTALL)
# Scores of the comparison, the task of each, and whether higher is better.
_COMPARED: dict[str, tuple[str, bool | None]] = {
    "fidelity": ("fidelity", True),
    "fidelity_no_echo": ("fidelity", True),
    "preference": ("preference", True),
    "bits_per_byte": ("bits_per_byte", False),
    "kl": ("kl", False),
    "echoes": ("echoes", False),
    "characters": ("characters", None),
}


def load_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is not whole.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not a whole JSON file ({error}); write it again, or remove it") from None


def read_curves(file: Path, name: str) -> Curves | None:
    """The numbers a `trainer_state.json` logged by step; values that are not finite are left out."""
    data = load_json(file)
    history = data.get("log_history") if isinstance(data, dict) else None
    if not isinstance(history, list):
        raise ValueError(f"{file}: no list `log_history`, so it is no trainer state of transformers; remove the file")
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for entry in history:
        for key, value in entry.items():
            known = key.removeprefix("eval_")
            if (
                (known == "loss" or known.startswith("clo/"))
                and isinstance(value, int | float)
                and math.isfinite(value)
            ):
                points[key].append((float(entry.get("step", 0)), float(value)))
    return Curves(name, {key: sorted(found) for key, found in points.items()}) if points else None


def read_config(file: Path) -> tuple[dict[str, Any], str, str | None] | None:
    """An Axolotl config: its options, its text without secrets, and the version of Axolotl where the file tells.

    Args:
        file: a YAML file, or the model card that Axolotl writes, which holds the config. Another file gives None.
    """
    text, version = file.read_text(encoding="utf-8", errors="replace"), None
    if file.suffix == ".md":
        found = _CONFIG_IN_CARD.search(text)
        if not found:
            return None
        version, text = found.groups()
    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    if not isinstance(options, dict) or not {"base_model", "datasets"} <= options.keys():
        return None
    return options, redact_options(text.strip()), version


def method_and_rows(configs: Sequence[Mapping[str, Any]]) -> tuple[str | None, int | None]:
    """The method that configs trained one after the other make, and the rows it takes."""
    if not configs:
        return None, None
    stages = [str(config.get("rl") or "sft") for config in configs]
    rows = [(config.get("clo") or {}).get("max_examples") for config in configs]
    return ("_".join(stages), rows[-1]) if len(stages) < 3 else (None, rows[-1])


def read_answers(file: Path) -> list[Answer]:
    """Answers that `axolotl-clo generate` wrote.

    Raises:
        ValueError: a line is no answer, or the description beside the file is of another format.
    """
    beside = file.with_name(f"{file.name}.json")
    stated = load_json(beside).get("format")
    if stated != ANSWERS_FORMAT:
        raise ValueError(
            f"{beside}: format {stated!r}; {ANSWERS_FORMAT!r} is read: generate the answers again with this version"
        )
    answers = []
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = json.loads(line)
                answers.append(Answer(row["language"], row["prompt"], row["answer"] or "", int(row.get("shots") or 0)))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{file}, line {number}: no object with language, prompt and answer ({error!r}); run the same "
                    "`axolotl-clo generate` again, it goes on from the last whole line"
                ) from None
    return answers


def stated_command(file: Path) -> tuple[list[Command], dict[str, str]]:
    """The command and versions that `axolotl-clo generate` and `judge` state in the JSON file they write."""
    data = load_json(file)
    command, versions = data.get("command"), data.get("versions") or {}
    words = shlex.join(command) if isinstance(command, list) else command
    return [Command(redact_options(str(words)))] if words else [], {
        name: str(version) for name, version in versions.items()
    }


def read_judgement(file: Path) -> Judgement:
    """What `axolotl-clo judge` wrote.

    Raises:
        ValueError: the file is of another format.
    """
    data = load_json(file)
    if data.get("format") != JUDGE_FORMAT:
        raise ValueError(f"{file}: format {data.get('format')!r}; {JUDGE_FORMAT!r} is read: judge again")
    try:
        tallies = tuple(_tally(language, found) for language, found in data["languages"].items())
        first, second = (str(data[side]["model"]) for side in ("a", "b"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: lacks {error}, so it is not whole; judge again") from None
    return Judgement(first, second, str(data.get("judge")), tallies, sum((data.get("unjudged") or {}).values()))


def _tally(language: str, found: Mapping[str, Any]) -> Tally:
    interval, controlled = found.get("interval"), found.get("length_controlled")
    if isinstance(controlled, Mapping):
        controlled = controlled.get("win_rate")
    return Tally(
        language,
        int(found["n"]),
        int(found["wins"]),
        int(found["ties"]),
        int(found["losses"]),
        float(found["win_rate"]),
        (float(interval[0]), float(interval[1])) if interval else None,
        float(controlled) if controlled is not None else None,
    )


def read_compared(file: Path) -> tuple[dict[ScoreKey, Score], list[Answer], list[Mapping[str, Any]]]:
    """Scores, answers and configs of one run of `python -m axolotl_clo.compare`, from its `scores.json`."""
    data = load_json(file)
    try:
        answers = [Answer(lang, *pair) for lang, pairs in data["answers"].items() for pair in pairs]
        found, configs = data["scores"], data["recipe"]["configs"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: lacks {error}; remove the file and run the same comparison again") from None
    scores = {}
    for language, values in found.items():
        own = [answer for answer in answers if answer.language == language]
        documents = _fidelity(language, own) if own and supported(language) else {}
        for metric, (task, better) in _COMPARED.items():
            if metric in values:
                key = ScoreKey(language, f"axolotl_clo_{language}_{task}", metric, 0)
                of_documents = per_document(documents.get(metric, {}), values[metric])
                scores[key] = Score(key, float(values[metric]), better, documents=of_documents, count=len(own) or None)
    return scores, answers, configs


def _fidelity(language: str, answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Scores by document of answers, which the file holds only as means: by metric and document."""
    identified = LanguageIdentifier((*LANGUAGES, language)).identify_many([answer.text for answer in answers])
    keys = [document_key({"language": language, "prompt": answer.prompt}) for answer in answers]
    if len(set(keys)) < len(keys):
        return {}
    echoes = [is_echo(answer.prompt, answer.text) for answer in answers]
    right = [found == language for found in identified]
    return {
        "fidelity": dict(zip(keys, map(float, right), strict=True)),
        "fidelity_no_echo": {k: float(r and not e) for k, r, e in zip(keys, right, echoes, strict=True)},
        "echoes": dict(zip(keys, map(float, echoes), strict=True)),
        "characters": {key: float(len(answer.text)) for key, answer in zip(keys, answers, strict=True)},
    }


def in_order(configs: Iterable[tuple[Path, dict[str, Any], str]]) -> list[tuple[Path, dict[str, Any], str]]:
    """Configs of a run, each after the one whose output it starts from."""
    rest, ordered = list(configs), list[tuple[Path, dict[str, Any], str]]()
    while rest:
        outputs = {str(options.get("output_dir")) for _, options, _ in rest}
        first = next((found for found in rest if str(found[1]["base_model"]) not in outputs), rest[0])
        rest.remove(first)
        ordered.append(first)
    return ordered


def train_command(file: Path, text: str) -> Command:
    """The command that trains a config; one taken from a model card has to be saved under some name first."""
    return Command(f"axolotl train {'config.yml' if file.suffix == '.md' else shlex.quote(str(file))}", text)
