"""Writes one YAML per task and group: `python eval_tasks/generate.py`.

A further language is one more entry of TARGETS, once the held-out starter rows hold it.
"""

from __future__ import annotations

from pathlib import Path

SOURCE = "en"
TARGETS = (
    "zh",
    "de",
    "ko",
    "id",
    "sw",
    "yo",
)
SCORES = ("fidelity", "preference", "bits_per_byte")


def task_yaml(language: str, score: str) -> str:
    """One score in one language; for `preference` with the languages it is compared with."""
    lines = [
        f"include: _{score}_template_yaml",
        f"task: axolotl_clo_{language}_{score}",
        "dataset_kwargs:",
        f'  language: "{language}"',
    ]
    if score == "preference":
        others = TARGETS if language == SOURCE else (SOURCE,)
        lines.append("  others: [" + ", ".join(f'"{other}"' for other in others) + "]")
    return "\n".join(lines) + "\n"


def group_yaml(language: str) -> str:
    """All scores of one language."""
    lines = ["include: _group_template_yaml", f"group: clo_{language}", "task:"]
    lines += [f"  - axolotl_clo_{language}_{score}" for score in SCORES]
    return "\n".join(lines) + "\n"


def all_yamls() -> dict[str, str]:
    """File name to text, for every language."""
    yamls = {}
    for language in (SOURCE, *TARGETS):
        yamls[f"clo_{language}.yaml"] = group_yaml(language)
        for score in SCORES:
            yamls[f"axolotl_clo_{language}_{score}.yaml"] = task_yaml(language, score)
    return yamls


if __name__ == "__main__":
    folder = Path(__file__).parent
    for old in folder.glob("*.yaml"):
        old.unlink()
    for name, text in all_yamls().items():
        (folder / name).write_text(text, encoding="utf-8")
