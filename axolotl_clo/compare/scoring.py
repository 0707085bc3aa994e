"""What is measured of a model, before and after training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from axolotl_clo.compare.plan import HELD_OUT_EVERY, SOURCE, Run, starter_rows
from axolotl_clo.evaluate import task_folder
from axolotl_clo.evaluate.tasks import fidelity, is_echo


def scores(folder: Path, run: Run) -> dict[str, Any]:
    """Score a model on the held-out test rows.

    Returns:
        `scores`: by language `fidelity`, `fidelity_no_echo`, `echoes` and `preference` (shares, 0 to 1; preference not
        in English), `bits_per_byte` and `characters` (mean length of an answer of at most 64 tokens); under `en` also
        `kl` (see `mean_kl`). `answers`: by language `[prompt, answer]` of each test row.
    """
    languages = (*run.languages, SOURCE)
    model, tokenizer = _load(folder)
    # Generation is faster in large batches, scoring in small ones, which need less padding.
    generated = evaluate_tasks(model, tokenizer, [f"axolotl_clo_{lang}_fidelity" for lang in languages], batch_size=64)
    # English preference stands against six languages: the dearest task, and not in the table.
    names = [f"axolotl_clo_{lang}_preference" for lang in run.languages]
    names += [f"axolotl_clo_{lang}_bits_per_byte" for lang in languages]
    scored = evaluate_tasks(model, tokenizer, names, batch_size=16)
    result: dict[str, dict[str, float]] = {}
    answers: dict[str, list[tuple[str, str]]] = {}
    for lang in languages:
        samples = sorted(generated["samples"][f"axolotl_clo_{lang}_fidelity"], key=lambda sample: sample["doc_id"])
        answers[lang] = [(sample["doc"]["prompt"], sample["filtered_resps"][0]) for sample in samples]
        result[lang] = {
            "echoes": mean(is_echo(*pair) for pair in answers[lang]),
            "characters": mean(len(answer) for _, answer in answers[lang]),
        }
    for task, values in {**generated["results"], **scored["results"]}.items():
        lang = task.split("_")[2]
        for metric in ("fidelity", "fidelity_no_echo", "preference", "bits_per_byte"):
            if f"{metric},none" in values:
                result[lang][metric] = values[f"{metric},none"]
    if run.configs:
        base, _ = _load(run.base_model)
        base_answers = json.loads((run.out / "base" / "scores.json").read_text(encoding="utf-8"))["answers"][SOURCE]
        result[SOURCE]["kl"] = mean_kl(base, model, tokenizer, base_answers)
    else:
        result[SOURCE]["kl"] = 0.0
    return {"scores": result, "answers": answers}


def search_scores(folder: Path, run: Run) -> dict[str, Any]:
    """`scores`: by language `bits_per_byte`, and for targets `fidelity_no_echo`, on the rows held out of the search."""
    rows = starter_rows()[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    model, tokenizer = _load(folder)
    result: dict[str, dict[str, float]] = {}
    for lang in (*run.languages, SOURCE):
        pairs = [(row["prompt"][lang], row["response"][lang]) for row in rows]
        result[lang] = {"bits_per_byte": bits_per_byte(model, tokenizer, pairs)}
        if lang != SOURCE:
            prompts = [prompt for prompt, _ in pairs]
            result[lang]["fidelity_no_echo"] = mean(
                fidelity({"language": lang, "prompt": prompt}, [answer])["fidelity_no_echo"]
                for prompt, answer in zip(prompts, answer_greedily(model, tokenizer, prompts), strict=True)
            )
    return {"scores": result}


def answer_greedily(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 64) -> list[str]:
    """The model's answers in its chat template, as the task of fidelity generates them, in one batch."""
    from axolotl_clo.evaluate.continuations import continuations

    ids = tokenizer([_chat(tokenizer, prompt) for prompt in prompts], add_special_tokens=False)["input_ids"]
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    tokens = continuations(model, ids, pad, max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def bits_per_byte(model: Any, tokenizer: Any, pairs: Iterable[tuple[str, str]]) -> float:
    """−Σ log₂ p(response | prompt) / Σ UTF-8 bytes of the responses, for ranking candidates on rows no task has.

    The task of that name is a little higher: the harness counts the template's last line break to the response.
    """
    nats = size = 0.0
    for prompt, response in pairs:
        log_probs, ids = _log_probs(model, tokenizer, prompt, response)
        nats -= log_probs.gather(-1, ids[:, None]).sum().item()
        size += len(response.encode("utf-8"))
    return nats / math.log(2) / size


def _log_probs(model: Any, tokenizer: Any, prompt: str, response: str) -> tuple[Any, Any]:
    """Log-probabilities over the vocabulary at each token of the response `[tokens, vocabulary]`, and its ids."""
    import torch

    before, after = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (_chat(tokenizer, prompt), response)
    )
    ids = torch.tensor([before + after], device=model.device)
    with torch.no_grad():
        # The position before a token predicts it.
        return model(ids).logits[0, len(before) - 1 : -1].float().log_softmax(-1), ids[0, len(before) :]


def _chat(tokenizer: Any, prompt: str) -> str:
    chat = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


def _load(folder: Path) -> tuple[Any, Any]:
    """Model in evaluation mode, on the GPU where there is one, and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(  # nosec B615 # a folder
        folder, dtype=torch.float32, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)  # nosec B615 # a folder
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def evaluate_tasks(model: Any, tokenizer: Any, tasks: list[str], batch_size: int) -> dict[str, Any]:
    """What the harness returns for some of this package's tasks, with samples."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    output = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=tasks,
        task_manager=TaskManager(include_path=str(task_folder()), include_defaults=False),
        apply_chat_template=True,
        log_samples=True,
        bootstrap_iters=0,
    )
    assert output is not None  # nosec B101 # tells the type checker
    return output


def mean_kl(base: Any, trained: Any, tokenizer: Any, answers: Sequence[Sequence[str]]) -> float:
    """KL(base || trained), the mean over the tokens of all answers, in nats per token.

    At each token of an answer it compares the two models' distributions over the whole vocabulary, given the prompt
    in the chat template and the answer so far: KL = Σ_v p_base(v) · [log p_base(v) − log p_trained(v)].

    Args:
        base: the model before training.
        trained: the model after training, with the same vocabulary.
        tokenizer: of both.
        answers: `[prompt, answer]`, the answers being the base model's own.
    """
    total, tokens = 0.0, 0
    for prompt, answer in answers:
        (log_p, _), (log_q, ids) = (_log_probs(model, tokenizer, prompt, answer) for model in (base, trained))
        total += (log_p.exp() * (log_p - log_q)).sum().item()
        tokens += len(ids)
    return total / tokens if tokens else math.nan
