"""Rows to one batch: all sequences laid end to end in one row, without padding."""

from __future__ import annotations

from typing import Any

import torch

# The four sequences of a row, in the order of the `[direction, role]` dimensions of the loss.
SEQUENCES = ("source_chosen", "source_rejected", "target_chosen", "target_rejected")


class CLOCollator:
    """Packs the four sequences of each row end to end.

    The batch it returns, with S = 4 · examples sequences, of which a row may leave both of a direction empty, T tokens
    in all and N response tokens in all:

    input_ids: `[1, T]`.
    position_ids: `[1, T]`, from 0 in each sequence. There is no attention mask: models tell sequences apart by
        positions that start again, and an all-ones mask would hide that from them.
    logit_positions: `[N]`, positions in T whose logits predict a response token.
    response_ids: `[N]`, the token each of them predicts.
    response_sequence: `[N]`, the sequence, 0 to S−1, each of them belongs to.
    response_lengths: `[examples, 2, 2]`, tokens of each response.
    pairs: a list, which stays on the host, with three numbers for each direction present: tokens that both of its
        sequences begin with, and of the rest of each.
    first_copies: `[T']`, places in T of the tokens that are left when each of those beginnings is kept once.
    shared_logit_positions: `[N]`, `logit_positions` in T'.
    language: `[examples]`, number of the target language, from 0.
    example_index: `[examples]`, row number in the dataset, where the dataset has that column.
    row: `[examples]`, row number in the user's dataset, from 1, where the dataset has that column.
    id: a list, which stays on the host, of the `id` of each row in the user's dataset, "" where it has none, where the
        dataset has the column `clo_id`.
    reference_log_probs: `[examples, 2, 2]`, in nats, where the dataset has that column.
    """

    def __init__(self, tokenizer: Any = None, **_padding: Any) -> None:
        # Axolotl passes its tokenizer and padding options to every collator; nothing here is padded.
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        input_ids: list[int] = []
        position_ids: list[int] = []
        logit_positions: list[int] = []
        response_sequence: list[int] = []
        lengths: list[int] = []
        pairs: list[list[int]] = []
        for row in rows:
            for name, prompt_length in zip(SEQUENCES, row["prompt_lengths"], strict=True):
                tokens = row[name]
                start = len(input_ids)
                logit_positions.extend(range(start + prompt_length - 1, start + len(tokens) - 1))
                response_sequence.extend([len(lengths)] * (len(tokens) - prompt_length))
                lengths.append(len(tokens) - prompt_length)
                input_ids.extend(tokens)
                position_ids.extend(range(len(tokens)))
            for first, second in ((0, 1), (2, 3)):
                # A token on the border of prompt and response is part of the response, so prompts may differ by one.
                shared = min(row["prompt_lengths"][first], row["prompt_lengths"][second])
                rests = [len(row[SEQUENCES[i]]) - shared for i in (first, second)]
                if shared or any(rests):
                    pairs.append([shared, *rests])
        ids = torch.tensor([input_ids], dtype=torch.long)
        positions = torch.tensor(logit_positions, dtype=torch.long)
        batch: dict[str, Any] = {
            "input_ids": ids,
            "position_ids": torch.tensor([position_ids], dtype=torch.long),
            "logit_positions": positions,
            "response_ids": ids[0, positions + 1],
            "response_sequence": torch.tensor(response_sequence, dtype=torch.long),
            "response_lengths": torch.tensor(lengths).view(-1, 2, 2),
            "pairs": pairs,
            **shared_places(pairs, positions),
            "language": torch.tensor([row["language"] for row in rows]),
        }
        for name in ("example_index", "row"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        if "clo_id" in rows[0]:  # not in what was prepared before there was such a column
            batch["id"] = [row["clo_id"] for row in rows]
        if "reference_log_probs" in rows[0]:
            batch["reference_log_probs"] = torch.tensor([row["reference_log_probs"] for row in rows]).view(-1, 2, 2)
        return batch


def shared_places(pairs: list[list[int]], logit_positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """`first_copies` and `shared_logit_positions` of a batch; formed on the host, where lengths cost no waiting."""
    kept: list[int] = []
    found: list[int] = []  # where each of the T tokens stands in T'
    for prompt, chosen, rejected in pairs:
        start, begin = len(found), len(kept)
        again, end = start + prompt + chosen, start + 2 * prompt + chosen + rejected
        kept.extend((*range(start, again), *range(again + prompt, end)))
        found.extend((*range(begin, begin + prompt + chosen), *range(begin, begin + prompt)))
        found.extend(range(begin + prompt + chosen, len(kept)))
    return {"first_copies": torch.tensor(kept), "shared_logit_positions": torch.tensor(found)[logit_positions]}
