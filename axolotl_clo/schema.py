"""The `clo:` section of an Axolotl config: every option, its default, its unit, and where it comes from.

`axolotl_clo.checks` puts it into Axolotl's own config model, so the section is validated with the rest of the YAML,
before anything is loaded.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# Raised whenever the columns of a prepared row change, so that old prepared datasets are not read.
ROW_FORMAT = 3

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
    share_prompts: bool = Field(
        True,
        description="Compute each prompt once for both of its responses (arXiv 2410.20305), where its attention "
        "can and a probe on the first batch finds it exact. Changes nothing but time and memory.",
    )
    nonfinite_loss: Literal["stop", "skip"] = Field(
        "stop",
        description="After a loss that is NaN or infinite: `stop` and name the rows, or `skip` the optimizer step. The "
        "log counts what was skipped.",
    )
    tokens_per_batch: int | None = Field(
        None,
        ge=1,
        description="Form micro-batches by tokens, at most this many in each, instead of by `micro_batch_size` "
        "examples. What counts of a row are its four sequences, whether prompts are shared or not, so that batches are "
        "the same on every machine; padding, where a model needs it, comes on top. Default: by examples.",
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
    eval_answers: int = Field(
        8,
        ge=0,
        description="Held-out rows whose prompts the model answers in both languages at every evaluation (greedy, at "
        "most 64 tokens, all in one batch on every rank). The share in the right language is logged as "
        "`clo/fidelity_source` and `clo/fidelity_target`. 0: off.",
    )
    show_answers: bool = Field(
        False,
        description="Whether the prompts and answers of `eval_answers` are shown too: a table in the console, W&B and "
        "TensorBoard. Off unless asked for, as held-out rows may be confidential and logs often leave the machine.",
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
