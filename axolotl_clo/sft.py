"""The prompt strategy `type: axolotl_clo.sft`: parallel rows for Axolotl's own SFT, one sequence per language.

The same rows, checks, lengths and draws as `axolotl_clo.cross_lingual`, so that a run with each differs in the method
alone. `axolotl_clo.sft_source` and `axolotl_clo.sft_target` give the sequences of one side.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from axolotl_clo.cross_lingual import CrossLingualStrategy, strategy_options


def load(tokenizer: Any, cfg: Any, ds_cfg: Any = None) -> SFTStrategy:
    """Called by Axolotl for `type: axolotl_clo.sft`.

    Raises:
        ValueError: as `axolotl_clo.cross_lingual.load`.
    """
    return SFTStrategy(("source_chosen", "target_chosen"), **strategy_options(tokenizer, cfg, ds_cfg))


class SFTStrategy(CrossLingualStrategy):
    """Turns parallel rows into one sequence per language, with the prompt masked out of the labels."""

    def __init__(self, sequences: tuple[str, ...], **options: Any) -> None:
        """
        Args:
            sequences: `source_chosen`, `target_chosen` or both.
            options: see `CrossLingualStrategy`.
        """
        super().__init__(**options)
        self.sequences = sequences

    def wrap_dataset(
        self, dataset: Any, process_count: int | None = None, keep_in_memory: bool | None = False, **_: Any
    ) -> Any:
        """Tokenize every usable row of a `datasets.Dataset`.

        Returns:
            A dataset with `input_ids`, `attention_mask` and `labels`; the source sequence of a row once, even where
            the row has several target languages.

        Raises:
            ValueError: as `CrossLingualStrategy.wrap_dataset`.
        """
        examples = super().wrap_dataset(dataset, process_count, keep_in_memory)
        seen: set[int] = set()

        def split(rows: dict[str, list]) -> dict[str, list]:
            result = defaultdict(list)
            for i, number in enumerate(rows["row"]):
                for name, position in (("source_chosen", 0), ("target_chosen", 2)):
                    tokens, first = rows[name][i], number not in seen
                    if name in self.sequences and tokens and (first or name == "target_chosen"):
                        prompt_length = rows["prompt_lengths"][i][position]
                        result["input_ids"].append(tokens)
                        result["attention_mask"].append([1] * len(tokens))
                        result["labels"].append([-100] * prompt_length + tokens[prompt_length:])
                    if name == "source_chosen" and tokens:
                        seen.add(number)
            return {name: result[name] for name in ("input_ids", "attention_mask", "labels")}

        return examples.map(split, batched=True, remove_columns=examples.column_names, desc="One sequence per language")
