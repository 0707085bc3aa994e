"""`train_modules: auto`: how well a model knows the target language before training, and what should train.

`python -m axolotl_clo.scope MODEL` prints the measure of a model in the languages of the starter rows.

The measure is bits per byte of the target responses given their prompts, against that of the source responses of the
same rows, over rows spread evenly over each dataset (the first rows of a sorted file may all be easy ones).

The threshold, 2.7 times, is ours and provisional: it parts the six languages of the paper (arXiv 2505.14297) on
SmolLM2-135M-Instruct, where the command above measures de 2.26, ko 2.32, id 2.41, zh 2.44, yo 2.98 and sw 3.33. With
Llama-2 the paper reports that attention equals full training in Chinese and Korean, and loses to it in Swahili; the
rule is not the paper's. Bits per byte flatter scripts with several bytes a character, such as Chinese.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate.utils import send_to_device
from axolotl.utils.logging import get_logger

from axolotl_clo.collator import CLOCollator
from axolotl_clo.cross_lingual import SOURCE_LANGUAGE, CrossLingualStrategy, strategy_options
from axolotl_clo.datasets import load_rows, starter_folder, training_entries
from axolotl_clo.evaluate.language import LANGUAGES
from axolotl_clo.logprobs import sequence_log_probs
from axolotl_clo.schema import CLOConfig

LOG = get_logger(__name__)

MEASURED_ROWS = 64
# Of each dataset, however many there are: some of its rows may not be usable.
LEAST_ROWS = 8
THRESHOLD = 2.7


class Knowledge(NamedTuple):
    """Bits per byte of the responses of the same rows given their prompts.

    source: in the source language.
    target: in the target language.
    """

    source: float
    target: float

    @property
    def ratio(self) -> float:
        """Target to source: 1 where the model knows both alike, more where it knows the target less."""
        return self.target / self.source


def resolve_scope(cfg: Any, model: Any) -> str:
    """What `auto` stands for in this run; prints the measurement that decides.

    Args:
        cfg: Axolotl's config, with datasets of parallel rows.
        model: with its weights before training.

    Returns:
        `attention`, or, where a target language is above the threshold, `all` (with an adapter `attention+mlp`).

    Raises:
        ValueError: the weights are not whole in this process (ZeRO-3, FSDP), or no row can be measured.
    """
    if any(p.numel() == 0 or p.device.type == "meta" or hasattr(p, "ds_id") for p in model.parameters()):
        raise ValueError(
            "clo.train_modules: auto measures the model before it is sharded, but its weights are not whole in this "
            "process (DeepSpeed ZeRO-3 or FSDP); measure once in a single process, and set attention or all"
        )
    clo = CLOConfig.from_cfg(cfg)
    assert clo is not None  # nosec B101 # tells the type checker
    known = measure_knowledge(model, clo.target_langs, _measured(cfg))
    worst = max(known, key=lambda lang: known[lang].ratio)
    more = "attention+mlp" if cfg.adapter else "all"
    scope = more if known[worst].ratio > THRESHOLD else "attention"
    if dist.is_initialized():  # rounding must not part the ranks
        chosen = [scope]
        dist.broadcast_object_list(chosen)
        scope = chosen[0]
    for lang, bits in known.items():
        LOG.info(
            "clo: %s costs the model %.2f bits per byte, %s %.2f on the same rows: %.2f times as much",
            lang, bits.target, clo.source_lang, bits.source, bits.ratio,
        )  # fmt: skip
    LOG.info(
        "clo: train_modules: auto trains %s (%s is %s %.1f times); set `clo.train_modules` to choose yourself",
        scope, worst, "above" if scope != "attention" else "not above", THRESHOLD,
    )  # fmt: skip
    if scope == "all":
        LOG.info("clo: all parameters want a lower learning rate than attention; about half of it is a start")
    return scope


def measure_knowledge(
    model: Any, targets: list[str], measured: Iterable[tuple[CrossLingualStrategy, Any]]
) -> dict[str, Knowledge]:
    """Bits per byte by target language, over the rows that hold it.

    Args:
        model: causal language model, scored without gradients and in evaluation mode.
        targets: the languages, in the order of the strategies.
        measured: each `datasets.Dataset` of parallel rows with the strategy that reads and renders them.
    """
    nats = torch.zeros(len(targets), 2, dtype=torch.float64)
    sizes = torch.zeros_like(nats)
    collate, device = CLOCollator(), next(model.parameters()).device
    training = model.training
    model.eval()
    examples = ((reads, rows, example) for reads, rows in measured for example in reads.wrap_dataset(rows))
    for strategy, dataset, example in examples:
        language, row = example["language"], dataset[example["row"] - 1]
        prompt_lengths = [length if i in (0, 2) else 0 for i, length in enumerate(example["prompt_lengths"])]
        chosen = {**example, "source_rejected": [], "target_rejected": [], "prompt_lengths": prompt_lengths}
        batch = send_to_device(collate([chosen]), device)
        with torch.no_grad():
            scores = sequence_log_probs(model, batch, packed=False)[0, :, 0]
        nats[language] -= scores.double().cpu()
        for i, side in enumerate((SOURCE_LANGUAGE, language)):
            sizes[language, i] += len(strategy.side(row, example["row"], side).response.encode())
    model.train(training)
    bits = nats / math.log(2) / sizes
    return {lang: Knowledge(*bits[i].tolist()) for i, lang in enumerate(targets) if sizes[i, 0]}


def _measured(cfg: Any) -> list[tuple[CrossLingualStrategy, Any]]:
    """Some rows of each dataset of ours that the run trains on, with what reads them."""
    from axolotl.loaders import load_tokenizer

    tokenizer, entries = load_tokenizer(cfg), training_entries(cfg)
    datasets = [load_rows(cfg, entry) for entry in entries]
    return [
        (CrossLingualStrategy(**strategy_options(tokenizer, cfg, entry, held_out=True)), spread(dataset, count))
        for entry, dataset, count in zip(entries, datasets, shares([len(d) for d in datasets]), strict=True)
    ]


def shares(sizes: list[int]) -> list[int]:
    """How many rows of each dataset are measured: as many of each, as far as it has them, in all `MEASURED_ROWS`."""
    found, left = [0] * len(sizes), MEASURED_ROWS
    for done, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        found[i] = min(sizes[i], max(LEAST_ROWS, left // (len(sizes) - done)))
        left -= found[i]
    return found


def spread(dataset: Any, count: int) -> Any:
    """`count` rows of a `datasets.Dataset`, at equal distances."""
    return dataset.select([i * len(dataset) // count for i in range(count)])


def main(arguments: list[str] | None = None) -> None:
    """Print how well a model knows the languages of the starter rows."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(prog="python -m axolotl_clo.scope", description=main.__doc__)
    parser.add_argument("model", help="folder or hub name of a causal language model with a chat template")
    parser.add_argument("--languages", nargs="+", default=[lang for lang in LANGUAGES if lang != "en"], metavar="LANG")
    given = parser.parse_args(arguments)
    rows = (starter_folder() / "train.jsonl").read_text(encoding="utf-8").splitlines()
    dataset = spread(Dataset.from_list([json.loads(row) for row in rows]), min(MEASURED_ROWS, len(rows)))
    # The model is the user's choice, as it stands on the hub today; what code comes with it does not run.
    model, tokenizer = (
        kind.from_pretrained(given.model, trust_remote_code=False)  # nosec B615 # see above
        for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    clo = CLOConfig(target_lang=given.languages, check_language="off")
    strategy = CrossLingualStrategy(tokenizer, clo, tokenizer.chat_template, 10**9, held_out=True)
    print("| language | bits per byte | en, same rows | ratio | auto trains |\n|---|---:|---:|---:|---|")
    for lang, bits in measure_knowledge(model, given.languages, [(strategy, dataset)]).items():
        scope = "all" if bits.ratio > THRESHOLD else "attention"
        print(f"| {lang} | {bits.target:.2f} | {bits.source:.2f} | {bits.ratio:.2f} | {scope} |")


if __name__ == "__main__":
    main()
