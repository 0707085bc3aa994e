"""Parallel rows for Axolotl's own preference methods: `type: axolotl_clo.preference` and `type: axolotl_clo.kto`.

Both directions of each row become pairs: to a source prompt the source response is preferred over the target
response, to a target prompt the target response over the source response. The same rows, checks, lengths and draws
as `axolotl_clo.cross_lingual`, so that a run with each differs in the method alone.

Axolotl's preference loaders map one function over a dataset. Ours takes the whole dataset as one batch, because
what is drawn, and the count of what is left out, belong to the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from axolotl.utils.logging import get_logger

from axolotl_clo.cross_lingual import CrossLingualStrategy, strategy_options

LOG = get_logger(__name__)

# Prompt, chosen and rejected, rendered.
Pair = tuple[str, str, str]
Strategy = tuple[Callable[..., dict[str, list]], dict[str, Any]]


def preference(cfg: Any, dataset_idx: int = 0, **_: Any) -> Strategy:
    """Called by Axolotl for `rl: dpo`, `ipo`, `orpo` and `simpo`: columns `prompt`, `chosen`, `rejected`."""
    return _strategy(cfg, cfg.datasets[dataset_idx], _preference_columns, held_out=False)


def preference_held_out(cfg: Any, dataset_idx: int = 0, **_: Any) -> Strategy:
    """The same for an entry of `test_datasets`, of which all rows are taken."""
    return _strategy(cfg, cfg.test_datasets[dataset_idx], _preference_columns, held_out=True)


def kto(cfg: Any, dataset_idx: int = 0, **_: Any) -> Strategy:
    """Called by Axolotl for `rl: kto`: columns `prompt`, `completion`, `label` (true for the prompt's language)."""
    return _strategy(cfg, cfg.datasets[dataset_idx], _kto_columns, held_out=False)


def kto_held_out(cfg: Any, dataset_idx: int = 0, **_: Any) -> Strategy:
    """The same for an entry of `test_datasets`, of which all rows are taken."""
    return _strategy(cfg, cfg.test_datasets[dataset_idx], _kto_columns, held_out=True)


def _strategy(cfg: Any, ds_cfg: Any, columns: Callable[[list[Pair]], dict[str, list]], held_out: bool) -> Strategy:
    def transform(batch: Any, tokenizer: Any) -> dict[str, list]:
        from datasets import Dataset

        rows = Dataset.from_dict(dict(batch))
        strategy = CrossLingualStrategy(**strategy_options(tokenizer, cfg, ds_cfg, held_out))
        pairs = list(_pairs(strategy, rows))
        if not held_out:
            _tell_of_second_end(strategy, pairs)
        return columns(pairs)

    return transform, {"batched": True, "batch_size": None, "remove_columns": "__all__"}


def _pairs(strategy: CrossLingualStrategy, rows: Any) -> Iterator[Pair]:
    """The pairs of the rows that the strategy keeps, in their order."""
    for example in strategy.wrap_dataset(rows):
        number = example["row"]
        row = rows[number - 1]
        source, target, rejected = (
            strategy.side(row, number, language) for language in (-1, example["language"], example["rejected_language"])
        )
        if example["source_chosen"]:
            yield _render(strategy, source.prompt, (source.response, target.response), number)
        if example["target_chosen"]:
            yield _render(strategy, target.prompt, (target.response, rejected.response), number)


def _render(strategy: CrossLingualStrategy, prompt: Any, responses: tuple[str, str], number: int) -> Pair:
    texts = []
    for response in responses:
        asked, whole = strategy.render(prompt, response, number)
        texts.append(whole[len(asked) :] + ("" if strategy.ends_turn(whole) else strategy.tokenizer.eos_token))
    # TRL tokenizes prompts with the tokenizer's own begin token, so one that the template rendered would be a second.
    if strategy.adds_begin_token:
        asked = asked.removeprefix(strategy.tokenizer.bos_token)
    return asked, texts[0], texts[1]


def _tell_of_second_end(strategy: CrossLingualStrategy, pairs: list[Pair]) -> None:
    """Warn where TRL adds to the end of a turn the end of the sequence, which CLO and SFT do not train."""
    tokenizer = strategy.tokenizer
    if not pairs or pairs[0][1].endswith(tokenizer.eos_token):
        return
    end = tokenizer.convert_ids_to_tokens(tokenizer(pairs[0][1], add_special_tokens=False)["input_ids"][-1])
    LOG.warning(
        "clo: responses end with %s%s here, as TRL adds the tokenizer's end-of-sequence token, and with %s alone under "
        "CLO and SFT on the same rows; to compare them, set `special_tokens: {eos_token: %s}` for all",
        end,
        tokenizer.eos_token,
        end,
        end,
    )


def _preference_columns(pairs: list[Pair]) -> dict[str, list]:
    prompts, chosen, rejected = ([pair[i] for pair in pairs] for i in range(3))
    return {"prompt": prompts, "chosen": chosen, "rejected": rejected}


def _kto_columns(pairs: list[Pair]) -> dict[str, list]:
    """Each response once as desirable or undesirable, even where several targets share the source's."""
    judged = dict.fromkeys(
        (p, text, good) for p, chosen, rejected in pairs for text, good in ((chosen, True), (rejected, False))
    )
    prompts, completions, labels = ([entry[i] for entry in judged] for i in range(3))
    return {"prompt": prompts, "completion": completions, "label": labels}
