"""The `clo:` section inside Axolotl's config: which options go together, and where prepared rows are kept.

The plugin mixes `CLOArgs` into Axolotl's own config model; its checks run with the rest of the validation, before
anything is loaded.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, model_validator

from axolotl_clo.datasets import dataset_entries, value_of
from axolotl_clo.schema import CLOConfig

# `type:` of a dataset of parallel rows, and the values of `rl:` it makes rows for (None: SFT).
STRATEGIES: dict[str, tuple[str | None, ...]] = {
    "axolotl_clo.cross_lingual": ("clo",),
    "axolotl_clo.sft": (None,),
    "axolotl_clo.sft_source": (None,),
    "axolotl_clo.sft_target": (None,),
    "axolotl_clo.preference": ("dpo", "ipo", "orpo", "simpo"),
    "axolotl_clo.kto": ("kto",),
}
# Types of text pairs. Axolotl's loaders of them do not say which split they load, so the plugin gives held-out
# datasets these types.
HELD_OUT = {name: f"{name}_held_out" for name in ("axolotl_clo.preference", "axolotl_clo.kto")}
# Options of Axolotl that replace the forward pass of attention by one that needs an adapter.
ATTENTION_KERNELS = ("lora_qkv_kernel", "lora_o_kernel")

# (Axolotl option, is it in the way?, what to do instead)
_IN_THE_WAY: list[tuple[str, Any, str]] = [
    (
        "sample_packing",
        bool,
        "remove it: CLO keeps the four sequences of a row together and packs them itself",
    ),
    (
        "eval_sample_packing",
        bool,
        "remove it: CLO keeps the four sequences of a row together and packs them itself",
    ),
    ("pretraining_dataset", bool, "use `datasets:` with parallel rows"),
    ("streaming", bool, "remove it: the reference is computed once over a dataset of known length"),
    ("reward_model", bool, "remove it: CLO trains a causal language model"),
    ("process_reward_model", bool, "remove it: CLO trains a causal language model"),
    ("kd_trainer", bool, "remove it: a run has one trainer"),
    ("trainer_cls", bool, "remove it: a run has one trainer"),
    ("skip_prepare_dataset", bool, "remove it: parallel rows must be tokenized"),
    ("group_by_length", bool, "remove it: the rows of a batch are already laid end to end without padding"),
    ("eval_sequence_len", bool, "remove it: `sequence_len` bounds the sequences of both splits"),
    ("unfrozen_parameters", bool, "use `clo.train_modules` and `clo.layers` to choose what trains"),
    (
        "context_parallel_size",
        lambda v: bool(v) and int(v) > 1,
        "set it to 1: sequences are not split over devices",
    ),
    (
        "tensor_parallel_size",
        lambda v: bool(v) and int(v) > 1,
        "set it to 1: use data parallel, DeepSpeed or FSDP",
    ),
    ("rl_beta", bool, "use `clo.beta`"),
    ("orpo_alpha", bool, "use `clo.nll_weight` and `clo.beta`"),
    ("simpo_gamma", bool, "use `clo.simpo_gamma`"),
    ("use_eaft", bool, "remove it: it changes the token loss that CLO defines"),
    ("relora", bool, "remove it: the reference would have to follow the merges"),
    ("neftune_noise_alpha", bool, "remove it: noise would differ between policy and reference"),
]


class CLOArgs(BaseModel):
    """Top-level addition to Axolotl's config: the `clo:` section."""

    clo: CLOConfig | None = Field(None, description="Cross-Lingual Optimization (axolotl-clo).")

    @model_validator(mode="before")
    @classmethod
    def _refuse_impossible_combinations(cls, data: Any) -> Any:
        section = data.get("clo") if isinstance(data, dict) else None
        if isinstance(section, dict) and section.get("active"):
            check_combinations(data, section)
        elif isinstance(data, dict) and uses_parallel_rows(data):
            check_baseline(data, section or {})
        return data

    @model_validator(mode="after")
    def _own_prepared_folder(self) -> CLOArgs:
        if self.clo is not None and (self.clo.active or uses_parallel_rows(self)):
            self.dataset_prepared_path = prepared_path(self, self.clo)
        return self


def uses_parallel_rows(config: Any) -> bool:
    """Whether a dataset of the config has one of our types, as CLO and the baselines beside it do."""
    return any(str(value_of(entry, "type")).startswith("axolotl_clo.") for _, entry in dataset_entries(config))


def trains_on_parallel_rows(config: Any) -> bool:
    """Whether a dataset's type makes rows for the config's `rl:`, which `axolotl inference` takes out."""
    rl = _plain(value_of(config, "rl"))
    return any(rl in STRATEGIES.get(_declared(value_of(entry, "type")), ()) for _, entry in dataset_entries(config))


def check_baseline(data: dict[str, Any], section: dict[str, Any]) -> None:
    """Stop a run of another method on parallel rows whose options cannot work.

    Raises:
        ValueError: the message names the option and what to change.
    """
    if section.get("target_lang") is None:
        raise ValueError("a dataset of parallel rows needs `clo.target_lang`, e.g.\nclo:\n  target_lang: ko")
    for option, entry in dataset_entries(data):
        kind = value_of(entry, "type")
        check_strategy(option, kind, data.get("rl"), inference=bool(data.get("inference")))
        if _declared(kind) in HELD_OUT and str(data.get("excess_length_strategy")).lower() == "truncate":
            raise ValueError(
                "excess_length_strategy: truncate would cut each text of a pair by itself, at other tokens than with "
                f"the other methods, in `{option}` (type: {_declared(kind)}); use drop or raise"
            )
    _check_scope(data, section)
    _check_draw(data, section)


def check_strategy(option: str, kind: Any, rl: Any, inference: bool = False) -> None:
    """Stop where a dataset's type makes rows for another `rl:`.

    Raises:
        ValueError: the message names the option, the type and what is accepted.
    """
    rl = _plain(rl)
    kind = _declared(kind)
    if not str(kind).startswith("axolotl_clo.") or (inference and rl is None):
        return
    if kind not in STRATEGIES:
        near = difflib.get_close_matches(kind, STRATEGIES, n=1)
        raise ValueError(
            f"{option}.type: unknown {kind!r}"
            + (f" (did you mean {near[0]!r}?)" if near else "")
            + f"; accepted: {', '.join(STRATEGIES)}"
        )
    if rl not in STRATEGIES[kind]:
        fitting = [name for name, methods in STRATEGIES.items() if rl in methods]
        methods = " or ".join(f"rl: {method}" if method else "no `rl:` (SFT)" for method in STRATEGIES[kind])
        raise ValueError(
            f"{option}.type: {kind} makes rows for {methods}, but "
            + (f"this config has rl: {rl}" if rl else "this config has no `rl:`")
            + (f"; use type: {' or '.join(fitting)}" if fitting else "; no type of ours serves it")
        )


def check_combinations(data: dict[str, Any], section: dict[str, Any]) -> None:
    """Stop a CLO run whose other options cannot work with it.

    Raises:
        ValueError: the message names the option and what to change.
    """
    if section.get("target_lang") is None:
        raise ValueError("rl: clo needs `clo.target_lang`, e.g.\nclo:\n  target_lang: ko")
    if data.get("rl"):
        raise ValueError(f"rl: {data['rl']} and an active clo section exclude each other; write `rl: clo`")
    for option, in_the_way, instead in _IN_THE_WAY:
        if in_the_way(data.get(option)):
            raise ValueError(f"rl: clo cannot run with `{option}: {data[option]}`; {instead}")
    if adapter_of_checkpointed_modules(data):
        raise ValueError(
            "fsdp_config.activation_checkpointing with an adapter saves it under names that nothing loads; remove that "
            "line and set `gradient_checkpointing: true`"
        )
    if data.get("remove_unused_columns"):
        raise ValueError(
            "rl: clo needs `remove_unused_columns: false` (the plugin sets it; delete the line): with true the "
            "collator would not see the four sequences of a row"
        )
    adapter = data.get("adapter")
    _check_scope(data, section)
    _check_draw(data, section)
    if section.get("tokens_per_batch") is not None:
        _check_token_batches(data, section["tokens_per_batch"])
    if section.get("nonfinite_loss") == "skip" and data.get("deepspeed"):
        raise ValueError(
            "clo.nonfinite_loss: skip leaves out optimizer steps, but DeepSpeed takes them by itself; use `stop`, or "
            "another engine than `deepspeed:`"
        )
    if section.get("reference") == "adapter":
        if not adapter:
            raise ValueError(
                "clo.reference: adapter switches the adapter off to get the reference, but no `adapter:` is set; "
                "use `reference: precompute`"
            )
        if data.get("lora_model_dir"):
            raise ValueError(
                "clo.reference: adapter with `lora_model_dir` would compare with the model without its adapter, not "
                "with the model before training; use `reference: precompute`"
            )
    for option, dataset in dataset_entries(data):
        kind = value_of(dataset, "type")
        if "clo" not in STRATEGIES.get(kind, ()):
            raise ValueError(f"rl: clo reads `{option}` with `type: axolotl_clo.cross_lingual`, got {kind!r}")


def adapter_of_checkpointed_modules(data: dict[str, Any]) -> bool:
    """Whether FSDP 2 wraps modules that hold an adapter, whose saved names then have the wrapper's in them."""
    fsdp = data.get("fsdp_config") or {}
    return bool(data.get("adapter") and value_of(fsdp, "activation_checkpointing"))


def _check_scope(data: dict[str, Any], section: dict[str, Any]) -> None:
    adapter = data.get("adapter")
    if adapter and section.get("train_modules") == "all":
        raise ValueError(
            f"clo.train_modules: all trains every parameter, but `adapter: {adapter}` trains adapter weights; "
            "remove the adapter, or use attention or attention+mlp"
        )
    for kernel in ATTENTION_KERNELS:
        if adapter and section.get("train_modules") == "auto" and data.get(kernel):
            raise ValueError(
                f"clo.train_modules: auto measures the model before it has an adapter, which `{kernel}: true` does not "
                "allow; remove that line, or set train_modules to attention or attention+mlp"
            )
    if adapter and data.get("lora_target_linear"):
        raise ValueError(
            "lora_target_linear: true would add adapters outside clo.train_modules; remove it (the attention "
            "projections are found for you) or list `lora_target_modules` yourself"
        )


def _check_draw(data: dict[str, Any], section: dict[str, Any]) -> None:
    if section.get("max_examples") is not None and len(data.get("datasets") or []) > 1:
        raise ValueError(
            f"clo.max_examples draws from one dataset, but `datasets` lists {len(data['datasets'])}; join their rows "
            "in one file or folder"
        )


def _check_token_batches(data: dict[str, Any], budget: Any) -> None:
    replaced = [
        ("micro_batch_size", lambda size: str(size) != "1", "remove it (evaluation has `eval_batch_size`)"),
        ("auto_find_batch_size", bool, "remove it, and lower clo.tokens_per_batch if memory does not suffice"),
        ("curriculum_sampling", bool, "remove one of the two: batches of like size are not in the order of the rows"),
    ]
    for option, in_the_way, instead in replaced:
        if data.get(option) is not None and in_the_way(data[option]):
            raise ValueError(
                f"clo.tokens_per_batch: {budget} forms the batches, not `{option}: {data[option]}`; {instead}"
            )


def prepared_path(config: Any, clo: CLOConfig) -> str:
    """The folder for this run's prepared rows, inside the one the user named.

    Axolotl's key for prepared datasets knows nothing of plugin options or of what is in a local file, so a
    second run in another language would train on the first run's rows. Everything that shapes rows and is
    missing from Axolotl's key goes into the folder's name instead. Idempotent.
    """
    base = Path(getattr(config, "dataset_prepared_path", None) or "last_run_prepared")
    if re.fullmatch(r"clo-[0-9a-f]{16}", base.name):
        base = base.parent
    digest = hashlib.sha256(clo.row_digest(getattr(config, "seed", None)).encode())
    digest.update(str(getattr(config, "excess_length_strategy", None)).encode())
    for _, dataset in dataset_entries(config):
        for file in _local_files(dataset):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return str(base / f"clo-{digest.hexdigest()[:16]}")


def _declared(kind: Any) -> Any:
    """A dataset's type as the user wrote it."""
    return next((name for name, renamed in HELD_OUT.items() if renamed == kind), kind)


def _plain(rl: Any) -> Any:
    """`rl:` as text, which Axolotl holds as an enum after validation."""
    return getattr(rl, "value", rl)


def _local_files(dataset: Any) -> list[Path]:
    data_files = value_of(dataset, "data_files") or []
    names = [value_of(dataset, "path"), *([data_files] if isinstance(data_files, str) else data_files)]
    files: list[Path] = []
    for name in names:
        path = Path(str(name)) if name else None
        if path is not None and path.is_file():
            files.append(path)
        elif path is not None and path.is_dir():
            files.extend(sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")))
    return files
