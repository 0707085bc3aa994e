"""The CLO loss: log-probabilities in, losses out. Pure functions of tensors.

Cross-Lingual Optimization (https://arxiv.org/abs/2505.14297) turns one example, written in a source and in a
target language, into two preferences: to a source prompt the source response is preferred over the target
response, to a target prompt the target response over the source response. The preference term keeps each
language answering in itself; the NLL term, on the target language alone, teaches the new one.

    L_CLO = λ · L_SFT + (1 − λ) · L_CL
    L_SFT = − mean over target tokens of log π(y_l | x_l)
    L_CL  = − mean over both directions of log σ( β · [ r(chosen) − r(rejected) ] )
    r(y)  = log π(y | x) − log π_ref(y | x)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

# Positions along the `direction` and `role` dimensions of every tensor below.
SOURCE, TARGET = 0, 1
CHOSEN, REJECTED = 0, 1


class LogProbs(NamedTuple):
    """Log-probabilities of the four responses of each example.

    policy: `[batch, direction, role]`, sum over response tokens of log π(token | prompt, tokens before), in nats.
    reference: same shape, under the model before training.
    lengths: same shape, response tokens counted in the sums.
    """

    policy: torch.Tensor
    reference: torch.Tensor
    lengths: torch.Tensor


class CLOTerms(NamedTuple):
    """What the loss is made of, before it is averaged over a global batch.

    nll: `[batch]`, summed negative log-likelihood in nats of the responses the NLL covers.
    nll_tokens: `[batch]`, the tokens in that sum.
    preference: `[batch, direction]`, −log σ(β·margin) in nats.
    margin: `[batch, direction]`, β·[r(chosen) − r(rejected)], no unit.
    """

    nll: torch.Tensor
    nll_tokens: torch.Tensor
    preference: torch.Tensor
    margin: torch.Tensor


def clo_terms(log_probs: LogProbs, *, beta: float, nll_both: bool = False) -> CLOTerms:
    """The terms of the loss for each example, in float32 or wider.

    Args:
        log_probs: see `LogProbs`.
        beta: β > 0, per nat; 0.01 to 0.5 is usual for DPO.
        nll_both: cover the source responses too (the paper's ablation), not the target responses alone.
    """
    policy = log_probs.policy if log_probs.policy.dtype == torch.float64 else log_probs.policy.float()
    rewards = policy - log_probs.reference.to(policy)
    margin = beta * (rewards[..., CHOSEN] - rewards[..., REJECTED])
    covered = slice(SOURCE, None) if nll_both else slice(TARGET, None)
    return CLOTerms(
        nll=-policy[:, covered, CHOSEN].sum(-1),
        nll_tokens=log_probs.lengths[:, covered, CHOSEN].sum(-1),
        preference=-F.logsigmoid(margin),
        margin=margin,
    )


def clo_loss(
    terms: CLOTerms,
    *,
    nll_weight: float,
    num_nll_tokens: torch.Tensor | int | None = None,
    num_pairs: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """L_CLO, a scalar in nats.

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
        num_pairs = terms.preference.numel()
    nll = terms.nll.sum() / torch.as_tensor(num_nll_tokens).clamp_min(1)
    preference = terms.preference.sum() / torch.as_tensor(num_pairs).clamp_min(1)
    return nll_weight * nll + (1 - nll_weight) * preference
