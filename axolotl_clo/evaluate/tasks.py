"""What the lm-evaluation-harness tasks in `eval_tasks/` compute.

Three scores on the held-out starter rows, because each alone can be fooled: a model may repeat the prompt or
write gibberish in the right language (fidelity high, bits per byte high), or know the language and still answer
in English (bits per byte low, fidelity low). Preference is what the contrastive loss of CLO trains directly: the
response in the prompt's language must beat the same response in another language.

The harness calls these functions through the YAML files; none of them loads torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from axolotl_clo.datasets import starter_folder
from axolotl_clo.evaluate.language import LANGUAGES, LanguageIdentifier

MIN_ECHO_RATIO = 0.9


def documents(language: str, others: Sequence[str] = (), **_: Any) -> dict[str, Any]:
    """The 32 held-out starter rows as one language's documents; read from the package, nothing is downloaded.

    Args:
        language: ISO 639-1 code of prompt and response.
        others: codes of the languages whose responses stand against it; only `preference` needs any.
        _: the harness also passes the task's metadata and the model's arguments.

    Returns:
        `{"test": datasets.Dataset}` with the columns `id`, `category`, `language`, `prompt`, `response` and
        `choices`: the response, then the same response in each of `others`.

    Raises:
        ValueError: a row lacks one of the languages.
    """
    from datasets import Dataset

    rows = (starter_folder() / "test.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([_document(json.loads(row), language, others) for row in rows])}


def _document(row: Mapping[str, Any], language: str, others: Sequence[str]) -> dict[str, Any]:
    for code in (language, *others):
        if not (row["prompt"].get(code) and row["response"].get(code)):
            raise ValueError(
                f"starter row {row['id']!r} has no prompt and response in {code!r}; it has {', '.join(row['response'])}"
            )
    return {
        "id": row["id"],
        "category": row["category"],
        "language": language,
        "prompt": row["prompt"][language],
        "response": row["response"][language],
        "choices": [row["response"][code] for code in (language, *others)],
    }


@lru_cache
def _identifier(language: str) -> LanguageIdentifier:
    return LanguageIdentifier((*LANGUAGES, language))


def fidelity(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the model answered in the language it was asked in; the mean is the share of answers, 0 to 1.

    The language is identified within the default set (and the prompt's own). An answer whose language is
    unknown, such as an empty one, gibberish or one half in another language, counts as wrong. One that repeats
    the prompt counts as right under `fidelity`, and small untrained models do that often; under
    `fidelity_no_echo` it counts as wrong.

    Args:
        doc: one of `documents`.
        results: the generated answer.
    """
    language = doc["language"]
    right = _identifier(language).identify(results[0]) == language
    return {"fidelity": float(right), "fidelity_no_echo": float(right and not is_echo(doc["prompt"], results[0]))}


def is_echo(prompt: str, answer: str) -> bool:
    """Whether an answer begins with the prompt, nearly word for word.

    The letters and digits of the prompt are compared with as many from the start of the answer; nine tenths in
    the same order make an echo (`difflib`'s ratio). Of the 1,120 reference responses of the starter rows, which
    often take up words of the question, five reach that, none of them held out.
    """
    asked, answered = ("".join(c for c in text.casefold() if c.isalnum()) for text in (prompt, answer))
    ratio = SequenceMatcher(None, asked, answered[: len(asked)], autojunk=False).ratio()
    return ratio >= MIN_ECHO_RATIO


def preference(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Share of pairs, 0 to 1, in which the response in the prompt's language is the likelier one.

    A pair is that response and the same response in another language, given the same prompt; a tie is lost.
    `preference` compares total log-probabilities, as the contrastive loss does (arXiv 2505.14297), and
    `preference_per_byte` divides each by the response's UTF-8 bytes first.

    Neither compares languages fairly by itself, so read both, against the untrained model. The total favours
    the shorter text and the language the tokenizer cuts into fewer tokens, mostly English. Per token would be
    worse: a script the tokenizer barely knows falls apart into byte tokens, most of them nearly certain after
    the first of a character, so untrained SmolLM2-135M "prefers" Korean in 32 of the 32 rows per token, against
    4 per byte and 2 in total. Bytes do not depend on the tokenizer, but one Chinese or Korean character has three.

    Args:
        doc: one of `documents`, with at least two `choices`.
        results: (log-probability in nats, whether greedy decoding gives it) of each choice, in their order.
    """
    log_probs = [log_prob for log_prob, _ in results]
    per_byte = [log_prob / _bytes(response) for log_prob, response in zip(log_probs, doc["choices"], strict=True)]
    return {"preference": _share_beaten(log_probs), "preference_per_byte": _share_beaten(per_byte)}


def _share_beaten(scores: Sequence[float]) -> float:
    own, *others = scores
    return sum(own > other for other in others) / len(others)


def bits_per_byte(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """What the reference response costs given the prompt; lower is better, and no generation can fool it.

    The harness's aggregation of the same name makes `−Σ log₂ p(response | prompt) / Σ bytes(response)` of the
    documents: summed first, divided once, so long responses weigh more. Bytes rather than tokens make
    tokenizers compare; languages still do not, as they need different numbers of bytes for the same content.

    The harness has `bits_per_byte` only for whole texts (`loglikelihood_rolling`), which ignores the prompt.

    Args:
        doc: one of `documents`.
        results: the one (log-probability in nats, whether greedy decoding gives it).

    Returns:
        The log-probability in nats and the response's UTF-8 bytes.
    """
    ((log_prob, _),) = results
    return {"bits_per_byte": (log_prob, _bytes(doc["response"]))}


def _bytes(text: str) -> int:
    return len(text.encode("utf-8"))
