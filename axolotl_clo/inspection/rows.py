"""What a run's rows become: tokens in each direction, batches, and how the four sequences of a row look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from axolotl_clo.collator import SEQUENCES

DIRECTIONS = ("source", "target")


@dataclass(frozen=True)
class Lengths:
    """Tokens of tokenized rows, in the order of `SEQUENCES`.

    whole: `[rows, 4]`, prompt and response; 0 where a direction is left out.
    prompts: `[rows, 4]`.
    """

    whole: np.ndarray
    prompts: np.ndarray

    @classmethod
    def of(cls, dataset: Any) -> Lengths:
        """Those of a dataset that `CrossLingualStrategy` tokenized."""
        whole: list[tuple[int, ...]] = []
        prompts: list[list[int]] = []
        for part in dataset.select_columns([*SEQUENCES, "prompt_lengths"]).iter(batch_size=256):
            whole += zip(*(map(len, part[name]) for name in SEQUENCES), strict=True)
            prompts += part["prompt_lengths"]
        return cls(np.array(whole, dtype=np.int64).reshape(-1, 4), np.array(prompts, dtype=np.int64).reshape(-1, 4))

    @property
    def repeated(self) -> np.ndarray:
        """`[rows, 2]`: tokens of prompt that a pair's two sequences have in common, so that one copy can go."""
        return np.minimum(self.prompts[:, 0::2], self.prompts[:, 1::2])

    @property
    def packed(self) -> np.ndarray:
        """`[rows]`: tokens of four sequences laid end to end."""
        return self.whole.sum(1)  # type: ignore[no-any-return]

    @property
    def shared(self) -> np.ndarray:
        """`[rows]`: with each prompt once."""
        return self.packed - self.repeated.sum(1)

    @property
    def scored(self) -> np.ndarray:
        """`[rows]`: tokens of the four responses."""
        return self.packed - self.prompts.sum(1)

    def padded(self, batches: list[list[int]]) -> int:
        """Tokens of batches whose sequences are all filled up to the longest among them."""
        return sum(int((self.whole[rows] > 0).sum() * self.whole[rows].max()) for rows in batches)


def token_counts(lengths: Lengths, batches: list[list[int]]) -> dict[str, Any]:
    """Tokens of an epoch by direction and part, and by how a batch is laid out.

    Args:
        lengths: of all rows.
        batches: micro-batches of an epoch.
    """
    directions = {}
    for i, name in enumerate(DIRECTIONS):
        responses = lengths.whole[:, 2 * i : 2 * i + 2] - lengths.prompts[:, 2 * i : 2 * i + 2]
        directions[name] = {
            "pairs": int((responses > 0).all(1).sum()),
            "prompts": int(lengths.repeated[:, i].sum()),
            "chosen": int(responses[:, 0].sum()),
            "rejected": int(responses[:, 1].sum()),
            "longest": int(lengths.whole[:, 2 * i : 2 * i + 2].max(initial=0)),
        }
    layouts = {
        "padded": lengths.padded(batches),
        "packed": int(lengths.packed.sum()),
        "shared": int(lengths.shared.sum()),
    }
    return {"directions": directions, "scored": int(lengths.scored.sum()), "layouts": layouts}


class Piece(NamedTuple):
    """A token, or several that only together are a character."""

    text: str
    tokens: int
    special: bool


@dataclass(frozen=True)
class Sequence:
    """One of a row's four, as the model reads it.

    name: `source_chosen` and so on.
    prompt_language, response_language: keys of the dataset.
    identified: the response's language as far as it can be told, or None.
    """

    name: str
    prompt_language: str
    response_language: str
    identified: str | None
    prompt: list[Piece]
    response: list[Piece]


def pieces(tokenizer: Any, ids: list[int]) -> list[Piece]:
    """The tokens as text, each with the space before it."""
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    found: list[Piece] = []
    before = start = 0
    for end in range(1, len(ids) + 1):
        # Decoded together with the piece before, as some tokenizers drop a space at the beginning.
        known, text = (_decode(tokenizer, ids[before:i]) for i in (start, end))
        if text.endswith("\ufffd") and end < len(ids):
            continue
        found.append(Piece(text[len(known) :], end - start, end - start == 1 and ids[start] in special))
        before, start = start, end
    return found


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def sequences(tokenizer: Any, row: dict[str, Any], clo: Any) -> list[Sequence]:
    """The sequences of a tokenized row that are there.

    Args:
        tokenizer: of the run.
        row: a row of a dataset that `CrossLingualStrategy` tokenized.
        clo: the `clo:` section.
    """
    languages = (*clo.target_langs, clo.source_lang)
    target, other = languages[row["language"]], languages[row["rejected_language"]]
    source = clo.source_lang
    spoken = ((source, source), (source, target), (target, target), (target, other))
    found = []
    for name, border, (asked, answered) in zip(SEQUENCES, row["prompt_lengths"], spoken, strict=True):
        ids = row[name]
        if ids:
            response = tokenizer.decode(ids[border:], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            prompt_pieces, response_pieces = pieces(tokenizer, ids[:border]), pieces(tokenizer, ids[border:])
            identified = _identify(response, languages)
            found.append(Sequence(name, asked, answered, identified, prompt_pieces, response_pieces))
    return found


def _identify(text: str, languages: tuple[str, ...]) -> str | None:
    from axolotl_clo.evaluate.language import LanguageIdentifier, supported

    return LanguageIdentifier(languages).identify(text) if all(map(supported, languages)) else None
