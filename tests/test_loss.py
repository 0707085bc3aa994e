"""The loss equals its formula, TRL's losses on the same pairs, and token-mean NLL."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import starter_rows

from axolotl_clo.collator import CLOCollator
from axolotl_clo.cross_lingual import CrossLingualStrategy
from axolotl_clo.logprobs import sequence_log_probs
from axolotl_clo.loss import PREFERENCE_LOSSES, REFERENCE_FREE, LogProbs, clo_loss, clo_terms
from axolotl_clo.schema import CLOConfig

# Every loss, with label smoothing too where it has any.
OPTIONS: list[dict[str, Any]] = [
    {"preference_loss": "sigmoid", "beta": 0.3},
    {"preference_loss": "sigmoid", "beta": 0.3, "label_smoothing": 0.1},
    {"preference_loss": "robust", "beta": 0.3, "label_smoothing": 0.2},
    {"preference_loss": "hinge", "beta": 0.3},
    {"preference_loss": "ipo", "beta": 0.3},
    {"preference_loss": "orpo", "beta": None},
    {"preference_loss": "simpo", "beta": 2.0, "simpo_gamma": 0.7},
    {"preference_loss": "simpo", "beta": 2.0, "label_smoothing": 0.1},
]
every_loss = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(value) for value in o.values()))


def random_log_probs(
    batch: int = 5, dtype: torch.dtype = torch.float64, missing: tuple[tuple[int, int], ...] = ()
) -> LogProbs:
    """Log-probabilities in which the (example, direction) pairs of `missing` have no responses."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (batch, 2, 2), generator=generator)
    policy = -torch.rand(batch, 2, 2, generator=generator, dtype=dtype) * 3 * lengths
    reference = policy + torch.randn(batch, 2, 2, generator=generator, dtype=dtype) * 4
    log_probs = LogProbs(policy, reference, lengths)
    for example, direction in missing:
        for values in log_probs:
            values[example, direction] = 0
    return log_probs


def present(log_probs: LogProbs) -> torch.Tensor:
    return log_probs.lengths.sum(-1) > 0


def formula(
    log_probs: LogProbs,
    preference_loss: str,
    beta: float,
    label_smoothing: float = 0.0,
    simpo_gamma: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Margin and loss `[pairs]` of the pairs that are there, as the papers and TRL write them, in float64."""
    (c, r), (ref_c, ref_r), (n_c, n_r) = (x[present(log_probs)].double().unbind(-1) for x in log_probs)
    ratios = (c - ref_c) - (r - ref_r)
    if preference_loss == "ipo":
        margin = (c - ref_c) / n_c - (r - ref_r) / n_r
        return margin, (margin - 1 / (2 * beta)) ** 2
    if preference_loss == "hinge":
        return beta * ratios, (1 - beta * ratios).clamp_min(0)
    if preference_loss == "orpo":
        p_c, p_r = torch.exp(c / n_c), torch.exp(r / n_r)
        odds_ratio = (p_c / (1 - p_c)) / (p_r / (1 - p_r))
        return torch.log(odds_ratio), -torch.log(torch.sigmoid(torch.log(odds_ratio)))
    margin, gamma = beta * ratios, 0.0
    if preference_loss == "simpo":
        margin, gamma = beta * (c / n_c - r / n_r), simpo_gamma
    right, wrong = -torch.log(torch.sigmoid(margin - gamma)), -torch.log(torch.sigmoid(gamma - margin))
    if preference_loss == "robust":
        return margin, ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)
    return margin, (1 - label_smoothing) * right + label_smoothing * wrong


class Scored(NamedTuple):
    """Three rows under two models, as TRL's trainers take them (chosen, rejected and prompt ids) and scored by us."""

    policy: Any
    reference: Any
    tokenizer: Any
    pairs: list[dict[str, list[int]]]
    log_probs: LogProbs

    def without_pair(self, example: int, direction: int) -> Scored:
        log_probs = LogProbs(*(x.clone() for x in self.log_probs))
        for values in log_probs:
            values[example, direction] = 0
        left_out = 2 * example + direction
        return self._replace(pairs=self.pairs[:left_out] + self.pairs[left_out + 1 :], log_probs=log_probs)


@pytest.fixture(scope="module")
def scored(tiny_llama: Path) -> Scored:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

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
    return Scored(policy, reference, tokenizer, pairs, log_probs)


def trl_trainer(trainer_class: Any, config_class: Any, scored: Scored, folder: Path, **options: Any) -> Any:
    """One of TRL's trainers on the policy; the reference goes to the trainer that takes one."""
    from datasets import Dataset

    model = {"model": scored.policy}
    if trainer_class.__name__ == "DPOTrainer":
        model["ref_model"] = scored.reference
    trainer = trainer_class(
        **model,
        args=config_class(output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, **options),
        processing_class=scored.tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
    )
    trainer.model.eval()
    return trainer


def reference_free_batch(trainer: Any, scored: Scored) -> dict[str, torch.Tensor]:
    """The pairs as TRL's ORPO and CPO trainers take them."""
    rows = []
    for pair in scored.pairs:
        row = {}
        for role in ("chosen", "rejected"):
            prompt, response = pair["prompt_ids"], pair[f"{role}_ids"]
            row[f"{role}_input_ids"] = prompt + response
            row[f"{role}_attention_mask"] = [1] * len(prompt + response)
            row[f"{role}_labels"] = [-100] * len(prompt) + response
        rows.append(row)
    return trainer.data_collator(rows)


@pytest.mark.parametrize(
    ("preference_loss", "label_smoothing"), [("sigmoid", 0.0), ("ipo", 0.0), ("hinge", 0.0), ("robust", 0.2)]
)
def test_preference_equals_trls_dpo_trainer_over_both_directions(
    scored: Scored, tmp_path: Path, preference_loss: str, label_smoothing: float
) -> None:
    from trl import DPOConfig, DPOTrainer

    trainer = trl_trainer(
        DPOTrainer, DPOConfig, scored, tmp_path, beta=0.3, loss_type=preference_loss, label_smoothing=label_smoothing
    )
    options = {"beta": 0.3, "preference_loss": preference_loss, "label_smoothing": label_smoothing}
    for sample in (scored, scored.without_pair(1, 0)):
        terms = clo_terms(sample.log_probs, **options)
        with torch.no_grad():
            theirs = trainer.compute_loss(trainer.model, trainer.data_collator(sample.pairs))
        assert terms.margin.abs().max() > 0.05
        assert clo_loss(terms, nll_weight=0.0).item() == pytest.approx(theirs.item(), abs=1e-5)


def test_orpo_equals_trls_orpo_trainer(scored: Scored, tmp_path: Path) -> None:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    trainer = trl_trainer(ORPOTrainer, ORPOConfig, scored, tmp_path, beta=0.3)
    for sample in (scored, scored.without_pair(1, 0)):
        terms = clo_terms(sample.log_probs._replace(reference=None), beta=None, preference_loss="orpo")
        with torch.no_grad():
            _, theirs = trainer.get_batch_loss_metrics(trainer.model, reference_free_batch(trainer, sample))
        assert clo_loss(terms, nll_weight=0.0).item() == pytest.approx(-theirs["log_odds_ratio"], abs=1e-5)
        assert float(terms.margin.sum() / terms.pairs.sum()) == pytest.approx(theirs["log_odds_chosen"], abs=1e-5)


@pytest.mark.parametrize(("gamma", "label_smoothing"), [(0.5, 0.0), (1.2, 0.1)])
def test_simpo_equals_trls_cpo_trainer(scored: Scored, tmp_path: Path, gamma: float, label_smoothing: float) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    options = {"beta": 2.0, "simpo_gamma": gamma, "label_smoothing": label_smoothing}
    trainer = trl_trainer(CPOTrainer, CPOConfig, scored, tmp_path, loss_type="simpo", cpo_alpha=0.0, **options)
    for sample in (scored, scored.without_pair(1, 0)):
        terms = clo_terms(sample.log_probs._replace(reference=None), preference_loss="simpo", **options)
        with torch.no_grad():
            theirs = trainer.compute_loss(trainer.model, reference_free_batch(trainer, sample))
        assert clo_loss(terms, nll_weight=0.0).item() == pytest.approx(theirs.item(), abs=1e-5)


def test_smoothed_sigmoid_equals_trls_cpo_loss_on_log_ratios(scored: Scored, tmp_path: Path) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    # TRL smooths this loss in its CPO trainer alone, which sees log-probabilities: it is handed the log-ratios.
    trainer = trl_trainer(CPOTrainer, CPOConfig, scored, tmp_path, beta=0.3, label_smoothing=0.1)
    terms = clo_terms(scored.log_probs, beta=0.3, label_smoothing=0.1)
    losses, _, _ = trainer.cpo_loss(*(scored.log_probs.policy - scored.log_probs.reference).unbind(-1))
    torch.testing.assert_close(terms.preference, losses, atol=1e-5, rtol=0)


@every_loss
def test_every_loss_is_its_formula_in_value_and_gradient(options: dict[str, Any]) -> None:
    log_probs = random_log_probs(8, missing=((1, 0), (4, 1)))
    policy = log_probs.policy.float().requires_grad_()
    terms = clo_terms(log_probs._replace(policy=policy), **options)
    clo_loss(terms, nll_weight=0.0).backward()
    exact = log_probs.policy.float().double().requires_grad_()
    margin, preference = formula(log_probs._replace(policy=exact), **options)
    preference.mean().backward()
    kept = present(log_probs)
    torch.testing.assert_close(terms.margin[kept].double(), margin, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(terms.preference[kept].double(), preference, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(policy.grad.double(), exact.grad, atol=1e-6, rtol=1e-5)
    assert terms.margin.std() > 0.1


@every_loss
@pytest.mark.parametrize("nll_both", [False, True])
def test_a_batch_that_lacks_a_direction_equals_the_batch_without_that_pair(
    options: dict[str, Any], nll_both: bool
) -> None:
    whole = random_log_probs(4)
    log_probs = random_log_probs(4, missing=((0, 0), (2, 1), (3, 0), (3, 1)))
    kept = present(log_probs)
    policy = log_probs.policy.requires_grad_()
    terms = clo_terms(log_probs, nll_both=nll_both, **options)
    loss = clo_loss(terms, nll_weight=0.4)
    loss.backward()

    other = whole.policy.requires_grad_()
    in_whole = clo_terms(whole, nll_both=nll_both, **options)
    covered = kept.clone()
    covered[:, 0] &= nll_both
    nll = -other[..., 0][covered].sum() / whole.lengths[..., 0][covered].sum()
    expected = 0.4 * nll + 0.6 * in_whole.preference[kept].mean()
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(policy.grad, other.grad, atol=1e-12, rtol=0)
    assert not kept.all()
    assert policy.grad[~kept].abs().max() == 0
    assert terms.pairs.tolist() == kept.double().tolist()
    assert terms.pairs.dtype == terms.preference.dtype
    assert terms.preference[~kept].abs().max() == terms.margin[~kept].abs().max() == 0


@every_loss
def test_a_batch_without_any_pair_costs_nothing(options: dict[str, Any]) -> None:
    policy = torch.zeros(2, 2, 2, requires_grad=True)
    terms = clo_terms(LogProbs(policy, torch.zeros(2, 2, 2), torch.zeros(2, 2, 2, dtype=torch.long)), **options)
    loss = clo_loss(terms, nll_weight=0.5)
    loss.backward()
    assert loss.item() == 0
    assert policy.grad.abs().max() == 0


@every_loss
def test_a_pair_with_one_empty_response_is_none_but_its_chosen_tokens_are_taught(options: dict[str, Any]) -> None:
    log_probs = random_log_probs(1)
    for values in log_probs:
        values[0, 1, 1] = 0
    policy = log_probs.policy.requires_grad_()
    terms = clo_terms(log_probs, **options)
    clo_loss(terms, nll_weight=1.0).backward()
    assert terms.pairs.tolist() == [[1, 0]]
    assert terms.nll.item() == -policy[0, 1, 0].item()
    assert policy.grad.tolist() == [[[0, 0], [-1 / log_probs.lengths[0, 1, 0].item(), 0]]]


@pytest.mark.parametrize("preference_loss", REFERENCE_FREE)
def test_reference_free_losses_look_at_no_reference(preference_loss: str) -> None:
    log_probs = random_log_probs()
    with_reference = clo_terms(log_probs, beta=2.0, preference_loss=preference_loss)
    without = clo_terms(log_probs._replace(reference=None), beta=2.0, preference_loss=preference_loss)
    assert torch.equal(with_reference.preference, without.preference)


@pytest.mark.bad_input("config")
@pytest.mark.parametrize("preference_loss", sorted({*PREFERENCE_LOSSES} - {*REFERENCE_FREE}))
def test_a_missing_reference_is_named(preference_loss: str) -> None:
    with pytest.raises(ValueError, match=f"{preference_loss}.*reference"):
        clo_terms(random_log_probs()._replace(reference=None), beta=0.1, preference_loss=preference_loss)


@pytest.mark.bad_input("config")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preference_loss": "dpo"}, "'dpo'.*accepted: sigmoid, ipo, hinge, robust, orpo, simpo"),
        ({"preference_loss": "robust", "label_smoothing": 0.5}, r"label_smoothing.*\[0, 0.5\).*0.5"),
        ({"label_smoothing": -0.1}, r"label_smoothing.*\[0, 0.5\).*-0.1"),
        ({"preference_loss": "hinge", "label_smoothing": 0.1}, "'hinge'.*label_smoothing.*sigmoid, robust, simpo"),
        ({"preference_loss": "orpo", "label_smoothing": 0.1}, "'orpo'.*label_smoothing"),
        ({"preference_loss": "simpo", "beta": None}, "'simpo'.*beta above 0.*None"),
        ({"preference_loss": "ipo", "beta": 0.0}, "'ipo'.*beta above 0.*0.0"),
    ],
)
def test_options_that_cannot_work_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clo_terms(random_log_probs(), **{"beta": 0.1, **options})


@pytest.mark.parametrize("average", [1e-7, 0.0, -1e-30, -1e-9, -1e-7, -1e-4])
@pytest.mark.parametrize("certain", ["chosen", "rejected", "both"])
def test_orpo_stays_finite_and_right_near_probability_one(average: float, certain: str) -> None:
    policy = torch.full((1, 2, 2), -8.0)
    policy[..., {"chosen": 0, "rejected": 1, "both": slice(None)}[certain]] = 4 * average
    lengths = torch.full((1, 2, 2), 4)
    terms = clo_terms(LogProbs(policy.requires_grad_(), None, lengths), beta=None, preference_loss="orpo")
    loss = clo_loss(terms, nll_weight=0.0)
    loss.backward()
    assert torch.isfinite(terms.margin).all()
    assert torch.isfinite(loss)
    assert torch.isfinite(policy.grad).all()
    sign = {"chosen": 1, "rejected": -1, "both": 0}[certain]
    assert torch.equal(terms.margin.sign(), torch.full((1, 2), float(sign)))
    if average == -1e-4:
        margin, preference = formula(LogProbs(policy.detach(), policy.detach(), lengths), "orpo", beta=1.0)
        torch.testing.assert_close(terms.margin[0].double(), margin, atol=1e-5, rtol=0)
        torch.testing.assert_close(terms.preference[0].double(), preference, atol=1e-5, rtol=0)


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


@every_loss
@pytest.mark.parametrize("missing", [(), ((0, 0), (2, 1), (4, 0), (5, 0))])
def test_parts_of_a_global_batch_add_up_to_the_whole(
    options: dict[str, Any], missing: tuple[tuple[int, int], ...]
) -> None:
    whole = clo_terms(random_log_probs(6, missing=missing), **options)
    parts = [type(whole)(*(x[a:b] for x in whole)) for a, b in ((0, 1), (1, 4), (4, 6))]
    counts = {"num_nll_tokens": whole.nll_tokens.sum(), "num_pairs": 12 - len(missing)}
    total = sum(clo_loss(part, nll_weight=0.5, **counts) for part in parts)
    assert float(total) == pytest.approx(clo_loss(whole, nll_weight=0.5).item(), abs=1e-10)


def test_identical_responses_give_ln2_and_no_preference_gradient() -> None:
    policy = torch.full((1, 2, 2), -3.0, requires_grad=True)
    terms = clo_terms(LogProbs(policy, torch.full((1, 2, 2), -5.0), torch.ones(1, 2, 2)), beta=0.1)
    loss = clo_loss(terms, nll_weight=0.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.693147, abs=1e-6)
    assert policy.grad.sum(-1).abs().max() == 0


@every_loss
@pytest.mark.parametrize("length", [0, 1])
def test_empty_and_single_token_responses_stay_finite(options: dict[str, Any], length: int) -> None:
    policy = torch.full((1, 2, 2), -2.0 * length, requires_grad=True)
    terms = clo_terms(LogProbs(policy, torch.zeros(1, 2, 2), torch.full((1, 2, 2), length)), **options)
    loss = clo_loss(terms, nll_weight=0.5)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(policy.grad).all()


@every_loss
def test_extreme_margins_stay_finite(options: dict[str, Any]) -> None:
    policy = torch.tensor([[[0.0, -1e4], [-1e4, 0.0]], [[-1e4, -1e4], [0.0, 0.0]]], requires_grad=True)
    lengths = torch.ones(2, 2, 2)
    lengths[1, 1] = 0
    loss = clo_loss(clo_terms(LogProbs(policy, -policy.detach(), lengths), **options), nll_weight=0.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(policy.grad).all()
