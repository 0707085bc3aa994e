"""The loss equals its formula, TRL's DPO loss on the same pairs, and token-mean NLL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import starter_rows

from axolotl_clo.collator import CLOCollator
from axolotl_clo.cross_lingual import CrossLingualStrategy
from axolotl_clo.logprobs import sequence_log_probs
from axolotl_clo.loss import LogProbs, clo_loss, clo_terms
from axolotl_clo.schema import CLOConfig


def random_log_probs(batch: int = 5, dtype: torch.dtype = torch.float64) -> LogProbs:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (batch, 2, 2), generator=generator)
    policy = -torch.rand(batch, 2, 2, generator=generator, dtype=dtype) * 3 * lengths
    reference = policy + torch.randn(batch, 2, 2, generator=generator, dtype=dtype) * 4
    return LogProbs(policy, reference, lengths)


def test_preference_equals_trls_dpo_trainer_over_both_directions(tiny_llama: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama)
    policy = AutoModelForCausalLM.from_pretrained(tiny_llama)
    torch.manual_seed(1)
    for parameter in policy.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    strategy = CrossLingualStrategy(tokenizer, CLOConfig(target_lang="sw"), tokenizer.chat_template, sequence_len=2048)
    rows = list(strategy.wrap_dataset(Dataset.from_list(starter_rows()[:3])))

    batch = CLOCollator()(rows)
    with torch.no_grad():
        log_probs = LogProbs(*(sequence_log_probs(m, batch) for m in (policy, reference)), batch["response_lengths"])
    ours = clo_loss(clo_terms(log_probs, beta=0.3), nll_weight=0.0)

    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(output_dir=str(tmp_path), beta=0.3, report_to=[], use_cpu=True, bf16=False),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
    )
    pairs = [
        {
            "prompt_ids": row[f"{side}_chosen"][:chosen],
            "chosen_ids": row[f"{side}_chosen"][chosen:],
            "rejected_ids": row[f"{side}_rejected"][rejected:],
        }
        for row in rows
        for side, (chosen, rejected) in zip(
            ("source", "target"), (row["prompt_lengths"][:2], row["prompt_lengths"][2:]), strict=True
        )
    ]
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(pairs))
    assert abs(ours.item() - 0.6931) > 0.01
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


def test_nll_equals_token_mean_of_target_responses() -> None:
    logits = torch.randn(3, 7, 11, dtype=torch.float64)
    labels = torch.randint(0, 11, (3, 7))
    lengths = torch.tensor([7, 3, 1])
    labels[torch.arange(7) >= lengths[:, None]] = -100
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    sums = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(-1)
    policy = torch.zeros(3, 2, 2, dtype=torch.float64)
    policy[:, 1, 0] = sums
    counts = torch.full((3, 2, 2), 99)
    counts[:, 1, 0] = lengths
    terms = clo_terms(LogProbs(policy, torch.zeros_like(policy), counts), beta=0.1)
    assert clo_loss(terms, nll_weight=1.0).item() == pytest.approx(expected.item(), abs=1e-5)


def test_nll_on_both_languages_adds_the_source_responses() -> None:
    log_probs = random_log_probs()
    terms = clo_terms(log_probs, beta=0.1, nll_both=True)
    expected = -log_probs.policy[:, :, 0].sum() / log_probs.lengths[:, :, 0].sum()
    assert clo_loss(terms, nll_weight=1.0).item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("nll_weight", [0.0, 0.3, 1.0])
def test_loss_is_the_papers_formula(nll_weight: float) -> None:
    log_probs, beta = random_log_probs(), 0.2
    r = log_probs.policy - log_probs.reference
    l_cl = -torch.log(torch.sigmoid(beta * (r[..., 0] - r[..., 1]))).mean()
    l_sft = -log_probs.policy[:, 1, 0].sum() / log_probs.lengths[:, 1, 0].sum()
    expected = nll_weight * l_sft + (1 - nll_weight) * l_cl
    ours = clo_loss(clo_terms(log_probs, beta=beta), nll_weight=nll_weight)
    assert ours.item() == pytest.approx(expected.item(), abs=1e-10)


def test_gradients_match_float64_autograd_of_the_formula() -> None:
    log_probs = random_log_probs()
    policy = log_probs.policy.float().requires_grad_()
    terms = clo_terms(log_probs._replace(policy=policy, reference=log_probs.reference.float()), beta=0.1)
    clo_loss(terms, nll_weight=0.4).backward()
    exact = log_probs.policy.float().double().requires_grad_()
    margin = 0.1 * ((exact - log_probs.reference)[..., 0] - (exact - log_probs.reference)[..., 1])
    l_sft = -exact[:, 1, 0].sum() / log_probs.lengths[:, 1, 0].sum()
    (0.4 * l_sft - 0.6 * torch.log(torch.sigmoid(margin)).mean()).backward()
    torch.testing.assert_close(policy.grad.double(), exact.grad, atol=1e-6, rtol=1e-5)


def test_half_precision_inputs_are_computed_in_float32() -> None:
    log_probs = random_log_probs(dtype=torch.float32)
    terms = clo_terms(log_probs._replace(policy=log_probs.policy.bfloat16()), beta=0.1)
    assert terms.preference.dtype == terms.nll.dtype == torch.float32


def test_parts_of_a_global_batch_add_up_to_the_whole() -> None:
    whole = clo_terms(random_log_probs(6), beta=0.1)
    parts = [type(whole)(*(x[a:b] for x in whole)) for a, b in ((0, 1), (1, 4), (4, 6))]
    counts = {"num_nll_tokens": whole.nll_tokens.sum(), "num_pairs": whole.preference.numel()}
    total = sum(clo_loss(part, nll_weight=0.5, **counts) for part in parts)
    assert float(total) == pytest.approx(clo_loss(whole, nll_weight=0.5).item(), abs=1e-10)


def test_identical_responses_give_ln2_and_no_preference_gradient() -> None:
    policy = torch.full((1, 2, 2), -3.0, requires_grad=True)
    terms = clo_terms(LogProbs(policy, torch.full((1, 2, 2), -5.0), torch.ones(1, 2, 2)), beta=0.1)
    loss = clo_loss(terms, nll_weight=0.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.693147, abs=1e-6)
    assert policy.grad.sum(-1).abs().max() == 0


@pytest.mark.parametrize("length", [0, 1])
def test_empty_and_single_token_responses_stay_finite(length: int) -> None:
    policy = torch.full((1, 2, 2), -2.0 * length, requires_grad=True)
    terms = clo_terms(LogProbs(policy, torch.zeros(1, 2, 2), torch.full((1, 2, 2), length)), beta=0.1)
    loss = clo_loss(terms, nll_weight=0.5)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(policy.grad).all()


def test_extreme_margins_stay_finite() -> None:
    policy = torch.tensor([[[1e4, -1e4], [-1e4, 1e4]]], requires_grad=True)
    loss = clo_loss(clo_terms(LogProbs(policy, torch.zeros(1, 2, 2), torch.ones(1, 2, 2)), beta=1.0), nll_weight=0.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(policy.grad).all()
