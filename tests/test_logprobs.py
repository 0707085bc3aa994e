"""Packed, padded and separate sequences score alike where packing is exact, and the probe finds where it is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Qwen2Config,
)

from axolotl_clo.collator import SEQUENCES, CLOCollator
from axolotl_clo.logprobs import (
    TRIED_TOKENS,
    _Chosen,
    first_example,
    packing_is_exact,
    sequence_log_probs,
    token_log_probs,
)

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FFN = {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 128}


def build(config: Any, attn: str = "sdpa") -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attn).eval()


def rows(examples: int = 3, times: int = 1) -> list[dict[str, Any]]:
    """Of prompts of up to 8 and responses of up to 16 tokens, ``times`` as long."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(examples):
        prompts = [times * n for n in torch.randint(2, 9, (4,), generator=generator).tolist()]
        lengths = [times * n for n in torch.randint(1, 17, (4,), generator=generator).tolist()]
        row = {
            name: torch.randint(3, 64, (p + n,), generator=generator).tolist()
            for name, p, n in zip(SEQUENCES, prompts, lengths, strict=True)
        }
        made.append({**row, "prompt_lengths": prompts, "language": 0})
    return made


def by_hand(model: torch.nn.Module, row: dict[str, Any]) -> torch.Tensor:
    """Σ log-softmax of the response tokens of each sequence, from full logits of that sequence alone."""
    sums = []
    for name, prompt in zip(SEQUENCES, row["prompt_lengths"], strict=True):
        ids = torch.tensor([row[name]])
        log_probs = model(input_ids=ids).logits[0].float().log_softmax(-1)
        sums.append(sum(log_probs[i - 1, ids[0, i]] for i in range(prompt, ids.shape[1])))
    return torch.stack(sums).view(2, 2)


PACKED = {
    "llama": LlamaConfig(**SMALL, **FFN),
    "qwen2": Qwen2Config(**SMALL, **FFN),
    "gemma2": Gemma2Config(
        **SMALL, **FFN, head_dim=8, sliding_window=8, final_logit_softcapping=2.0, attn_logit_softcapping=5.0
    ),
    "gpt_neox": GPTNeoXConfig(**SMALL, intermediate_size=48, max_position_embeddings=128),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_equals_padded_equals_separate(name: str) -> None:
    model = build(PACKED[name], attn="eager" if name == "gemma2" else "sdpa")
    examples = rows()
    batch = CLOCollator()(examples)
    with torch.no_grad():
        expected = torch.stack([by_hand(model, row) for row in examples])
        assert packing_is_exact(model, batch)
        torch.testing.assert_close(sequence_log_probs(model, batch), expected, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(sequence_log_probs(model, batch, packed=False), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        FalconConfig(**SMALL, alibi=True, new_decoder_architecture=False, multi_query=True),
        BloomConfig(**{k: v for k, v in SMALL.items() if k != "num_attention_heads"}, n_head=4),
    ],
    ids=["falcon", "bloom"],
)
def test_alibi_models_fall_back_to_padding_and_stay_right(config: Any) -> None:
    model = build(config, attn="eager")
    examples = rows()
    batch = CLOCollator()(examples)
    with torch.no_grad():
        assert not packing_is_exact(model, batch)
        assert not packing_is_exact(model, first_example(CLOCollator()(rows(times=10))))
        expected = torch.stack([by_hand(model, row) for row in examples])
        torch.testing.assert_close(sequence_log_probs(model, batch, packed=False), expected, atol=1e-4, rtol=1e-5)


def test_layouts_are_tried_on_the_border_of_prompt_and_response() -> None:
    """What is left is of the first example, and its pairs still begin alike; a step's worth of tokens is not spent."""
    examples = rows(times=10)
    for row in examples:  # as the two sequences of a pair do
        for first, second in ((0, 1), (2, 3)):
            prompt = row["prompt_lengths"][second] = row["prompt_lengths"][first]
            names = SEQUENCES[first], SEQUENCES[second]
            row[names[1]] = row[names[0]][:prompt] + row[names[1]][prompt:]
    examples[0]["source_chosen"], examples[0]["source_rejected"] = [], []
    examples[0]["prompt_lengths"][:2] = [0, 0]
    whole = CLOCollator()(examples)
    whole["response_lengths"][0] = 0  # repeated rows count nowhere
    example = first_example(whole)
    starts = (example["position_ids"][0] == 0).nonzero().squeeze(-1).tolist()
    assert len(starts) == 2
    for start, name in zip(starts, SEQUENCES[2:], strict=True):
        prompt, tokens = examples[0]["prompt_lengths"][2], examples[0][name]
        wanted = tokens[max(0, prompt - TRIED_TOKENS) : prompt + TRIED_TOKENS]
        assert example["input_ids"][0, start : start + len(wanted)].tolist() == wanted
    assert example["pairs"][0][0] == min(TRIED_TOKENS, examples[0]["prompt_lengths"][2])
    assert example["input_ids"].shape[1] <= 4 * TRIED_TOKENS


def test_a_collator_that_sends_a_mask_would_be_wrong() -> None:
    """Why there is no attention mask in a packed batch."""
    model = build(PACKED["llama"])
    batch = CLOCollator()(rows())
    with torch.no_grad():
        inputs = {k: batch[k] for k in ("input_ids", "position_ids")}
        mixed = model(**inputs, attention_mask=torch.ones_like(batch["input_ids"]), use_cache=False).logits
        apart = model(**inputs, use_cache=False).logits
    assert (mixed - apart).abs().max() > 1e-2
    assert "attention_mask" not in batch


def test_gradients_of_packed_and_padded_agree() -> None:
    model = build(PACKED["llama"])
    batch = CLOCollator()(rows())
    grads = []
    for packed in (True, False):
        model.zero_grad()
        sequence_log_probs(model, batch, packed=packed).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probs_of_logits_at_once_and_their_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (5 * torch.randn(700, 50)).to(dtype).requires_grad_()
    ids, weights = torch.randint(0, 50, (700,)), torch.randn(700)
    expected = logits.float().log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
    found = _Chosen.apply(logits, ids)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((x * weights).sum(), logits)[0] for x in (found, expected)]
    assert gradients[0].dtype == dtype
    torch.testing.assert_close(*gradients)


def test_only_response_positions_reach_the_output_head() -> None:
    model = build(PACKED["llama"])
    batch = CLOCollator()(rows())
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    with torch.no_grad():
        token_log_probs(model, batch)
    assert seen == [int(batch["response_lengths"].sum())]
    assert seen[0] < batch["input_ids"].shape[1]


def test_batch_layout() -> None:
    row = {
        "source_chosen": [5, 6, 7, 8],
        "source_rejected": [5, 6, 9],
        "target_chosen": [10, 11],
        "target_rejected": [10, 12, 13],
        "prompt_lengths": [2, 2, 1, 1],
        "language": 1,
        "example_index": 4,
        "reference_log_probs": [-1.0, -2.0, -3.0, -4.0],
    }
    batch = CLOCollator()([row])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 5, 6, 9, 10, 11, 10, 12, 13]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch["logit_positions"].tolist() == [1, 2, 5, 7, 9, 10]
    assert batch["response_ids"].tolist() == [7, 8, 9, 11, 12, 13]
    assert batch["response_sequence"].tolist() == [0, 0, 1, 2, 3, 3]
    assert batch["response_lengths"].tolist() == [[[2, 1], [1, 2]]]
    assert batch["reference_log_probs"].tolist() == [[[-1.0, -2.0], [-3.0, -4.0]]]
    assert batch["example_index"].tolist() == [4]
    assert batch["language"].tolist() == [1]


@pytest.mark.parametrize("missing", [0, 1])
def test_rows_without_a_direction(missing: int) -> None:
    """Their pair has no tokens and scores nothing; all others score as they would beside a whole row."""
    model = build(PACKED["llama"])
    examples = rows()
    whole = sequence_log_probs(model, CLOCollator()(examples))
    for name in SEQUENCES[2 * missing : 2 * missing + 2]:
        examples[0][name] = []
    examples[0]["prompt_lengths"][2 * missing : 2 * missing + 2] = [0, 0]
    batch = CLOCollator()(examples)
    whole[0, missing] = 0
    assert (batch["response_lengths"] == 0).nonzero().tolist() == [[0, missing, 0], [0, missing, 1]]
    assert packing_is_exact(model, batch)
    for packed in (True, False):
        torch.testing.assert_close(sequence_log_probs(model, batch, packed=packed), whole, atol=1e-4, rtol=1e-5)


def test_empty_and_one_token_responses() -> None:
    model = build(PACKED["llama"])
    row = {
        "source_chosen": [5, 6],
        "source_rejected": [5, 6],
        "target_chosen": [7, 8, 9],
        "target_rejected": [7],
        "prompt_lengths": [2, 1, 1, 1],
        "language": 0,
    }
    with torch.no_grad():
        sums = sequence_log_probs(model, CLOCollator()([row]))
        assert sums[0, 0, 0] == sums[0, 1, 1] == 0
        assert (sums[0, [0, 1], [1, 0]] < 0).all()
