"""The KoBEST table of Lee and Park for any model: `python -m axolotl_clo.evaluate.kobest MODEL`.

Macro F1 on BoolQ, COPA, HellaSwag, SentiNeg and WiC, with no examples and with five, of a model that is loaded once.
The paper's table has the first four; its figures are in per cent, and so are these.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GROUP = "clo_ko_kobest"
TASKS = {"boolq": "BoolQ", "copa": "COPA", "hellaswag": "HellaSwag", "sentineg": "SentiNeg", "wic": "WiC"}


def table(rows: Mapping[tuple[str, int], Mapping[str, float]]) -> str:
    """Macro F1 in per cent as Markdown.

    Args:
        rows: name of a model and number of examples, to macro F1 (0 to 1) by task.
    """
    lines = ["| model | k | " + " | ".join(TASKS.values()) + " |", "|---" * (2 + len(TASKS)) + "|"]
    for (model, shots), scores in rows.items():
        lines.append(f"| {model} | {shots} | " + " | ".join(f"{100 * scores[task]:.2f}" for task in TASKS) + " |")
    return "\n".join(lines)


def scores(results: Mapping[str, Any]) -> dict[str, float]:
    """Macro F1 by task, of what `lm_eval.simple_evaluate` returns for the group."""
    return {task: results["results"][f"axolotl_clo_ko_kobest_{task}"]["f1,none"] for task in TASKS}


def evaluate(model: Any, shots: Sequence[int], **options: Any) -> dict[int, dict[str, Any]]:
    """What the harness gives for the group with each number of examples.

    Args:
        model: a model of the harness.
        shots: numbers of examples.
        options: further arguments of `lm_eval.simple_evaluate`.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    from axolotl_clo.evaluate import task_folder

    manager = TaskManager(include_path=str(task_folder()), include_defaults=False)
    return {
        number: lm_eval.simple_evaluate(model=model, tasks=[GROUP], task_manager=manager, num_fewshot=number, **options)
        for number in shots
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name on the hub, or folder")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 5], metavar="K", help="numbers of examples")
    parser.add_argument("--backend", default="hf", help="of the harness: hf, vllm and others")
    parser.add_argument("--model_args", default="", help="further ones, for example dtype=bfloat16")
    parser.add_argument("--batch_size", default="8")
    parser.add_argument("--device")
    parser.add_argument("--apply_chat_template", action="store_true")
    parser.add_argument("--limit", type=int, help="documents of each task, to try it out")
    parser.add_argument("--output_path", type=Path, help="folder for the harness's results, one file for each K")
    options = parser.parse_args(arguments)

    from lm_eval.api.registry import get_model

    names = ",".join(filter(None, [f"pretrained={options.model}", options.model_args]))
    settings = {"batch_size": options.batch_size, "device": options.device}
    model = get_model(options.backend).create_from_arg_string(names, settings)
    found = evaluate(
        model,
        options.shots,
        limit=options.limit,
        apply_chat_template=options.apply_chat_template,
        fewshot_as_multiturn=options.apply_chat_template,
        log_samples=False,
    )
    if options.output_path:
        options.output_path.mkdir(parents=True, exist_ok=True)
        for shots, results in found.items():
            file = options.output_path / f"results_kobest_{shots}-shot.json"
            file.write_text(json.dumps(results, indent=2, default=str, ensure_ascii=False), encoding="utf-8")
    print(table({(Path(options.model).name, shots): scores(results) for shots, results in found.items()}))


if __name__ == "__main__":
    main()
