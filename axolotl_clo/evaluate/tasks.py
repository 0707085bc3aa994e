"""What the lm-evaluation-harness tasks in `eval_tasks/` compute.

Scores on the held-out starter rows, because each alone can be fooled: a model may repeat the prompt or
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
from axolotl_clo.evaluate.confusion import LanguageConfusion, pass_rates
from axolotl_clo.evaluate.thinking import final_answer

MIN_ECHO_RATIO = 0.9
ECHO_CHARACTERS = 2000
"""How much of a prompt is compared with an answer."""


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


def prompt_documents(language: str, prompts: str | None = None, **_: Any) -> dict[str, Any]:
    """What the fidelity task asks: a user's own prompts, or else those of the starter rows.

    Args:
        language: ISO 639-1 code of the language asked in.
        prompts: a file as `axolotl_clo.evaluate.prompts` reads it; the harness passes it on from
            `--metadata '{"prompts": "my.jsonl"}'`. Its rows in other languages are left out.
        _: the rest of what the harness passes.

    Returns:
        As `documents`; `response` is empty where a prompt of the file has none.

    Raises:
        ValueError: the file cannot be used, or has no prompt in this language; it names the row at fault.
    """
    if prompts is None:
        return documents(language)

    from datasets import Dataset

    from axolotl_clo.evaluate.prompts import read_prompts

    if not isinstance(prompts, str):
        raise ValueError(f"--metadata: `prompts` is the name of a file, got {type(prompts).__name__} {prompts!r}")
    try:
        rows = read_prompts(prompts, [language]).rows
    except ValueError as error:
        raise ValueError(
            f"the prompts of task axolotl_clo_{language}_fidelity, which --metadata names: {error}. Name only the "
            "tasks of languages that the file has, for example --tasks axolotl_clo_ko_fidelity"
        ) from error
    of_user = [
        {
            "id": row.id,
            "category": "",
            "language": language,
            "prompt": row.text,
            "response": row.response or "",
            "choices": [row.response or ""],
        }
        for row in rows
    ]
    return {"test": Dataset.from_list(of_user)}


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
def _confusion(language: str) -> LanguageConfusion:
    return LanguageConfusion(language)


def fidelity(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Whether the model answered in the language it was asked in.

    `fidelity` asks it of the answer as a whole; the mean is the share of answers, 0 to 1. The language is identified
    within the default set (and the prompt's own). An answer whose language is unknown, such as an empty one, gibberish
    or one half in another language, counts as wrong. One that repeats the prompt counts as right, and small untrained
    models do that often; under `fidelity_no_echo` it counts as wrong.

    `line_pass_rate`, `word_pass_rate` and `language_confusion_pass_rate` are the Language Confusion Benchmark's LPR,
    WPR and LCPR (`evaluate.confusion`), which ask it of each line and word. They leave out answers without a line of
    five tokens, whose share is `skipped`; the last two exist only for languages not written in Latin letters.

    What a model thinks before its answer does not count (`evaluate.thinking`).

    Args:
        doc: one of `documents`.
        results: the generated answer.

    Returns:
        One value of each metric: 0 or 1; for the pass rates None where the answer does not count.
    """
    language, answer = doc["language"], final_answer(results[0] or "")  # a server may send nothing
    (score,) = _confusion(language).score([answer])
    right = score.language == language
    metrics: dict[str, Any] = {
        "fidelity": float(right),
        "fidelity_no_echo": float(right and not is_echo(doc["prompt"], answer)),
        "line_pass_rate": _number(score.line_pass),
        "skipped": float(score.skipped),
    }
    if _confusion(language).has_word_rate:
        metrics["word_pass_rate"] = _number(score.word_pass)
        metrics["language_confusion_pass_rate"] = [_number(score.line_pass), _number(score.word_pass)]
    return metrics


def _number(passed: bool | None) -> float | None:
    return None if passed is None else float(passed)


def line_pass_rate(items: Sequence[float | None]) -> float:
    """LPR of the `line_pass_rate` of each answer."""
    return pass_rates(items).line


def word_pass_rate(items: Sequence[float | None]) -> float:
    """WPR of the `word_pass_rate` of each answer, which is None for those that do not pass at line level."""
    return pass_rates(items).line


def language_confusion_pass_rate(items: Sequence[Sequence[float | None]]) -> float:
    """LCPR of the (line, word) passes of each answer."""
    both = pass_rates([line for line, _ in items], [word for _, word in items]).both
    return both or 0.0


def is_echo(prompt: str, answer: str) -> bool:
    """Whether an answer begins with the prompt, nearly word for word.

    The letters and digits of the prompt, of a long one those of its first `ECHO_CHARACTERS`, are compared with as many
    from the start of the answer; nine tenths in the same order make an echo (`difflib`'s ratio). Of the 1,120 reference
    responses of the starter rows, which often take up words of the question, five reach that, none of them held out.
    """
    asked, answered = ("".join(c for c in text.casefold() if c.isalnum()) for text in (prompt, answer))
    asked = asked[:ECHO_CHARACTERS]
    matcher = SequenceMatcher(None, asked, answered[: len(asked)], autojunk=False)
    return matcher.quick_ratio() >= MIN_ECHO_RATIO and matcher.ratio() >= MIN_ECHO_RATIO


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
