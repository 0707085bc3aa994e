"""Counts protected spans that a translation changed: there must be none, however an engine misbehaves.

    python tests/benchmarks/protection.py [--documents 10000] [--seed 0]

Each of the seeded Markdown documents goes through every engine of `ENGINES`. The generator knows the spans it wrote, so
they are looked for in the translation as they are, without the code that protects them. Exits with 1 if any changed.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable

from axolotl_clo.translate.document import Document
from axolotl_clo.translate.engines import Failure

PLACEHOLDER = re.compile(r"\{(\d+)\}")

# What real engines do to placeholders, numbers and markup, and worse.
ENGINES: dict[str, Callable[[str], str | Failure]] = {
    "identity": lambda text: text,
    "upper case": str.upper,
    "reversed words": lambda text: " ".join(reversed(text.split())),
    "braces dropped": lambda text: re.sub(r"[{}]", "", text),
    "placeholders doubled": lambda text: PLACEHOLDER.sub(r"{\1} {\1}", text),
    "placeholders renumbered": lambda text: PLACEHOLDER.sub(lambda match: f"{{{int(match[1]) + 1}}}", text),
    "placeholders spaced": lambda text: PLACEHOLDER.sub(r"{ \1 }", text.lower()),
    "placeholders in wide braces": lambda text: PLACEHOLDER.sub(r"｛\1｝", text.title()),
    "decimal comma": lambda text: re.sub(r"(\d)\.(\d)", r"\1,\2", text).swapcase(),
    "markers dropped": lambda text: re.sub(r"[*_~`\[\]|]", "", text) + " x",
    "no spaces, no words": lambda text: re.sub(r"[^\W\d_]+\s*", "字", text).replace(" ", "") + "。",
    "sometimes nothing": lambda text: "" if len(text) % 3 == 0 else f"«{text}»",
    "sometimes a failure": lambda text: Failure("refused") if len(text) % 3 == 0 else text.swapcase(),
    "markup added": lambda text: f"# **{text}**\n- `more` {{9}}",
    "digits added": lambda text: f"1{text}2",
}

WORDS = [
    "the",
    "red",
    "house",
    "stands",
    "on",
    "a",
    "hill",
    "and",
    "Maria",
    "sees",
    "it",
    "café",
    "naïve",
    "写真",
    "слово",
]

# Each takes a number that makes it the only one of its kind in the document.
SPANS: list[Callable[[int], str]] = [
    lambda n: f"`run_{n} --now`",
    lambda n: f"``a`b{n}``",
    lambda n: f"https://example.com/a_b/{n}?q=1&r={{id}}",
    lambda n: f"www.site{n}.org/x",
    lambda n: f"user.{n}@mail.example.com",
    lambda n: f"$x_{n} + \\frac{{1}}{{2}}$",
    lambda n: f"\\(a_{{{n}}} < b\\)",
    lambda n: f"\\begin{{x}}{n} & 2\\end{{x}}",
    lambda n: f"<b class='c{n}'>",
    lambda n: f"<!-- note {n} -->",
    lambda n: f"<NAME{n}>",
    lambda n: f"{{{n}}}",
    lambda n: f"{{{{name{n}}}}}",
    lambda n: f"${{NAME{n}}}",
    lambda n: f"%(name{n})s",
    lambda n: f"[NAME {n}]",
    lambda n: f"snake_{n}_case",
    lambda n: f"{n} km",
    lambda n: f"{n}.5 %",
    lambda n: f"€{n}",
    lambda n: f"{n % 24:02}:{n}",
    lambda n: f"{n}.25kg",
    lambda n: f"1,{n}.75",
]


class Writer:
    """Writes documents from a seed, and the spans in them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._number = 1000
        self.spans: list[str] = []

    def document(self) -> str:
        blocks = [self._random.choice(self._blocks)(self) for _ in range(self._random.randint(1, 4))]
        end = self._random.choice(["\n", "\n", "\r\n"])
        return (end * 2).join(end.join(block) for block in blocks) + self._random.choice(["", end])

    def _sentence(self) -> str:
        pieces = self._random.choices(WORDS, k=self._random.randint(2, 6))
        for _ in range(self._random.choice([0, 1, 1, 2])):
            pieces.insert(self._random.randrange(len(pieces) + 1), self._span())
        match self._random.randrange(8):
            case 0:
                pieces.insert(1, f"**{self._random.choice(WORDS)} {self._random.choice(WORDS)}**")
                self._kept("**")
            case 1:
                pieces.insert(1, f"[the {self._random.choice(WORDS)}]{self._kept(f'(http://a.b/{self._next()})')}")
        return " ".join(pieces) + self._random.choice([".", ".", "!", "?", ""])

    def _span(self) -> str:
        return self._kept(self._random.choice(SPANS)(self._next()))

    def _kept(self, span: str) -> str:
        self.spans.append(span)
        return span

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _paragraph(self) -> list[str]:
        return [" ".join(self._sentence() for _ in range(self._random.randint(1, 3)))]

    def _heading(self) -> list[str]:
        return [f"{'#' * self._random.randint(1, 4)} {self._sentence()}"]

    def _list(self) -> list[str]:
        indents = ["", "  ", "    "][: self._random.randint(1, 3)]
        marker = self._random.choice(["-", "*", "+", "1.", "2)"])
        return [f"{indent}{marker} {self._sentence()}" for indent in indents]

    def _quote(self) -> list[str]:
        return [f"> {self._sentence()}", ">", f"> - {self._sentence()}"]

    def _table(self) -> list[str]:
        return ["| one | two |", "|-----|:---:|", f"| {self._sentence()} | {self._sentence()} |"]

    def _code(self) -> list[str]:
        lines = [self._kept(f"the house {self._next()} = 1.5") for _ in range(2)]
        fence = self._random.choice(["```", "~~~~", ""])
        # Behind a list, indented lines would belong to its last item.
        return [f"{fence}python", *lines, fence] if fence else ["Thus:", "", *(f"    {line}" for line in lines)]

    def _math(self) -> list[str]:
        return ["$$", self._kept(f"\\text{{the house {self._next()}}} = 1.5"), "$$"]

    _blocks = (_paragraph, _paragraph, _paragraph, _heading, _list, _list, _quote, _table, _code, _math)


def translate(text: str, engine: Callable[[str], str | Failure], target: str = "es") -> tuple[str, list[str]]:
    """The translation by a function of one segment, and the failures."""
    document = Document(text)
    while segments := document.pending():
        document.accept([engine(segment) for segment in segments])
    return document.text(target), document.failures


def changed(spans: list[str], source: str, translation: str) -> list[str]:
    """The spans that are not as often in the translation as in the source."""
    return [span for span in spans if translation.count(span) != source.count(span)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    spans, broken, failures, shown = 0, Counter[str](), Counter[str](), 0
    for number in range(arguments.documents):
        writer = Writer(arguments.seed * arguments.documents + number)
        source = writer.document()
        spans += len(writer.spans)
        for name, engine in ENGINES.items():
            translation, failed = translate(source, engine)
            wrong = changed(writer.spans, source, translation)
            broken[name] += len(wrong)
            failures[name] += len(failed)
            if wrong and shown < 3:
                shown += 1
                print(f"{name} changed {wrong} in\n{source!r}\n{translation!r}\n", file=sys.stderr)
    print(f"{'engine':<28} {'documents':>9} {'spans':>9} {'changed':>8} {'failed segments':>16}")
    for name in ENGINES:
        print(f"{name:<28} {arguments.documents:>9,} {spans:>9,} {broken[name]:>8,} {failures[name]:>16,}")
    total = arguments.documents * len(ENGINES)
    print(f"{'all':<28} {total:>9,} {spans * len(ENGINES):>9,} {broken.total():>8,} {failures.total():>16,}")
    print(f"{time.perf_counter() - start:.0f} s")
    return 1 if broken.total() else 0


if __name__ == "__main__":
    sys.exit(main())
