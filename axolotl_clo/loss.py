"""The CLO loss: log-probabilities in, losses out. Pure functions of tensors.

Cross-Lingual Optimization (https://arxiv.org/abs/2505.14297) turns one example, written in a source and in a
target language, into two preferences: to a source prompt the source response is preferred over the target
response, to a target prompt the target response over the source response. The preference term keeps each
language answering in itself; the NLL term, on the target language alone, teaches the new one.

    L_CLO = λ · L_SFT + (1 − λ) · L_CL
    L_SFT = − mean over target tokens of log π(y_l | x_l)
    L_CL  = mean over the pairs of both directions of f(m), in the paper −log σ(m), m = β·[r(chosen) − r(rejected)]
    r(y)  = log π(y | x) − log π_ref(y | x)

An example may lack a direction; that pair is then no part of any mean. Other losses take another f or margin m.
With Δ = chosen − rejected, |y| the tokens of y, p̄ the geometric mean of its token probabilities, ε label smoothing:

    sigmoid  m = β·Δr                   −(1−ε)·log σ(m) − ε·log σ(−m)               DPO, arXiv 2305.18290; with ε cDPO
    robust   m = β·Δr                   [−(1−ε)·log σ(m) + ε·log σ(−m)] / (1−2ε)    rDPO, arXiv 2403.00409
    hinge    m = β·Δr                   max(0, 1 − m)                               SLiC, arXiv 2305.10425
    ipo      m = Δ(r / |y|)             (m − 1/(2β))²                               IPO, arXiv 2310.12036
    orpo     m = Δ log(p̄ / (1−p̄))       −log σ(m)                                   ORPO, arXiv 2403.07691
    simpo    m = β·Δ(log p̄)             as sigmoid, of m − γ                        SimPO, arXiv 2405.14734

They are TRL's definitions: hinge acts on log-ratios where SLiC has log-probabilities, IPO on averages over tokens
where its paper has sums. ORPO's own weight of L_CL is left out, because λ balances it against the NLL.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

# Positions along the `direction` and `role` dimensions of every tensor below.
SOURCE, TARGET = 0, 1
CHOSEN, REJECTED = 0, 1

PREFERENCE_LOSSES = ("sigmoid", "ipo", "hinge", "robust", "orpo", "simpo")
REFERENCE_FREE = ("orpo", "simpo")
SMOOTHED = ("sigmoid", "robust", "simpo")
AVERAGED_OVER_TOKENS = ("ipo", "orpo", "simpo")


class LogProbs(NamedTuple):
    """Log-probabilities of the four responses of each example.

    policy: `[batch, direction, role]`, sum over response tokens of log π(token | prompt, tokens before), in nats.
    reference: same shape, under the model before training; None will do for the losses in `REFERENCE_FREE`.
    lengths: same shape, response tokens counted in the sums; 0 in a direction that the example lacks.
    """

    policy: torch.Tensor
    reference: torch.Tensor | None
    lengths: torch.Tensor


class CLOTerms(NamedTuple):
    """What the loss is made of, before it is averaged over a global batch.

    nll: `[batch]`, summed negative log-likelihood in nats of the responses the NLL covers.
    nll_tokens: `[batch]`, the tokens in that sum.
    preference: `[batch, direction]`, f(m): in nats; hinge without unit, ipo in (nats per token)².
    margin: `[batch, direction]`, m: without unit; orpo in nats (a log odds ratio), ipo in nats per token.
    pairs: `[batch, direction]`, 1 where both responses have tokens, else 0, as preference and margin are there.
    """

    nll: torch.Tensor
    nll_tokens: torch.Tensor
    preference: torch.Tensor
    margin: torch.Tensor
    pairs: torch.Tensor


def clo_terms(
    log_probs: LogProbs,
    *,
    beta: float | None,
    nll_both: bool = False,
    preference_loss: str = "sigmoid",
    label_smoothing: float = 0.0,
    simpo_gamma: float = 0.5,
) -> CLOTerms:
    """The terms of the loss for each example, in float32 or wider.

    Args:
        log_probs: see `LogProbs`.
        beta: β > 0, per nat (ipo and simpo: tokens per nat); usual are 0.01 to 0.5 for DPO and 2 to 2.5 for
            SimPO. ipo calls it τ in its paper; orpo has none and ignores it.
        nll_both: cover the source responses too (the paper's ablation), not the target responses alone.
        preference_loss: one of `PREFERENCE_LOSSES`.
        label_smoothing: ε in [0, 0.5), the share of pairs taken to be the wrong way round; 0 outside `SMOOTHED`.
        simpo_gamma: γ, the margin simpo aims at, in the unit of m as in its paper and TRL, not relative to β.

    Raises:
        ValueError: an unknown loss, no β or no reference where the loss needs it, label smoothing where it has none.
    """
    _check_options(preference_loss, label_smoothing)
    if preference_loss == "orpo":
        beta = 1.0  # takes no part
    elif beta is None or beta <= 0:
        raise ValueError(f"preference_loss {preference_loss!r} needs a beta above 0, got {beta!r}")
    policy = log_probs.policy if log_probs.policy.dtype == torch.float64 else log_probs.policy.float()
    has_tokens = log_probs.lengths > 0
    policy = policy.where(has_tokens, 0)  # cuts the gradient where there is no response
    pairs = has_tokens.all(-1)
    if preference_loss in REFERENCE_FREE:
        scores = policy
    elif log_probs.reference is None:
        raise ValueError(f"preference_loss {preference_loss!r} needs reference log-probabilities, got None")
    else:
        scores = policy - log_probs.reference.to(policy)
    margin = _margin(scores, log_probs.lengths, preference_loss, beta)
    gamma = simpo_gamma if preference_loss == "simpo" else 0.0
    covered = slice(SOURCE, None) if nll_both else slice(TARGET, None)
    return CLOTerms(
        nll=-policy[:, covered, CHOSEN].sum(-1),
        nll_tokens=log_probs.lengths[:, covered, CHOSEN].sum(-1),
        preference=_preference(margin - gamma, preference_loss, beta, label_smoothing).where(pairs, 0),
        margin=margin.where(pairs, 0),
        pairs=pairs.to(margin),
    )


def _check_options(preference_loss: str, label_smoothing: float) -> None:
    if preference_loss not in PREFERENCE_LOSSES:
        raise ValueError(f"unknown preference_loss {preference_loss!r}; accepted: {', '.join(PREFERENCE_LOSSES)}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), got {label_smoothing!r}")
    if label_smoothing and preference_loss not in SMOOTHED:
        raise ValueError(
            f"preference_loss {preference_loss!r} has no label_smoothing: leave it at 0, got {label_smoothing!r}; "
            f"accepted with: {', '.join(SMOOTHED)}"
        )


def _margin(scores: torch.Tensor, lengths: torch.Tensor, preference_loss: str, beta: float) -> torch.Tensor:
    """m, `[batch, direction]`, from the summed log-ratios or log-probabilities `[batch, direction, role]`."""
    if preference_loss in AVERAGED_OVER_TOKENS:
        scores = scores / lengths.clamp_min(1)
    if preference_loss == "orpo":
        # Rounding takes an average to 0 and past it, where the odds are not finite.
        scores = scores.clamp_max(-torch.finfo(scores.dtype).eps)
        scores = scores - torch.log(-torch.expm1(scores))
    difference = scores[..., CHOSEN] - scores[..., REJECTED]
    if preference_loss in ("ipo", "orpo"):
        return difference
    return beta * difference


def _preference(margin: torch.Tensor, preference_loss: str, beta: float, label_smoothing: float) -> torch.Tensor:
    """f(m), in the shape of m; simpo's m − γ stands for m."""
    if preference_loss == "hinge":
        return torch.relu(1 - margin)
    if preference_loss == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    as_labelled = -F.logsigmoid(margin)
    if not label_smoothing:
        return as_labelled
    flipped = -F.logsigmoid(-margin)
    if preference_loss == "robust":
        return ((1 - label_smoothing) * as_labelled - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * as_labelled + label_smoothing * flipped


def clo_loss(
    terms: CLOTerms,
    *,
    nll_weight: float,
    num_nll_tokens: torch.Tensor | int | None = None,
    num_pairs: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """L_CLO, a scalar; in nats where the preference is.

    Args:
        terms: of the examples at hand, which may be one part of a global batch.
        nll_weight: λ in [0, 1].
        num_nll_tokens: tokens under the NLL in the whole global batch; default: in `terms`.
        num_pairs: preference pairs in the whole global batch; default: in `terms`. With both given, the losses
            of the parts of a global batch add up to the loss of the whole.
    """
    if num_nll_tokens is None:
        num_nll_tokens = terms.nll_tokens.sum()
    if num_pairs is None:
        num_pairs = terms.pairs.sum()
    nll = terms.nll.sum() / torch.as_tensor(num_nll_tokens).clamp_min(1)
    preference = terms.preference.sum() / torch.as_tensor(num_pairs).clamp_min(1)
    return nll_weight * nll + (1 - nll_weight) * preference
