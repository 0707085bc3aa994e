"""What tasks, scores and languages are called, and which language a task is in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from axolotl_clo.evaluate.report.runs import METHODS, SOURCE, ScoreKey

# Scores this package or the harness reports, as a reader would say them.
_METRICS = {
    "acc": "accuracy",
    "acc_norm": "accuracy, by length",
    "f1": "F1",
    "macro_f1": "macro F1",
    "exact_match": "exact match",
    "fidelity": "fidelity",
    "fidelity_no_echo": "fidelity without echoes",
    "preference": "preference",
    "preference_per_byte": "preference per byte",
    "bits_per_byte": "bits per byte",
    "echoes": "echoes of the prompt",
    "characters": "characters of an answer",
    "kl": "KL from the base model, nats per token",
    "line_pass_rate": "line-level pass rate",  # nosec B105 # no password
    "word_pass_rate": "word-level pass rate",  # nosec B105 # no password
    "language_confusion_pass_rate": "language confusion pass rate",  # nosec B105 # no password
    "skipped": "answers too short for the pass rates",
}
_OURS = re.compile(r"^(?:axolotl_)?clo_([a-z]{2,3})(?:_(.+))?$")
# The harness's own tasks that say their language otherwise.
_THEIRS = (
    (re.compile(r"^belebele_([a-z]{3})_[A-Z][a-z]{3}"), None),
    (re.compile(r"mmm?lu_([a-z]{2})(?:_|$)"), None),
    (re.compile(r"^kobest"), "ko"),
    (
        re.compile(r"^(mmlu|arc|hellaswag|winogrande|truthfulqa|gsm8k|piqa|boolq|openbookqa|ifeval|sciq)(_|$)"),
        SOURCE,
    ),
)


def task_language(task: str, config: Mapping[str, Any]) -> str | None:
    """ISO 639 code of the language a task is in, or None where neither its config nor its name tells."""
    stated = (config.get("dataset_kwargs") or {}).get("language") or (config.get("metadata") or {}).get("language")
    if isinstance(stated, str):
        return stated
    if ours := _OURS.match(task):
        return ours[1]
    for pattern, language in _THEIRS:
        if found := pattern.search(task):
            return language or _two_letters(found[1])
    return None


@lru_cache
def _two_letters(code: str) -> str:
    import langcodes

    return langcodes.Language.get(code).prefer_macrolanguage().language or code


@lru_cache
def language_name(code: str | None) -> str:
    """In English: `German` for `de`; the code itself where it is none."""
    import langcodes

    if code is None:
        return "Other tasks"
    return langcodes.Language.get(code).display_name() if langcodes.tag_is_valid(code) else code


def score_name(key: ScoreKey) -> str:
    """A score in words, without its language: `belebele: accuracy, 5-shot`."""
    ours = _OURS.match(key.task)
    task = (ours[2] or key.task) if ours else key.task
    metric = _METRICS.get(key.metric, key.metric.replace("_", " "))
    # The offline tasks are called by the kind of score they hold.
    offline = ours and task in ("fidelity", "preference", "bits_per_byte", "echoes", "kl", "characters")
    name = metric if offline else f"{task.replace('_', ' ')}: {metric}"
    return f"{name}, {key.shots}-shot" if key.shots else name


def method_in(name: str) -> str | None:
    """The method a run's name tells of, or None."""
    words = re.split(r"[^a-z]+", name.lower())
    if "sft" in words and "dpo" in words:
        return "sft_dpo"
    if {"before", "pretrained", "untrained"} & set(words):
        return "base"
    return next((method for method in reversed(METHODS) if method in words), None)


def rows_in(name: str) -> int | None:
    """The examples a run's name tells of, as `clo-1600-rows` or `CLO 1600 examples`."""
    found = re.search(r"(\d[\d,]*)[ _-]?(?:rows|examples)\b", name.lower())
    return int(found[1].replace(",", "")) if found else None
