"""What the benchmark tasks in `eval_tasks/` need beside the harness: the subjects of MMMLU, macro F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def of_subject(dataset: Any, subject: str) -> Any:
    """The rows of one of MMMLU's 57 subjects, in their order.

    Some languages have the name of the file the row came from in the column `Subject`, for example
    `anatomy_test.csv_sw-KE.csv`; what follows `_test` is left out of account, as in the harness's own tasks.

    Args:
        dataset: a split of openai/MMMLU in one language, as `datasets.Dataset`.
        subject: as MMLU calls it, for example `high_school_biology`.

    Raises:
        ValueError: no row is of that subject.
    """
    subjects = [str(name).split("_test", 1)[0] for name in dataset["Subject"][:]]
    places = [place for place, name in enumerate(subjects) if name == subject]
    if not places:
        raise ValueError(f"MMMLU: no row is of subject {subject!r}; the column 'Subject' has {sorted(set(subjects))}")
    return dataset.select(places)


def macro_f1(items: Sequence[tuple[int, int]]) -> float:
    """The unweighted mean of the F1 scores of all classes, 0 to 1, as KoBEST is scored (arXiv 2204.04541).

    Args:
        items: (label, predicted label) of each document.
    """
    from sklearn.metrics import f1_score  # type: ignore[import-untyped, unused-ignore]

    labels, predicted = zip(*items, strict=True)
    return float(f1_score(labels, predicted, average="macro"))
