"""The `clo:` section of an Axolotl config: every option, its default, its unit, and where it comes from.

`CLOArgs` is mixed into Axolotl's own config model by the plugin, so the section is validated with the rest of
the YAML, before anything is loaded.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# `type:` of a dataset of parallel rows, and the values of `rl:` it makes rows for (None: SFT).
STRATEGIES: dict[str, tuple[str | None, ...]] = {
    "axolotl_clo.cross_lingual": ("clo",),
    "axolotl_clo.sft": (None,),
    "axolotl_clo.sft_source": (None,),
    "axolotl_clo.sft_target": (None,),
    "axolotl_clo.preference": ("dpo", "ipo", "orpo", "simpo"),
    "axolotl_clo.kto": ("kto",),
}
# Axolotl's preference loaders do not say which split they load, so the plugin gives held-out datasets these types.
HELD_OUT = {name: f"{name}_held_out" for name in ("axolotl_clo.preference", "axolotl_clo.kto")}
# Raised whenever the columns of a prepared row change, so that old prepared datasets are not read.
ROW_FORMAT = 2

PAPER = "arXiv 2505.14297"

PreferenceLoss = Literal["sigmoid", "ipo", "hinge", "robust", "orpo", "simpo"]
DEFAULT_BETA = {"sigmoid": 0.1, "ipo": 0.1, "hinge": 0.1, "robust": 0.1, "simpo": 2.0}


class _Section(BaseModel):
    """A config section that refuses unknown keys and suggests the nearest known one."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _suggest_near_miss(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = list(cls.model_fields)
        unknown = []
        for key in data:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                unknown.append(f"`{key}`" + (f" (did you mean `{near[0]}`?)" if near else ""))
        if unknown:
            raise ValueError(f"unknown option {', '.join(unknown)}; accepted here: {', '.join(known)}")
        return data


class FieldMapping(_Section):
    """Which columns hold the parallel text.

    The canonical row nests languages under `prompt` and `response` (or `messages`). For flat columns name all
    four of `source_prompt`, `source_response`, `target_prompt` and `target_response`; a dot reaches into a
    nested column (`translation.en`).
    """

    prompt: str = Field("prompt", description="Column with one prompt per language, `{lang: text}`.")
    response: str = Field("response", description="Column with one response per language, `{lang: text}`.")
    messages: str = Field(
        "messages",
        description="Column with one conversation per language, `{lang: [{role, content}, …]}`, the last turn "
        "being the assistant's; used instead of prompt and response where the dataset has it.",
    )
    source_prompt: str | None = Field(None, description="Flat column with the source-language prompt.")
    source_response: str | None = Field(None, description="Flat column with the source-language response.")
    target_prompt: str | None = Field(None, description="Flat column with the target-language prompt.")
    target_response: str | None = Field(None, description="Flat column with the target-language response.")

    @property
    def flat(self) -> dict[str, str] | None:
        """The four flat columns by role, or None where the nested form is used."""
        names = ("source_prompt", "source_response", "target_prompt", "target_response")
        given = {name: value for name in names if (value := getattr(self, name))}
        return given or None

    @model_validator(mode="after")
    def _all_four_or_none(self) -> FieldMapping:
        if self.flat and len(self.flat) < 4:
            missing = sorted({"source_prompt", "source_response", "target_prompt", "target_response"} - set(self.flat))
            raise ValueError(f"flat columns need all four names; missing: {', '.join(missing)}")
        return self


class CLOConfig(_Section):
    """Options of Cross-Lingual Optimization (arXiv 2505.14297)."""

    active: bool = Field(
        False,
        description="Set by the plugin when it takes `rl: clo` out of the config; leave it alone.",
    )
    source_lang: str = Field(
        "en",
        description="Language the model already has, as the key used in the dataset (ISO 639-1 preferred). "
        f"Source: {PAPER} transfers from English.",
    )
    target_lang: str | list[str] | None = Field(
        None,
        description="Language or languages to add, as the keys used in the dataset. Required with `rl: clo`. Of "
        "several, a row may hold any.",
    )
    fields: FieldMapping = Field(
        default_factory=lambda: FieldMapping(), description="Which columns hold the parallel text."
    )
    nll_weight: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="λ, the weight of the NLL against the preference loss, between 0 and 1 (no unit): "
        "L = λ·L_SFT + (1−λ)·L_CL. The default is ours; the paper's value is not in our sources.",
    )
    preference_loss: PreferenceLoss = Field(
        "sigmoid",
        description=f"The loss of a preference pair in L_CL. `sigmoid` (DPO, arXiv 2305.18290) is that of {PAPER}; "
        "further `ipo` (arXiv 2310.12036), `hinge` (arXiv 2305.10425), `robust` (arXiv 2403.00409), and without a "
        "reference model `orpo` (arXiv 2403.07691) and `simpo` (arXiv 2405.14734).",
    )
    beta: float | None = Field(
        None,
        gt=0.0,
        description="β, the strength of the pull towards the reference model, above 0 (per nat). The default, 0.1, is "
        "ours, the usual one of DPO; for `simpo` it is 2.0 (arXiv 2405.14734); `orpo` has none.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0.0,
        lt=0.5,
        description="Share of preference pairs taken to be the wrong way round, 0 to below 0.5 (no unit), for "
        "`sigmoid`, `robust` and `simpo`.",
    )
    simpo_gamma: float = Field(
        0.5, ge=0.0, description="γ, the margin `simpo` asks for, at least 0 (no unit). Default as in TRL."
    )
    nll_languages: Literal["target", "both"] = Field(
        "target",
        description="Whose responses the NLL covers. `target` is the method; with `both` the paper's Swahili win "
        f"rate falls from 83.0 to 74.5 while English rises from 65.4 to 67.8, as reported in {PAPER}.",
    )
    train_modules: Literal["attention", "attention+mlp", "all", "auto"] = Field(
        "attention",
        description="Which parameters train. `attention` is the method; on Swahili full training won 69.6 to "
        f"29.7, as reported in {PAPER}. `auto` measures how well the model knows the target language, and chooses.",
    )
    layers: str | None = Field(
        None,
        description="Decoder layers that train, counted from 0, both ends included: `16-31`, `0-3,28-31` or `7`. "
        "Default: all.",
    )
    reference: Literal["precompute", "adapter"] = Field(
        "precompute",
        description="Where log π_ref comes from: `precompute` scores all rows once before the first step and "
        "caches the result; `adapter` (LoRA, QLoRA) switches the adapter off at every step.",
    )
    max_examples: int | None = Field(
        None,
        ge=1,
        description="Rows to train on, drawn with Axolotl's `seed`; the rows of a smaller number are among those of a "
        "larger one. Counted after unusable rows are dropped and before `val_set_size`; held-out datasets are not "
        "cut. Default: all.",
    )
    target_source_ratio: float = Field(
        1.0,
        gt=0.0,
        description="Pairs with a target-language prompt to one with a source-language prompt (no unit). With 2 every "
        "other row has no source pair, with 0.5 every other row no target pair and no target NLL, drawn with `seed`.",
    )
    rejected: Literal["source", "any"] = Field(
        "source",
        description="The rejected response to a target prompt: the source's, or, with several target languages, one "
        "of the source's and the other targets' in the row, drawn with `seed`.",
    )
    sampling_temperature: float = Field(
        1.0,
        ge=1.0,
        description="T of the sampling over target languages, at least 1 (no unit): a language with n examples gets a "
        "share of n^(1/T). 1 leaves the data as it is; higher values even out the languages (arXiv 1907.05019).",
    )
    check_language: Literal["warn", "drop", "off"] = Field(
        "warn",
        description="What to do with a row whose response is identified as the other side's language.",
    )

    @field_validator("source_lang", "target_lang", mode="before")
    @classmethod
    def _languages_are_codes(cls, value: Any) -> Any:
        for code in value if isinstance(value, list) else [value]:
            if isinstance(code, bool):
                text = str(code).lower()
                raise ValueError(f"got the YAML boolean {text}: write the language code in quotes, e.g. 'no'")
            if isinstance(code, str) and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", code):
                raise ValueError(f"got {code!r}; a language code such as en, ko, zh or sw is accepted")
        if not isinstance(value, list):
            return value
        if not value or len({*map(str, value)}) < len(value):
            raise ValueError(f"got {value!r}; a list of different language codes is accepted")
        return value[0] if len(value) == 1 else value

    @field_validator("layers", mode="before")
    @classmethod
    def _layers_are_ranges(cls, value: Any) -> Any:
        if value is None:
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        parse_layers(value)
        return value

    @model_validator(mode="after")
    def _languages_differ(self) -> CLOConfig:
        if self.source_lang in self.target_langs:
            if isinstance(self.target_lang, str):
                raise ValueError(f"source_lang and target_lang are both {self.source_lang!r}; name different languages")
            raise ValueError(f"target_lang {self.target_lang} holds source_lang {self.source_lang!r}; take it out")
        if len(self.target_langs) > 1 and self.fields.flat:
            raise ValueError("flat columns hold one target language; for several, nest them under prompt and response")
        return self

    @model_validator(mode="after")
    def _loss_options_belong_to_the_loss(self) -> CLOConfig:
        loss = self.preference_loss
        if loss == "orpo" and self.beta is not None:
            raise ValueError("preference_loss: orpo has no beta; balance it with nll_weight")
        if self.label_smoothing and loss not in ("sigmoid", "robust", "simpo"):
            raise ValueError(f"label_smoothing is for preference_loss sigmoid, robust or simpo, not {loss}")
        if loss == "robust" and not self.label_smoothing:
            raise ValueError("preference_loss: robust needs label_smoothing above 0 and below 0.5; at 0 it is sigmoid")
        if "simpo_gamma" in self.model_fields_set and loss != "simpo" and self.simpo_gamma != 0.5:
            raise ValueError(f"simpo_gamma is for preference_loss simpo, not {loss}")
        if self.beta is None:
            self.beta = DEFAULT_BETA.get(loss)
        return self

    @property
    def target_langs(self) -> list[str]:
        """The target languages; empty where none is set."""
        return [self.target_lang] if isinstance(self.target_lang, str) else list(self.target_lang or [])

    @property
    def needs_reference(self) -> bool:
        """Whether the preference loss compares with the model before training."""
        return self.preference_loss not in ("orpo", "simpo")

    @classmethod
    def from_cfg(cls, cfg: Any) -> CLOConfig | None:
        """The typed section of a validated Axolotl config, or None where there is none."""
        section = cfg.get("clo")
        return cls(**dict(section)) if section else None

    def row_digest(self, seed: int | None) -> str:
        """A digest of every option here that changes how rows become tokens."""
        shaping = {"source_lang", "target_lang", "fields", "check_language"}
        drawing = {"max_examples", "target_source_ratio", "rejected", "sampling_temperature"}
        payload = {"format": ROW_FORMAT, **self.model_dump(include=shaping | drawing)}
        if any(payload[name] != type(self).model_fields[name].default for name in drawing):
            payload["seed"] = seed
        return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def parse_layers(text: Any) -> list[tuple[int, int]]:
    """Read `16-31` or `0-3,28-31` as inclusive ranges of decoder layers counted from 0.

    Raises:
        ValueError: the text is no such list; the message says what is accepted.
    """
    ranges = []
    for part in str(text).split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None or not isinstance(text, str):
            raise ValueError(f"got {text!r}; accepted are layer ranges such as '16-31', '0-3,28-31' or '7'")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"got {part.strip()!r}: the first layer comes after the last")
        ranges.append((first, last))
    return ranges


def select_layers(text: str | None, num_layers: int) -> set[int]:
    """The layer numbers `text` names in a model of `num_layers` layers.

    Raises:
        ValueError: a number is outside the model.
    """
    if text is None:
        return set(range(num_layers))
    selected: set[int] = set()
    for first, last in parse_layers(text):
        if last >= num_layers:
            raise ValueError(
                f"clo.layers: {text!r} reaches layer {last}, but the model has {num_layers} layers; "
                f"accepted are 0 to {num_layers - 1}"
            )
        selected.update(range(first, last + 1))
    return selected


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


def dataset_entries(config: Any) -> list[tuple[str, Any]]:
    """The datasets of a config, each with the option that names it."""
    return [
        (f"{name}[{i}]", entry)
        for name in ("datasets", "test_datasets")
        for i, entry in enumerate(_get(config, name) or [])
    ]


def uses_parallel_rows(config: Any) -> bool:
    """Whether a dataset of the config has one of our types, as CLO and the baselines beside it do."""
    return any(str(_get(entry, "type")).startswith("axolotl_clo.") for _, entry in dataset_entries(config))


def check_baseline(data: dict[str, Any], section: dict[str, Any]) -> None:
    """Stop a run of another method on parallel rows whose options cannot work.

    Raises:
        ValueError: the message names the option and what to change.
    """
    if section.get("target_lang") is None:
        raise ValueError("a dataset of parallel rows needs `clo.target_lang`, e.g.\nclo:\n  target_lang: ko")
    for option, entry in dataset_entries(data):
        check_strategy(option, _get(entry, "type"), data.get("rl"), inference=bool(data.get("inference")))
    _check_scope(data, section)
    _check_draw(data, section)


def check_strategy(option: str, kind: Any, rl: Any, inference: bool = False) -> None:
    """Stop where a dataset's type makes rows for another `rl:`.

    Raises:
        ValueError: the message names the option, the type and what is accepted.
    """
    rl = getattr(rl, "value", rl)
    kind = next((name for name, renamed in HELD_OUT.items() if renamed == kind), kind)
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
    if data.get("remove_unused_columns"):
        raise ValueError(
            "rl: clo needs `remove_unused_columns: false` (the plugin sets it; delete the line): with true the "
            "collator would not see the four sequences of a row"
        )
    adapter = data.get("adapter")
    _check_scope(data, section)
    _check_draw(data, section)
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
        kind = _get(dataset, "type")
        if "clo" not in STRATEGIES.get(kind, ()):
            raise ValueError(f"rl: clo reads `{option}` with `type: axolotl_clo.cross_lingual`, got {kind!r}")


def _check_scope(data: dict[str, Any], section: dict[str, Any]) -> None:
    adapter = data.get("adapter")
    if adapter and section.get("train_modules") == "all":
        raise ValueError(
            f"clo.train_modules: all trains every parameter, but `adapter: {adapter}` trains adapter weights; "
            "remove the adapter, or use attention or attention+mlp"
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


def _get(entry: Any, key: str) -> Any:
    """A value of a dataset entry, which Axolotl holds as a dict before and as a model after validation."""
    return entry.get(key) if isinstance(entry, dict) else getattr(entry, key, None)


def _local_files(dataset: Any) -> list[Path]:
    data_files = _get(dataset, "data_files") or []
    names = [_get(dataset, "path"), *([data_files] if isinstance(data_files, str) else data_files)]
    files: list[Path] = []
    for name in names:
        path = Path(str(name)) if name else None
        if path is not None and path.is_file():
            files.append(path)
        elif path is not None and path.is_dir():
            files.extend(sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")))
    return files
