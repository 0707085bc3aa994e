"""How fast answers are scored, and how well lines are identified: `python tests/benchmarks/fidelity.py`.

Lines are those that the line-level pass rate looks at: of five tokens or more. They come from the starter rows (all
seven languages), LAFAND-MT (en, sw, yo), KoBEST (ko) and, where the packages are installed, chatterbot-corpus and the
messages of Django, which are there in Malay too. Of each source some lines are listed that are not found to be in
their language (`--wrong N`): most are names, code, or in another language indeed. An answer is scored as a whole and
by line.
"""

from __future__ import annotations

import argparse
import csv
import gettext
import json
import os
import platform
import random
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from axolotl_clo.datasets import starter_folder
from axolotl_clo.evaluate.confusion import LanguageConfusion
from axolotl_clo.evaluate.language import LANGUAGES, LanguageIdentifier

# Neither is part of this repository: LAFAND-MT is CC BY-NC 4.0, KoBEST CC BY-SA 4.0.
DATA = Path(__file__).parents[3] / "shared" / "data"
LAFAND = Path(os.environ.get("AXOLOTL_CLO_LAFAND", DATA / "lafand-mt"))
KOBEST = Path(os.environ.get("AXOLOTL_CLO_KOBEST", DATA / "kobest"))

KOBEST_COLUMNS = {
    "BoolQ": ["Text", "Question"],
    "COPA": ["sentence", "1", "2"],
    "HellaSwag": ["context", "choice1", "choice2", "choice3", "choice4"],
    "SentiNeg": ["Text"],
    "WiC": ["SENTENCE1", "SENTENCE2"],
}
DJANGO = {"zh_Hans": "zh", "de": "de", "ko": "ko", "id": "id", "sw": "sw", "ms": "ms"}
CHATTERBOT = {"english": "en", "chinese": "zh", "german": "de", "korean": "ko", "indonesian": "id", "yoruba": "yo"}

Lines = tuple[str, str, list[str]]  # where they come from, their language, the texts


def without_diacritics(text: str) -> str:
    """Yoruba as it is typed without tone marks and dots below."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def starter_lines() -> Iterator[Lines]:
    texts = (starter_folder() / f"{split}.jsonl" for split in ("train", "test"))
    rows = [json.loads(line) for file in texts for line in file.read_text(encoding="utf-8").splitlines()]
    for language in LANGUAGES:
        yield "starter rows", language, [row[side][language] for row in rows for side in ("prompt", "response")]


def lafand_lines() -> Iterator[Lines]:
    english = []
    for folder, key, language in (("en-swa", "swa", "sw"), ("en-yor", "yor", "yo")):
        files = sorted((LAFAND / folder).glob("*.json"))
        pairs = [json.loads(line)["translation"] for f in files for line in f.read_text(encoding="utf-8").splitlines()]
        english += [pair["en"] for pair in pairs]
        yield "LAFAND-MT", language, [pair[key] for pair in pairs]
    yield "LAFAND-MT", "en", english


def kobest_lines() -> Iterator[Lines]:
    for task, columns in KOBEST_COLUMNS.items():
        texts = []
        for file in sorted((KOBEST / task).glob("*.tsv")):
            with file.open(encoding="utf-8-sig", newline="") as opened:
                rows = csv.DictReader(opened, delimiter="\t", quoting=csv.QUOTE_NONE)
                texts += [row[column] or "" for row in rows for column in columns]
        yield f"KoBEST {task}", "ko", texts


def package_folder(name: str) -> Path | None:
    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def django_lines() -> Iterator[Lines]:
    folder = package_folder("django")
    for locale, language in DJANGO.items() if folder else ():
        texts = set()
        for file in (folder or Path()).rglob(f"locale/{locale}/LC_MESSAGES/*.mo"):
            with file.open("rb") as opened:
                messages = gettext.GNUTranslations(opened)._catalog  # type: ignore[attr-defined]
            texts |= {text for key, text in messages.items() if key and text not in (key, key[0])}
        yield "Django", language, sorted(texts)


def chatterbot_lines() -> Iterator[Lines]:
    import yaml

    folder = package_folder("chatterbot_corpus")
    for name, language in CHATTERBOT.items() if folder else ():
        texts = []
        for file in sorted((folder or Path()).joinpath("data", name).glob("*.yml")):
            conversations = yaml.safe_load(file.read_text(encoding="utf-8")).get("conversations", [])
            texts += [turn for turns in conversations for turn in turns if isinstance(turn, str)]
        yield "chatterbot", language, texts


def accuracy(wrong_shown: int) -> None:
    """Per source and language, and of all the sources of a language: right, unknown and wrong."""
    identifier = LanguageIdentifier()
    totals: dict[str, Counter[str]] = {language: Counter() for language in LANGUAGES}
    sources = [*starter_lines()]
    sources += [*lafand_lines()] if LAFAND.is_dir() else []
    sources += [*kobest_lines()] if KOBEST.is_dir() else []
    sources += [*chatterbot_lines(), *django_lines()]
    plain = [(f"{s}, no diacritics", x, [*map(without_diacritics, t)]) for s, x, t in sources if x == "yo"]
    print(f"{'source':30} {'':4} {'lines':>6} {'right %':>8} {'unknown %':>10}  called")
    for source, language, texts in sorted(sources + plain, key=lambda s: (([*LANGUAGES, "ms"]).index(s[1]), s[0])):
        # Malay is no language of the set, and its words are counted like those of Indonesian.
        lines = LanguageConfusion("id" if language == "ms" else language).lines(texts)
        found = identifier.identify_many(lines)
        count = Counter(code or "unknown" for code in found)
        if language in totals and (source, language, texts) in sources:
            totals[language] += count
        show(source, language, count)
        missed = [(code or "unknown", line) for code, line in zip(found, lines, strict=True) if code != language]
        for code, line in missed[:wrong_shown]:
            print(f"      {code:8} {line[:110]}")
    print()
    for language, count in totals.items():
        show("all", language, count)


def show(source: str, language: str, count: Counter[str]) -> None:
    lines = count.total()
    if lines:
        others = ", ".join(f"{code} {n}" for code, n in count.most_common() if code not in (language, "unknown"))
        right, unknown = 100 * count[language] / lines, 100 * count["unknown"] / lines
        print(f"{source:30} {language:4} {lines:6} {right:8.2f} {unknown:10.2f}  {others}")


def written_answers(language: str, number: int) -> list[str]:
    """Answers of one to four starter responses, a line each, as long as a model writes in about 64 to 100 tokens."""
    draw = random.Random(0)
    lines = [text for _, code, texts in starter_lines() if code == language for text in texts[1::2]]
    return ["\n".join(draw.choices(lines, k=draw.randint(1, 4))) for _ in range(number)]


def timed(confusion: LanguageConfusion, answers: list[str]) -> float:
    """Seconds of processor time to score the answers, which other work on the machine does not change much."""
    started = time.process_time()
    confusion.score(answers)
    return time.process_time() - started


def speed(number: int) -> None:
    """Answers scored in a second by one process, with everything loaded; the best of three runs."""
    for language in LANGUAGES:
        answers = written_answers(language, number)
        confusion = LanguageConfusion(language)
        confusion.score(answers[:10])
        taken = min(timed(confusion, answers) for _ in range(3))
        words = sum(len(answer.split()) for answer in answers) / number
        characters = sum(map(len, answers)) / number
        size = f"{words:.0f} words, {characters:.0f} characters"
        print(f"{language}: {number / taken:8,.0f} answers per CPU second, of {size}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=4000, help="to time, in each language")
    parser.add_argument("--wrong", type=int, default=5, metavar="N", help="lines to list of each source")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    speed(options.answers)
    print()
    accuracy(options.wrong)


if __name__ == "__main__":
    main()
