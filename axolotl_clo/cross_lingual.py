"""The prompt strategy `type: axolotl_clo.cross_lingual`: one parallel row to four token sequences.

A row holds the same prompt and response in two languages (and perhaps more):

    {"id": "…", "prompt":   {"en": "What is …?", "ko": "… 무엇입니까?"},
                "response": {"en": "It is …",    "ko": "…입니다."}}

or one conversation per language under `messages`, or four flat columns named in `clo.fields`. Each row becomes
(source prompt, source response), (source prompt, target response), (target prompt, target response) and
(target prompt, source response), which stay together from here to the loss.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from axolotl.prompt_tokenizers import DatasetWrappingStrategy
from axolotl.utils.chat_templates import get_chat_template, get_chat_template_from_config
from axolotl.utils.logging import get_logger

from axolotl_clo.collator import SEQUENCES
from axolotl_clo.evaluate.language import LanguageIdentifier, supported
from axolotl_clo.schema import CLOConfig, FieldMapping

LOG = get_logger(__name__)

# For base models without a template: plain text, so it needs no tokens the frozen embeddings never learnt.
DEFAULT_CHAT_TEMPLATE = "alpaca"

# Below this many characters a language cannot be told reliably.
MIN_CHARACTERS_TO_IDENTIFY = 20

Messages = list[dict[str, str]]


class _Drop(Exception):
    """A row that cannot be used: why, and which column is at fault."""

    def __init__(self, reason: str, column: str) -> None:
        super().__init__(reason)
        self.reason, self.column = reason, column


@dataclass
class Side:
    """One language of a row: the conversation up to the response, and the response."""

    prompt: Messages
    response: str
    prompt_column: str
    response_column: str


def load(tokenizer: Any, cfg: Any, ds_cfg: Any = None) -> CrossLingualStrategy:
    """Called by Axolotl for `type: axolotl_clo.cross_lingual`.

    Raises:
        ValueError: the config has no languages, or the tokenizer no end-of-sequence token.
    """
    clo = CLOConfig.from_cfg(cfg)
    if clo is None or clo.target_lang is None:
        raise ValueError(
            "type: axolotl_clo.cross_lingual needs a `clo:` section with `target_lang`, e.g.\nclo:\n  target_lang: ko"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no end-of-sequence token, so no response could end; "
            "name one under `special_tokens: {eos_token: …}`"
        )
    return CrossLingualStrategy(
        tokenizer=tokenizer,
        clo=clo,
        chat_template=resolve_chat_template(tokenizer, cfg, ds_cfg),
        sequence_len=cfg.sequence_len,
        excess_length_strategy=(cfg.excess_length_strategy or "drop").lower(),
        template_kwargs=dict(cfg.chat_template_kwargs or {}),
    )


def resolve_chat_template(tokenizer: Any, cfg: Any, ds_cfg: Any) -> str:
    """The Jinja template rows are rendered with: Axolotl's option, else the tokenizer's own, else the default."""
    if cfg.chat_template or (ds_cfg or {}).get("chat_template"):
        return get_chat_template_from_config(cfg=cfg, ds_cfg=ds_cfg, tokenizer=tokenizer)
    if tokenizer.chat_template:
        return tokenizer.chat_template
    LOG.info("clo: the tokenizer has no chat template; using `chat_template: %s`", DEFAULT_CHAT_TEMPLATE)
    return get_chat_template(DEFAULT_CHAT_TEMPLATE)


class CrossLingualStrategy(DatasetWrappingStrategy):
    """Turns parallel rows into token sequences, and says what it left out and why."""

    def __init__(
        self,
        tokenizer: Any,
        clo: CLOConfig,
        chat_template: str,
        sequence_len: int,
        excess_length_strategy: str = "drop",
        template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            tokenizer: of the model to train.
            clo: languages, field mapping and language check.
            chat_template: Jinja source that renders a conversation.
            sequence_len: tokens one sequence (prompt and response) may have.
            excess_length_strategy: `drop`, `truncate` or `raise`, as Axolotl names them; acts on whole rows.
            template_kwargs: further variables for the template.
        """
        assert clo.target_lang is not None
        self.tokenizer = tokenizer
        self.languages = (clo.source_lang, clo.target_lang)
        self.fields: FieldMapping = clo.fields
        self.check_language = clo.check_language
        self.chat_template = chat_template
        self.sequence_len = sequence_len
        self.excess_length_strategy = excess_length_strategy
        self.template_kwargs = template_kwargs or {}
        # Chat models may name their end-of-turn token without flagging it special.
        self.turn_ends = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
        if self.check_language != "off" and not all(map(supported, self.languages)):
            LOG.warning(
                "clo: cannot identify %s; rows are not checked for their language",
                " and ".join(self.languages),
            )
            self.check_language = "off"

    def wrap_dataset(
        self, dataset: Any, process_count: int | None = None, keep_in_memory: bool | None = False, **_: Any
    ) -> Any:
        """Tokenize every row of a `datasets.Dataset`; drop and report those that cannot be used.

        Returns:
            A dataset with the columns `source_chosen`, `source_rejected`, `target_chosen`, `target_rejected`
            (token ids of prompt and response), `prompt_lengths` (tokens of prompt in each of the four), `row`
            (number in this dataset, from 1) and `length` (tokens of all four). For Axolotl's own counting, checks
            and `--debug` print there are `input_ids`, `attention_mask` and `labels` of the target sequence alone.

        Raises:
            ValueError: a column or language is missing, a value is not text, the template fails, a sequence is
                too long under `raise`, or no row is left.
        """
        if not hasattr(dataset, "__len__"):
            raise ValueError("rl: clo does not stream; set `streaming: false`")
        if len(dataset) == 0:
            raise ValueError("the dataset has no rows")
        self._check_columns(dataset)
        mapped = dataset.map(
            self._tokenize_rows,
            with_indices=True,
            batched=True,
            batch_size=256,
            remove_columns=dataset.column_names,
            num_proc=process_count,
            keep_in_memory=bool(keep_in_memory),
            desc="Tokenizing parallel rows",
        )
        kept = mapped.filter(
            lambda reasons: [not reason for reason in reasons],
            input_columns="dropped",
            batched=True,
            num_proc=process_count,
            keep_in_memory=bool(keep_in_memory),
            desc="Dropping unusable rows",
        )
        report = self._report(mapped)
        if len(kept) == 0:
            raise ValueError(f"no row is left to train on: {report}")
        LOG.info("clo: %s", report)
        return kept.remove_columns(["dropped", "column", "suspect"])

    def _check_columns(self, dataset: Any) -> None:
        columns = dataset.column_names
        if flat := self.fields.flat:
            for option, column in flat.items():
                if column.split(".")[0] not in columns:
                    raise ValueError(
                        f"clo.fields.{option}: no column {column!r} in the dataset, which has {', '.join(columns)}"
                    )
            return
        if self.fields.messages in columns:
            nested = [self.fields.messages]
        else:
            nested = [self.fields.prompt, self.fields.response]
        for column in nested:
            if column not in columns:
                raise ValueError(
                    f"no column {column!r} in the dataset; its columns are {', '.join(columns)}. Accepted are `prompt` "
                    "and `response` (or `messages`) holding one entry per language, or flat columns named in "
                    "`clo.fields`"
                )
            feature = dataset.features[column]
            known = list(feature) if isinstance(feature, dict) else list(getattr(feature, "languages", []) or [])
            for option, language in zip(("source_lang", "target_lang"), self.languages, strict=True):
                if known and language not in known:
                    near = difflib.get_close_matches(language, known, n=1, cutoff=0.5)
                    raise ValueError(
                        f"clo.{option}: {language!r} is not in column {column!r}; languages there: {', '.join(known)}"
                        + (f" (did you mean {near[0]!r}?)" if near else "")
                    )

    def _tokenize_rows(self, rows: dict[str, list], indices: list[int]) -> dict[str, list]:
        names = list(rows)
        result: dict[str, list] = defaultdict(list)
        for i, index in enumerate(indices):
            record = self._tokenize_row({name: rows[name][i] for name in names}, index + 1)
            for name, value in record.items():
                result[name].append(value)
        return dict(result)

    def _tokenize_row(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        record: dict[str, Any] = {name: [] for name in SEQUENCES}
        record |= {"input_ids": [], "attention_mask": [], "labels": [], "prompt_lengths": [], "length": 0}
        record |= {"row": number, "dropped": "", "column": "", "suspect": ""}
        try:
            source, target = (self._side(row, number, role) for role in ("source", "target"))
            if source.response.strip() == target.response.strip():
                raise _Drop("same response in both languages", target.response_column)
            record["suspect"] = self._other_language(source, target)
            if record["suspect"] and self.check_language == "drop":
                raise _Drop("response in the other language", record["suspect"])
            sequences = self._sequences(source, target, number)
        except _Drop as drop:
            record["dropped"], record["column"] = drop.reason, drop.column
            return record
        for name, (tokens, prompt_length) in zip(SEQUENCES, sequences, strict=True):
            record[name] = tokens
            record["prompt_lengths"].append(prompt_length)
            record["length"] += len(tokens)
        tokens, prompt_length = sequences[SEQUENCES.index("target_chosen")]
        record["input_ids"], record["attention_mask"] = tokens, [1] * len(tokens)
        record["labels"] = [-100] * prompt_length + tokens[prompt_length:]
        return record

    def _side(self, row: dict[str, Any], number: int, role: str) -> Side:
        """One language of a row. Raises `_Drop` for missing or empty text, ValueError for anything but text."""
        language = self.languages[0 if role == "source" else 1]
        if flat := self.fields.flat:
            prompt_column, response_column = flat[f"{role}_prompt"], flat[f"{role}_response"]
            prompt, response = _reach(row, prompt_column), _reach(row, response_column)
        elif row.get(self.fields.messages) is not None:
            column = f"{self.fields.messages}.{language}"
            return self._conversation(_reach(row, column), number, column)
        else:
            prompt_column, response_column = (f"{c}.{language}" for c in (self.fields.prompt, self.fields.response))
            prompt, response = _reach(row, prompt_column), _reach(row, response_column)
        prompt = _text(prompt, number, prompt_column)
        return Side(
            prompt=[{"role": "user", "content": prompt}],
            response=_text(response, number, response_column),
            prompt_column=prompt_column,
            response_column=response_column,
        )

    def _conversation(self, turns: Any, number: int, column: str) -> Side:
        if not turns:
            raise _Drop("missing", column)
        if not isinstance(turns, list) or not all(isinstance(t, dict) and {"role", "content"} <= set(t) for t in turns):
            raise ValueError(f"row {number}, column {column}: accepted is a list of turns with `role` and `content`")
        messages = [{"role": str(t["role"]), "content": _text(t["content"], number, column)} for t in turns]
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise ValueError(
                f"row {number}, column {column}: the last of at least two turns must be the assistant's, got "
                f"{[m['role'] for m in messages]}"
            )
        return Side(messages[:-1], messages[-1]["content"], prompt_column=column, response_column=column)

    def _other_language(self, source: Side, target: Side) -> str:
        """The column whose response is identified as the other side's language, or ''."""
        if self.check_language == "off":
            return ""
        identifier = LanguageIdentifier(self.languages)
        for side, other in ((source, self.languages[1]), (target, self.languages[0])):
            if len(side.response) >= MIN_CHARACTERS_TO_IDENTIFY and identifier.identify(side.response) == other:
                return side.response_column
        return ""

    def _sequences(self, source: Side, target: Side, number: int) -> list[tuple[list[int], int]]:
        """Token ids and prompt length of the four sequences, within `sequence_len`."""
        pairs = [(source, source), (source, target), (target, target), (target, source)]
        encoded = [self._encode(asked.prompt, answered.response, number) for asked, answered in pairs]
        longest = max(len(tokens) for tokens, _ in encoded)
        if longest <= self.sequence_len:
            return encoded
        column = max(zip(encoded, pairs, strict=True), key=lambda item: len(item[0][0]))[1][1].response_column
        if self.excess_length_strategy == "raise":
            raise ValueError(
                f"row {number}, column {column}: a sequence of {longest} tokens is longer than sequence_len "
                f"{self.sequence_len}; raise sequence_len, or set excess_length_strategy: drop or truncate"
            )
        if self.excess_length_strategy == "drop":
            raise _Drop("longer than sequence_len", column)
        return self._truncate(encoded, column)

    def _truncate(self, encoded: list[tuple[list[int], int]], column: str) -> list[tuple[list[int], int]]:
        """Cut each response to the same number of tokens in both its roles."""
        room = [self.sequence_len - prompt_length for _, prompt_length in encoded]
        source_room, target_room = min(room[0], room[3]), min(room[1], room[2])
        if min(source_room, target_room) < 1:
            raise _Drop("prompt fills sequence_len", column)
        rooms = [source_room, target_room, target_room, source_room]
        return [(tokens[: n + r], n) for (tokens, n), r in zip(encoded, rooms, strict=True)]

    def _encode(self, prompt: Messages, response: str, number: int) -> tuple[list[int], int]:
        """Tokens of the rendered conversation, and how many of them are prompt.

        The rendering ends with the end-of-turn token: white space the template puts behind it belongs to the
        next turn, and a template that has no such token gets the tokenizer's end-of-sequence token.
        """
        asked = self._render(prompt, number, add_generation_prompt=True)
        whole = self._render([*prompt, {"role": "assistant", "content": response}], number).rstrip()
        if not whole.startswith(asked):
            raise ValueError(
                f"row {number}: the chat template renders the conversation so that it does not begin with the rendered "
                "prompt; choose another with `chat_template` or `chat_template_jinja`"
            )
        tokens = self.tokenizer(whole, add_special_tokens=False)["input_ids"]
        if tokens[-1] not in self.turn_ends:
            tokens = [*tokens, self.tokenizer.eos_token_id]
        prompt_tokens = self.tokenizer(asked, add_special_tokens=False)["input_ids"]
        # Where a token spans the border, it belongs to the response.
        border = next(
            (i for i, (a, b) in enumerate(zip(prompt_tokens, tokens, strict=False)) if a != b),
            min(len(prompt_tokens), len(tokens) - 1),
        )
        if border == 0:
            raise ValueError(f"row {number}: the chat template renders an empty prompt; choose another `chat_template`")
        return tokens, border

    def _render(self, messages: Messages, number: int, add_generation_prompt: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self.template_kwargs,
            )
        except Exception as error:  # Jinja raises whatever the template's author wrote
            raise ValueError(
                f"row {number}: the chat template failed ({type(error).__name__}: {error}); turns were "
                f"{[m['role'] for m in messages]}. Choose another with `chat_template` or `chat_template_jinja`"
            ) from error

    def _report(self, mapped: Any) -> str:
        """How many rows were kept, and which were left out by reason."""
        dropped: dict[str, list[int]] = defaultdict(list)
        suspects = []
        for number, reason, column, suspect in zip(
            mapped["row"], mapped["dropped"], mapped["column"], mapped["suspect"], strict=True
        ):
            if reason:
                dropped[f"{reason} ({column})"].append(number)
            elif suspect:
                suspects.append(number)
        kept = len(mapped) - sum(map(len, dropped.values()))
        parts = [f"kept {kept} of {len(mapped)} rows"]
        parts += [f"dropped {len(rows)}: {reason}, {_some(rows)}" for reason, rows in sorted(dropped.items())]
        if suspects:
            LOG.warning(
                "clo: %d responses look like the other language (%s); `clo.check_language: drop` leaves those rows out",
                len(suspects),
                _some(suspects),
            )
        return "; ".join(parts)


def _some(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:5]))
    return f"row{'s' if len(rows) > 1 else ''} {shown}" + (", …" if len(rows) > 5 else "")


def _reach(row: dict[str, Any], column: str) -> Any:
    """The value at a dotted column name, or None."""
    value: Any = row
    for key in column.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(value: Any, number: int, column: str) -> str:
    if value is None:
        raise _Drop("missing", column)
    if not isinstance(value, str):
        raise ValueError(f"row {number}, column {column}: accepted is text, got {type(value).__name__} {value!r:.40}")
    if not value.strip():
        raise _Drop("empty", column)
    return value
