"""Folders of runs, as the harness, Axolotl and this package's commands leave them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from axolotl_clo.evaluate.report import write_report

DATE = "2026-01-02T03-04-05.678901"
ENGLISH = "The largest planet of our solar system is Jupiter, a huge ball of gas."
GERMAN = "Der größte Planet unseres Sonnensystems ist der Jupiter, ein riesiger Ball aus Gas."
Documents = Mapping[str, Any]


def write_results(
    folder: Path,
    tasks: Mapping[str, Mapping[str, Documents]],
    *,
    model: str = "some/model",
    version: str | None = "0.4.11",
    answers: Mapping[str, Mapping[str, str]] | None = None,
    values: Mapping[tuple[str, str], float] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    shots: int = 0,
    samples: bool = True,
    chat_template: str | None = "{{ messages }}",
    date: str = DATE,
    stderr: Any = "N/A",
) -> Path:
    """A results file and its samples in the harness's format; `test_report_read.py` compares it with the harness.

    Args:
        tasks: task, metric and document to what the harness stores of it; documents are named by their prompts.
        answers: task and prompt to the generated answer.
        values: score of a task and metric where it is not the mean.
        groups: tasks that lie in a group, whose score is the mean over all their documents.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    for task, metrics in tasks.items():
        results[task] = {"alias": task}
        for metric, documents in metrics.items():
            value = (values or {}).get((task, metric))
            results[task][f"{metric},none"] = mean(documents.values()) if value is None else value
            results[task][f"{metric}_stderr,none"] = stderr
        if samples:
            lines = [
                _sample(
                    i,
                    task,
                    prompt,
                    {m: d[prompt] for m, d in metrics.items() if prompt in d},
                    (answers or {}).get(task),
                )
                for i, prompt in enumerate(next(iter(metrics.values())))
            ]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"samples_{task}_{date}.jsonl").write_text(text, encoding="utf-8")
    of_groups = {
        group: {
            f"{metric},none": mean(v for leaf in leaves for v in tasks[leaf][metric].values())
            for metric in tasks[leaves[0]]
        }
        for group, leaves in (groups or {}).items()
    }
    data: dict[str, Any] = {
        "results": results | of_groups,
        "groups": of_groups,
        "group_subtasks": {task: [] for task in tasks} | dict(groups or {}),
        "configs": {task: {"task": task, "dataset_path": task.rsplit("_", 1)[0]} for task in tasks},
        "n-shot": dict.fromkeys(tasks, shots),
        "higher_is_better": {
            task: {metric: metric != "bits_per_byte" for metric in metrics} for task, metrics in tasks.items()
        },
        "n-samples": {task: {"effective": len(next(iter(metrics.values())))} for task, metrics in tasks.items()},
        "config": {
            "model": "hf",
            "model_args": {"pretrained": model, "api_key": "sk-123"},
            "batch_size": 8,
            "limit": None,
        },
        "date": float(date[:4]) * 1e6,
        "pretty_env_info": "PyTorch version: 2.13.0\n",
        "transformers_version": "5.16.1",
        "model_name": model,
        "chat_template": chat_template,
    }
    if version:
        data["lm_eval_version"] = version
    file = folder / f"results_{date}.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    return file


def _sample(
    i: int, task: str, prompt: str, metrics: Mapping[str, Any], answers: Mapping[str, str] | None
) -> dict[str, Any]:
    doc: dict[str, Any] = {"question": prompt}
    if task.endswith(("_fidelity", "_preference")):
        doc = {"prompt": prompt, "language": task.split("_")[2]}
    return {
        "doc_id": i,
        "doc": doc,
        "target": "",
        "filter": "none",
        "metrics": list(metrics),
        "filtered_resps": [answers[prompt]] if answers and prompt in answers else [["-1.0", "False"]],
        "doc_hash": hashlib.sha256(json.dumps([task, doc]).encode()).hexdigest(),
        **metrics,
    }


def zeros_and_ones(right: int, of: int, start: int = 0) -> dict[str, float]:
    """Documents of which the first `right`, from `start` on, are answered rightly."""
    return {f"document {i}": float(start <= i < start + right) for i in range(of)}


def write_starter_run(folder: Path, fidelity: int, preference: int, language: str = "de", **options: Any) -> Path:
    """The offline tasks of a language and of English, so many of 32 right."""
    tasks = {}
    for code, right in ((language, fidelity), ("en", 32)):
        tasks[f"axolotl_clo_{code}_fidelity"] = {"fidelity_no_echo": zeros_and_ones(right, 32)}
        preferred = zeros_and_ones(preference if code == language else 32, 32)
        tasks[f"axolotl_clo_{code}_preference"] = {"preference_per_byte": preferred}
    return write_results(folder, tasks, **options)


def write_trainer_state(folder: Path, steps: int, loss: float = 2.0) -> Path:
    """A checkpoint's log."""
    history: list[dict[str, Any]] = [
        {"step": i, "loss": loss / (1 + i / steps), "clo/nll": loss, "grad_norm": 1.0} for i in range(1, steps + 1)
    ]
    history.append({"step": steps, "eval_loss": loss / 2, "eval_clo/fidelity_target": 0.5})
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "trainer_state.json"
    file.write_text(json.dumps({"global_step": steps, "log_history": history}), encoding="utf-8")
    return file


def write_answers(file: Path, rows: Sequence[tuple[str, str, str]], form: str = "axolotl-clo answers 1") -> Path:
    """Rows of language, prompt and answer, as `axolotl-clo generate` writes them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"id": str(i), "language": language, "prompt": prompt, "answer": answer, "shots": 0}
        for i, (language, prompt, answer) in enumerate(rows)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    about = {"format": form, "rows": len(rows), "command": "axolotl-clo generate", "versions": {"torch": "2.13.0"}}
    file.with_name(f"{file.name}.json").write_text(json.dumps(about), encoding="utf-8")
    return file


def write_judgement(folder: Path, wins: int, ties: int, losses: int) -> Path:
    """The summary of `axolotl-clo judge` in one language."""
    n = wins + ties + losses
    rate = (wins + ties / 2) / n
    error = 1.96 * math.sqrt(rate * (1 - rate) / n)
    tally = {"n": n, "wins": wins, "ties": ties, "losses": losses, "win_rate": rate}
    tally |= {"interval": [rate - error, rate + error], "length_controlled": rate - 0.02}
    data = {
        "format": "axolotl-clo judge 1",
        "judge": "judge-8b",
        "a": {"model": "clo", "answers": "clo.jsonl"},
        "b": {"model": "sft", "answers": "sft.jsonl"},
        "languages": {"de": tally, "all": tally},
        "unjudged": {"prose": 2},
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "judge.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    return file


def write_config(file: Path, rl: str | None, rows: int, base_model: str = "base", output_dir: str = "out") -> Path:
    """An Axolotl config."""
    lines = [f"base_model: {base_model}", f"output_dir: {output_dir}", "hub_token: hf_secret"]
    lines += [f"rl: {rl}"] if rl else []
    lines += ["clo:", "  target_lang: de", f"  max_examples: {rows}", "datasets:", "  - path: axolotl_clo/starter"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def write_compared(folder: Path, fidelity: float, answers: list[list[str]]) -> None:
    """What `python -m axolotl_clo.compare` writes for one run."""
    folder.mkdir(parents=True)
    scores = {"de": {"fidelity": fidelity, "fidelity_no_echo": fidelity, "preference": 0.25, "bits_per_byte": 2.0}}
    recipe = {"configs": [{"output_dir": str(folder / "model-clo")}]}
    text = json.dumps({"recipe": recipe, "scores": scores, "answers": {"de": answers}})
    (folder / "scores.json").write_text(text, encoding="utf-8")


def write_whole_run(folder: Path, method: str, rows: int, right: int, judged: bool = False) -> Path:
    """A run with everything."""
    write_starter_run(folder, right, right // 2, model=f"org/{folder.name}")
    write_trainer_state(folder / "checkpoint-40", 40, 2.0 + rows / 1000)
    write_answers(
        folder / "answers.jsonl", [("de", f"Frage {i}?", f"Antwort {i} von {folder.name}.") for i in range(9)]
    )
    if method != "base":
        write_config(folder / f"{method}.yml", None if method == "sft" else method, rows)
    if judged:
        write_judgement(folder, 20, 10, 5)
    return folder


def written(out: Path, *runs: Path, names: tuple[str, ...] = ()) -> tuple[str, str]:
    """The page and the tables of a report on these runs."""
    write_report(runs, out, names, command="axolotl-clo report")
    return tuple((out / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))  # type: ignore[return-value]
