"""Writes one YAML per task and group: `python eval_tasks/generate.py`.

A further language is one more line of LANGUAGES, once the held-out starter rows hold it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SOURCE = "en"


class Language(NamedTuple):
    """How the benchmarks call a language; None where one lacks it, and then there is no such task."""

    name: str  # in MMMLU's prompts
    belebele: str | None  # dataset_name of facebook/belebele
    mmmlu: str | None  # dataset_name of openai/MMMLU, which translates MMLU and has no English
    script_is_latin: bool = True


LANGUAGES = {
    "en": Language("English", "eng_Latn", None),
    "zh": Language("Simplified Chinese", "zho_Hans", "ZH_CN", script_is_latin=False),
    "de": Language("German", "deu_Latn", "DE_DE"),
    "ko": Language("Korean", "kor_Hang", "KO_KR", script_is_latin=False),
    "id": Language("Indonesian", "ind_Latn", "ID_ID"),
    "sw": Language("Swahili", "swh_Latn", "SW_KE"),
    "yo": Language("Yoruba", "yor_Latn", "YO_NG"),
}
TARGETS = tuple(language for language in LANGUAGES if language != SOURCE)
SCORES = ("fidelity", "preference", "bits_per_byte")
KOBEST = ("boolq", "copa", "hellaswag", "sentineg", "wic")

# MMLU's 57 subjects in its four categories (github.com/hendrycks/test).
_SUBJECTS = {
    "stem": """abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science
        college_mathematics college_physics computer_security conceptual_physics electrical_engineering
        elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science
        high_school_mathematics high_school_physics high_school_statistics machine_learning""",
    "humanities": """formal_logic high_school_european_history high_school_us_history high_school_world_history
        international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory
        professional_law world_religions""",
    "social_sciences": """econometrics high_school_geography high_school_government_and_politics
        high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality
        professional_psychology public_relations security_studies sociology us_foreign_policy""",
    "other": """business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing
        medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology""",
}
SUBJECTS = {category: subjects.split() for category, subjects in _SUBJECTS.items()}


def yaml(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def group_yaml(group: str, tasks: Iterable[str]) -> str:
    """A group and its tasks, or a tag that stands for them."""
    return yaml("include: _group_template_yaml", f"group: {group}", "task:", *(f"  - {task}" for task in tasks))


def starter_yamls(language: str) -> dict[str, str]:
    """The scores on the starter rows, in one group; `preference` with the languages it is compared with."""
    others = TARGETS if language == SOURCE else (SOURCE,)
    words = "" if LANGUAGES[language].script_is_latin else "_words"
    templates = {score: f"_{score}{words if score == 'fidelity' else ''}_template_yaml" for score in SCORES}
    yamls = {
        f"axolotl_clo_{language}_{score}.yaml": yaml(
            f"include: {template}",
            f"task: axolotl_clo_{language}_{score}",
            "dataset_kwargs:",
            f'  language: "{language}"',
            *(["  others: [" + ", ".join(f'"{other}"' for other in others) + "]"] if score == "preference" else []),
        )
        for score, template in templates.items()
    }
    tasks = [f"axolotl_clo_{language}_{score}" for score in SCORES]
    return {**yamls, f"clo_{language}.yaml": group_yaml(f"clo_{language}", tasks)}


def belebele_yamls(language: str) -> dict[str, str]:
    """Belebele in one language."""
    task = f"axolotl_clo_{language}_belebele"
    return {
        f"belebele/{task}.yaml": yaml(
            "include: _template_yaml",
            "tag: axolotl_clo_belebele",
            f"task: {task}",
            f"dataset_name: {LANGUAGES[language].belebele}",
        ),
        f"belebele/clo_{language}_belebele.yaml": group_yaml(f"clo_{language}_belebele", [task]),
    }


def subject_yamls(language: str, benchmark: str) -> dict[str, str]:
    """MMMLU in one language, or MMLU: a task for each subject, a tag for each category, one group."""
    yamls, prefix = {}, f"axolotl_clo_{language}_{benchmark}"
    for category, subjects in SUBJECTS.items():
        for subject in subjects:
            about, name = subject.replace("_", " "), LANGUAGES[language].name
            of_mmmlu = [f"dataset_name: {LANGUAGES[language].mmmlu}", f"process_docs: !function utils.{subject}"]
            yamls[f"{benchmark}/{prefix}_{subject}.yaml"] = yaml(
                "include: _template_yaml",
                f"tag: [axolotl_clo_{benchmark}, {prefix}_all, {prefix}_{category}]",
                f"task: {prefix}_{subject}",
                *(of_mmmlu if benchmark == "mmmlu" else [f"dataset_name: {subject}"]),
                'description: "The following are multiple choice questions (with answers) about '
                + (f'{about} ({name}).\\n\\n"' if benchmark == "mmmlu" else f'{about}.\\n\\n"'),
            )
    group = f"clo_{language}_{benchmark}"
    return {**yamls, f"{benchmark}/{group}.yaml": group_yaml(group, [f"{prefix}_all"])}


def kobest_yamls() -> dict[str, str]:
    """KoBEST, which is Korean alone."""
    yamls = {
        f"kobest/axolotl_clo_ko_kobest_{task}.yaml": yaml(
            f"include: _{task}_template_yaml", "tag: axolotl_clo_kobest", f"task: axolotl_clo_ko_kobest_{task}"
        )
        for task in KOBEST
    }
    tasks = [f"axolotl_clo_ko_kobest_{task}" for task in KOBEST]
    return {**yamls, "kobest/clo_ko_kobest.yaml": group_yaml("clo_ko_kobest", tasks)}


def all_yamls() -> dict[str, str]:
    """Path in this folder to text, for every language."""
    yamls = kobest_yamls()
    for code, language in LANGUAGES.items():
        yamls |= starter_yamls(code)
        yamls |= belebele_yamls(code) if language.belebele else {}
        yamls |= subject_yamls(code, "mmmlu") if language.mmmlu else {}
    return yamls | subject_yamls(SOURCE, "mmlu")


if __name__ == "__main__":
    folder = Path(__file__).parent
    for old in folder.rglob("*.yaml"):
        old.unlink()
    for name, text in all_yamls().items():
        (folder / name).write_text(text, encoding="utf-8")
