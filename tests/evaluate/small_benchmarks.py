"""Small folders of the schema of the benchmarks' datasets, which `datasets` finds by their name where they are written.

`load_dataset("facebook/belebele", "kor_Hang")` takes a folder of that relative path, if the working directory has one,
and its README.md says which files belong to which configuration. The rows are made up here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

BELEBELE = ("eng_Latn", "zho_Hans", "deu_Latn", "kor_Hang", "ind_Latn", "swh_Latn", "yor_Latn")
MMMLU = ("ZH_CN", "DE_DE", "KO_KR", "ID_ID", "SW_KE", "YO_NG")
KOBEST = {"boolq": "BoolQ", "copa": "COPA", "hellaswag": "HellaSwag", "sentineg": "SentiNeg", "wic": "WiC"}

Rows = list[dict[str, Any]]


def write_dataset(folder: Path, configs: Mapping[str, Mapping[str, Rows]]) -> None:
    """One JSON-lines file for each split of each configuration, and the README that names them."""
    folder.mkdir(parents=True)
    listed = []
    for config, splits in configs.items():
        files = []
        for split, rows in splits.items():
            name = f"{config}-{split}.jsonl"
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / name).write_text("".join(lines), encoding="utf-8")
            files.append({"split": split, "path": name})
        listed.append({"config_name": config, "data_files": files})
    # JSON is YAML.
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': listed})}\n---\n")


def belebele_rows(config: str, number: int = 6) -> Rows:
    return [
        {
            "link": f"https://example.org/{i // 2}",
            "question_number": i % 2 + 1,
            "flores_passage": f'{config}: "Water" boils at {90 + i} °C, and {i} = {i}.',
            "question": f" What boils at {90 + i} degrees? \n",
            **{f"mc_answer{k}": f"answer {k} of {config} row {i}" for k in range(1, 5)},
            "correct_answer_num": str(i % 4 + 1),
            "dialect": config,
            "ds": "2023-05-02",
        }
        for i in range(number)
    ]


def mmmlu_rows(config: str, subjects: Iterable[str], number: int = 3) -> Rows:
    """The rows of some languages name a file as their subject, and so do these of Swahili."""
    suffix = "_test.csv_sw-KE.csv" if config == "SW_KE" else ""
    return [
        {
            "Unnamed: 0": i,
            "Question": f" {config} {subject} {i}: 'which' is right?\n",
            **{letter: f"{letter} of {subject} {i}" for letter in "ABCD"},
            "Answer": "ABCD"[(i + len(subject)) % 4],
            "Subject": subject + suffix,
        }
        for i in range(number)
        for subject in subjects
    ]


def mmlu_rows(subject: str, split: str, number: int) -> Rows:
    return [
        {
            "question": f' {split} {subject} {i}: "which" is right? ',
            "subject": subject,
            "choices": [f"{letter} of {subject} {i}" for letter in "abcd"],
            "answer": (i + len(subject)) % 4,
        }
        for i in range(number)
    ]


def kobest_rows(task: str, split: str, number: int) -> Rows:
    def row(i: int) -> dict[str, Any]:
        return {
            "boolq": {"paragraph": f"물은 {i}도에서 끓는다.", "question": f"물이 {i}도에서 끓나요?", "label": i % 2},
            "copa": {
                "premise": f"{split} 비가 {i}일 동안 왔다.",
                "question": "원인 " if i % 2 else "결과",
                "alternative_1": f"땅이 {i}번 젖었다.",
                "alternative_2": f"해가 '{i}'번 떴다.",
                "label": i % 2,
            },
            "hellaswag": {
                "context": f"{split} 여자가 {i}번 웃는다.",
                **{f"ending_{k}": f'그리고 {k}번 "운다" {i}.' for k in range(1, 5)},
                "label": i % 4,
            },
            "sentineg": {"sentence": f"{split} {i}번 참 좋아요", "label": i % 2},
            "wic": {
                "word": "배",
                "context_1": f"[배]를 {i}개 먹었다.",
                "context_2": f"{split} [배]를 탔다.",
                "label": i % 2,
            },
        }[task]

    return [row(i) for i in range(number)]


def write_benchmarks(folder: Path, subjects: Iterable[str]) -> None:
    """All four benchmarks, every configuration that the tasks ask for, a few rows each."""
    subjects = list(subjects)
    write_dataset(folder / "facebook" / "belebele", {name: {"test": belebele_rows(name)} for name in BELEBELE})
    write_dataset(folder / "openai" / "MMMLU", {name: {"test": mmmlu_rows(name, subjects)} for name in MMMLU})
    write_dataset(
        folder / "cais" / "mmlu",
        {name: {"test": mmlu_rows(name, "test", 3), "dev": mmlu_rows(name, "dev", 5)} for name in subjects},
    )
    splits = {"train": 8, "validation": 4, "test": 6}
    write_dataset(
        folder / "skt" / "kobest_v1",
        {task: {split: kobest_rows(task, split, n) for split, n in splits.items()} for task in KOBEST},
    )


def real_kobest(source: Path) -> dict[str, dict[str, Rows]]:
    """The tab-separated files of SKT-LSL/KoBEST_datarepo with the columns and labels of `skt/kobest_v1`."""

    def row(task: str, found: Mapping[str, str]) -> dict[str, Any]:
        true = {"true": 1, "false": 0}
        if task == "boolq":
            label = true[found["Answer"].lower()]
            return {"paragraph": found["Text"], "question": found["Question"], "label": label}
        if task == "copa":
            alternatives = {"alternative_1": found["1"], "alternative_2": found["2"]}
            asked = {"premise": found["sentence"], "question": found["question"]}
            return {**asked, **alternatives, "label": int(found["Answer"]) - 1}
        if task == "hellaswag":
            endings = {f"ending_{k}": found[f"choice{k}"] for k in range(1, 5)}
            return {"context": found["context"], **endings, "label": int(found["label"])}
        if task == "sentineg":
            return {"sentence": found["Text"], "label": int(found["Label"])}
        contexts = {"context_1": found["SENTENCE1"], "context_2": found["SENTENCE2"]}
        return {"word": found["Target"], **contexts, "label": true[found["ANSWER"].lower()]}

    def rows(task: str, split: str) -> Rows:
        with (source / KOBEST[task] / f"{split}.tsv").open(encoding="utf-8-sig", newline="") as file:
            return [row(task, found) for found in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]

    names = {"train": "train", "validation": "dev", "test": "test"}
    return {task: {split: rows(task, name) for split, name in names.items()} for task in KOBEST}
