"""How many good and bad translations the filter tells apart, on LAFAND-MT: `python tests/benchmarks/quality_filter.py`.

True pairs of a split are left as they are, but for a share of them that is spoiled in one of three ways. The corpus is
fitted to that mixed set, as in use. Each run spoils other rows, until every row was spoiled once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from axolotl_clo.translate.quality import Corpus, Pair, Scorer, Thresholds, reason

# LAFAND-MT is CC BY-NC: it is measured on, and no part of this repository.
FOLDER = Path(os.environ.get("AXOLOTL_CLO_LAFAND", Path(__file__).parents[3] / "shared" / "data" / "lafand-mt"))
LANGUAGES = {"sw": ("en-swa", "swa"), "yo": ("en-yor", "yor")}
KINDS = ("shuffled", "untranslated", "truncated")


def pairs_of(language: str, split: str) -> list[Pair]:
    """The sentences of a split in English and in that language."""
    folder, key = LANGUAGES[language]
    lines = (FOLDER / folder / f"{split}.json").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["translation"] for line in lines]
    return [([text["en"]], [text[key]]) for text in texts]


def spoil(pairs: list[Pair], places: list[int], kind: str) -> list[Pair]:
    """The pairs with the translations at some places spoiled."""
    spoiled = list(pairs)
    for place, other in zip(places, places[1:] + places[:1], strict=True):
        source, [target] = pairs[place]
        targets = {"shuffled": pairs[other][1], "untranslated": source, "truncated": [target[: len(target) // 2]]}
        spoiled[place] = (source, targets[kind])
    return spoiled


@dataclass
class Counts:
    """Rows seen and dropped, and what for."""

    rows: int = 0
    dropped: int = 0

    def __post_init__(self) -> None:
        self.reasons: Counter[str] = Counter()

    def add(self, why: tuple[str, str] | None) -> None:
        self.rows += 1
        self.dropped += why is not None
        if why:
            self.reasons[why[0]] += 1


def measure(
    language: str, pairs: list[Pair], kind: str, share: float, runs: int, thresholds: Thresholds | None = None
) -> tuple[Counts, Counts]:
    """What is dropped of the true pairs and of the spoiled ones, over all runs."""
    order = random.Random(0).sample(range(len(pairs)), len(pairs))
    size = round(share * len(pairs))
    scorer, true, spoiled = Scorer("en", language), Counts(), Counts()
    for run in range(runs):
        places = order[run * size : (run + 1) * size]
        mixed = spoil(pairs, places, kind)
        scores = scorer.score(mixed)
        more = Corpus.fit(mixed, scores).score(mixed)
        for i, (own, others) in enumerate(zip(scores, more, strict=True)):
            why = reason({**own, **others}, thresholds or Thresholds())
            (spoiled if i in set(places) else true).add(why)
    return true, spoiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", default="test", choices=["dev", "test"])
    parser.add_argument("--share", type=float, nargs="+", default=[0.1, 0.3], help="share of the rows that is spoiled")
    parser.add_argument("--runs", type=int, default=10, help="at most; fewer where every row was spoiled once")
    options = parser.parse_args()
    print(f"{'':10}{'spoiled':>14}{'share':>7}{'rows':>7}{'true passed':>13}{'bad caught':>12}   caught for / lost for")
    for language in LANGUAGES:
        pairs = pairs_of(language, options.split)
        for kind in KINDS:
            for share in options.share:
                true, bad = measure(language, pairs, kind, share, min(options.runs, int(1 / share)))
                passed, caught = 1 - true.dropped / true.rows, bad.dropped / bad.rows
                print(
                    f"{language:10}{kind:>14}{share:7.0%}{bad.rows:7}{passed:13.1%}{caught:12.1%}"
                    f"   {dict(bad.reasons.most_common())} / {dict(true.reasons.most_common())}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
