"""The prompt strategy `type: axolotl_clo.cross_lingual`: one parallel row to four token sequences.

Each row (see `axolotl_clo.rows`) becomes (source prompt, source response), (source prompt, target response),
(target prompt, target response) and (target prompt, source response), which stay together from here to the loss.
With several target languages it becomes one such example for each of them that it holds.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from axolotl.prompt_tokenizers import DatasetWrappingStrategy
from axolotl.utils.chat_templates import get_chat_template, get_chat_template_from_config
from axolotl.utils.logging import get_logger

from axolotl_clo.collator import SEQUENCES
from axolotl_clo.datasets import load_rows, training_entries
from axolotl_clo.draw import draw_examples
from axolotl_clo.evaluate.language import LanguageIdentifier, supported
from axolotl_clo.rows import Messages, RowReader, Side, Unusable
from axolotl_clo.schema import CLOConfig

LOG = get_logger(__name__)

# For base models without a template: plain text, so it needs no tokens the frozen embeddings never learnt.
DEFAULT_CHAT_TEMPLATE = "alpaca"

# Below this many characters a language cannot be told reliably.
MIN_CHARACTERS_TO_IDENTIFY = 20

# Axolotl's own default for `seed`.
DEFAULT_SEED = 42

SOURCE_LANGUAGE = -1


@dataclass(frozen=True)
class RowReport:
    """What became of the rows of a dataset.

    rows: in the dataset.
    examples: the most there could be, one for each row and target language that the dataset has.
    kept: examples that can be used, before any are drawn.
    dropped: numbers of the rows left out, from 1, by reason and column.
    suspects: numbers of rows kept whose response looks like the other side's language.
    held_out: whether the dataset is one of `test_datasets`.
    """

    rows: int
    examples: int
    kept: int
    dropped: dict[str, list[int]]
    suspects: list[int]
    held_out: bool


_REPORTS: ContextVar[list[RowReport] | None] = ContextVar("reports", default=None)


@contextmanager
def row_reports() -> Iterator[list[RowReport]]:
    """Collects the report of each dataset that is tokenized meanwhile, in their order."""
    reports: list[RowReport] = []
    token = _REPORTS.set(reports)
    try:
        yield reports
    finally:
        _REPORTS.reset(token)


def load(tokenizer: Any, cfg: Any, ds_cfg: Any = None) -> CrossLingualStrategy:
    """Called by Axolotl for `type: axolotl_clo.cross_lingual`.

    Raises:
        ValueError: the config has no languages, or the tokenizer no end-of-sequence token.
    """
    return CrossLingualStrategy(**strategy_options(tokenizer, cfg, ds_cfg))


def strategy_options(tokenizer: Any, cfg: Any, ds_cfg: Any, held_out: bool | None = None) -> dict[str, Any]:
    """Arguments of `CrossLingualStrategy` as a config has them.

    Args:
        tokenizer: of the model to train.
        cfg: Axolotl's config.
        ds_cfg: the dataset's entry in it.
        held_out: whether that entry is one of `test_datasets`; None: look it up.

    Raises:
        ValueError: the config has no languages, or the tokenizer no end-of-sequence token.
    """
    clo = CLOConfig.from_cfg(cfg)
    if clo is None or not clo.target_langs:
        raise ValueError(
            "a dataset of parallel rows needs a `clo:` section with `target_lang`, e.g.\nclo:\n  target_lang: ko"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no end-of-sequence token, so no response could end; "
            "name one under `special_tokens: {eos_token: …}`"
        )
    if held_out is None:
        held_out = ds_cfg in (cfg.test_datasets or []) and ds_cfg not in (cfg.datasets or [])
    others = [] if held_out else [entry for entry in training_entries(cfg) if entry != ds_cfg]
    return {
        "tokenizer": tokenizer,
        "clo": clo,
        "chat_template": resolve_chat_template(tokenizer, cfg, ds_cfg),
        "sequence_len": cfg.sequence_len,
        "excess_length_strategy": (cfg.excess_length_strategy or "drop").lower(),
        "template_kwargs": dict(cfg.chat_template_kwargs or {}),
        "seed": cfg.seed if cfg.seed is not None else DEFAULT_SEED,
        "held_out": held_out,
        "others": partial(_loaded, cfg, others) if others else None,
    }


def _loaded(cfg: Any, entries: list[Any]) -> Iterator[Any]:
    return (load_rows(cfg, entry) for entry in entries)


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
        seed: int = DEFAULT_SEED,
        held_out: bool = False,
        others: Callable[[], Iterable[Any]] | None = None,
    ) -> None:
        """
        Args:
            tokenizer: of the model to train.
            clo: languages, field mapping, language check and what to draw.
            chat_template: Jinja source that renders a conversation.
            sequence_len: tokens one sequence (prompt and response) may have.
            excess_length_strategy: `drop`, `truncate` or `raise`, as Axolotl names them; acts on whole rows.
            template_kwargs: further variables for the template.
            seed: of what is drawn.
            held_out: take all examples in both directions, whatever is drawn for training; of several target
                languages one is enough.
            others: loads the other datasets that the run trains on, where there are any: a dataset may then leave
                target languages to them.
        """
        self.tokenizer = tokenizer
        self.clo = clo
        self.targets = clo.target_langs
        self.reader = RowReader(clo.fields, clo.source_lang, self.targets)
        self.check_language = clo.check_language
        self.chat_template = chat_template
        self.sequence_len = sequence_len
        self.excess_length_strategy = excess_length_strategy
        self.template_kwargs = template_kwargs or {}
        self.seed, self.held_out, self.others = seed, held_out, others
        # Chat models may name their end-of-turn token without flagging it special.
        self.turn_ends = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
        unknown = [language for language in (clo.source_lang, *self.targets) if not supported(language)]
        if self.check_language != "off" and unknown:
            LOG.warning("clo: cannot identify %s; rows are not checked for their language", " and ".join(unknown))
            self.check_language = "off"

    def wrap_dataset(
        self, dataset: Any, process_count: int | None = None, keep_in_memory: bool | None = False, **_: Any
    ) -> Any:
        """Tokenize every row of a `datasets.Dataset`; drop and report those that cannot be used.

        Returns:
            A dataset with the columns `source_chosen`, `source_rejected`, `target_chosen`, `target_rejected`
            (token ids of prompt and response; both of a direction are empty where `target_source_ratio` leaves its
            pair out), `prompt_lengths` (tokens of prompt in each of the four), `row` (number in this dataset, from
            1), `clo_id` (its `id`, or ""), `language` and `rejected_language` (number of the target
            language and of the rejected response's, from 0; −1 is the source) and `length` (tokens of all four). For
            Axolotl's own counting, checks and `--debug` print there are `input_ids`, `attention_mask` and `labels` of
            the target sequence alone.

        Raises:
            ValueError: a column or language is missing, a value is not text, the template fails, a sequence is
                too long under `raise`, no row is left, or `max_examples` is above what is left; a target language is
                in no dataset of the run, or is not in this one, which `sampling_temperature` is to even out.
        """
        if not hasattr(dataset, "__len__"):
            raise ValueError("rl: clo does not stream; set `streaming: false`")
        if len(dataset) == 0:
            raise ValueError("the dataset has no rows")
        languages = self._languages(dataset)
        mapped = dataset.map(
            self._tokenize_rows,
            fn_kwargs={"languages": languages},
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
        self._report(mapped, len(dataset), len(kept), languages)
        kept = kept.remove_columns(["dropped", "column", "suspect"])
        return kept if self.held_out else self._draw(kept, len(dataset))

    def _languages(self, dataset: Any) -> list[int]:
        """Numbers of the target languages to read in a dataset: all, or, where others may have the rest, its own.

        Raises:
            ValueError: a target language is nowhere, or `sampling_temperature` cannot even it out.
        """
        alone = self.others is None and not self.held_out
        self.reader.check_columns(dataset, every_target=alone)
        if alone or len(self.targets) == 1:
            return list(range(len(self.targets)))
        held = self.reader.held(dataset, self.targets) or self.targets
        absent = [name for name in self.targets if name not in held]
        if nowhere := self._nowhere(absent):
            known = {name for rows in (dataset, *self._other_datasets()) for name in self.reader.known(rows)}
            raise ValueError(
                f"clo.target_lang: no dataset holds {' or '.join(nowhere)}; {self.reader.described(known, nowhere)}"
            )
        if absent and self.others is not None and self.clo.sampling_temperature > 1:
            raise ValueError(
                f"clo.sampling_temperature: {self.clo.sampling_temperature:g} evens out the languages of one dataset, "
                f"but {' and '.join(absent)} are not in that with {' and '.join(held)}; join the rows in one file, or "
                "leave sampling_temperature at 1"
            )
        return [i for i, name in enumerate(self.targets) if name in held]

    def _nowhere(self, languages: list[str]) -> list[str]:
        """Those of `languages` that no other dataset of the run holds; of a held-out dataset nothing is asked."""
        if self.held_out:
            return []
        for rows in self._other_datasets() if languages else ():
            found = self.reader.held(rows, languages)
            languages = [name for name in languages if name not in found]
            if not languages:
                break
        return languages

    def _other_datasets(self) -> Iterable[Any]:
        return self.others() if self.others is not None else ()

    def _draw(self, kept: Any, num_rows: int) -> Any:
        """The examples to train on, pairs left out by `target_source_ratio` emptied."""
        rows, languages = np.array(kept["row"]), np.array(kept["language"])
        drawn, directions = draw_examples(self.clo, rows, languages, num_rows, self.seed)
        if len(drawn) == len(kept) and directions.all() and (drawn == np.arange(len(kept))).all():
            return kept
        counts = Counter(self.targets[language] for language in languages[drawn])
        LOG.info(
            "clo: drew %d of %d examples with seed %d (%s); %d source pairs, %d target pairs",
            len(drawn),
            len(kept),
            self.seed,
            ", ".join(f"{name} {count}" for name, count in counts.items()),
            *directions.sum(0),
        )
        drawn_rows = kept.select(drawn)
        if directions.all():
            return drawn_rows
        return drawn_rows.map(lambda row, i: _without(row, directions[i]), with_indices=True, desc="Leaving out pairs")

    def _tokenize_rows(self, rows: dict[str, list], indices: list[int], languages: list[int]) -> dict[str, list]:
        names = list(rows)
        result: dict[str, list] = defaultdict(list)
        for i, index in enumerate(indices):
            row = {name: rows[name][i] for name in names}
            for language in languages:
                for name, value in self._tokenize_row(row, index + 1, language).items():
                    result[name].append(value)
        return dict(result)

    def _tokenize_row(self, row: dict[str, Any], number: int, language: int) -> dict[str, Any]:
        record: dict[str, Any] = {name: [] for name in SEQUENCES}
        record |= {"input_ids": [], "attention_mask": [], "labels": [], "prompt_lengths": [], "length": 0}
        # Not `id`: map would read the text as numbers where the user's own column of a name holds numbers.
        record |= {"clo_id": _row_id(row)}
        record |= {"row": number, "language": language, "rejected_language": SOURCE_LANGUAGE}
        record |= {"dropped": "", "column": "", "suspect": ""}
        try:
            source, target = self.side(row, number, SOURCE_LANGUAGE), self.side(row, number, language)
            record["rejected_language"] = self._rejected_language(row, number, language, target)
            rejected = self.side(row, number, record["rejected_language"])
            if target.response.strip() == source.response.strip():
                raise Unusable("same response in both languages", target.response_column)
            record["suspect"] = self._other_language(source, target, self.targets[language])
            if record["suspect"] and self.check_language == "drop":
                raise Unusable("response in the other language", record["suspect"])
            sequences = self._sequences(
                [(source, source), (source, target), (target, target), (target, rejected)], number
            )
        except Unusable as drop:
            record["dropped"], record["column"] = drop.reason, drop.column
            return record
        for name, (tokens, prompt_length) in zip(SEQUENCES, sequences, strict=True):
            record[name] = tokens
            record["prompt_lengths"].append(prompt_length)
            record["length"] += len(tokens)
        return record | _label_columns(record)

    def side(self, row: dict[str, Any], number: int, language: int) -> Side:
        """One language of a row: a target by its number from 0, or the source (−1); see `RowReader.side`."""
        return self.reader.side(row, number, (*self.targets, self.clo.source_lang)[language])

    def _rejected_language(self, row: dict[str, Any], number: int, language: int, target: Side) -> int:
        """Whose response a target prompt rejects; with `rejected: any` one of the row's that differ from its own."""
        candidates = [SOURCE_LANGUAGE]
        for other in range(len(self.targets) if self.clo.rejected == "any" else 0):
            try:
                if other != language and self.side(row, number, other).response.strip() != target.response.strip():
                    candidates.append(other)
            except Unusable:
                continue
        return random.Random(f"{self.seed} {number} {language}").choice(candidates)  # nosec B311 # no secret: reproducible draws

    def _other_language(self, source: Side, target: Side, target_lang: str) -> str:
        """The column whose response is identified as the other side's language, or ''."""
        if self.check_language == "off":
            return ""
        source_lang = self.clo.source_lang
        identifier = LanguageIdentifier((source_lang, target_lang))
        for side, other in ((source, target_lang), (target, source_lang)):
            if len(side.response) >= MIN_CHARACTERS_TO_IDENTIFY and identifier.identify(side.response) == other:
                return side.response_column
        return ""

    def _sequences(self, pairs: list[tuple[Side, Side]], number: int) -> list[tuple[list[int], int]]:
        """Token ids and prompt length of the four (asked, answered), within `sequence_len`."""
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
            raise Unusable("longer than sequence_len", column)
        return self._truncate(encoded, column)

    def _truncate(self, encoded: list[tuple[list[int], int]], column: str) -> list[tuple[list[int], int]]:
        """Cut each response to the same number of tokens in all its roles."""
        room = [self.sequence_len - prompt_length for _, prompt_length in encoded]
        source_room, target_room = min(room[0], room[3]), min(room[1], room[2])
        if min(source_room, target_room) < 1:
            raise Unusable("prompt fills sequence_len", column)
        rooms = [source_room, target_room, target_room, source_room]
        return [(tokens[: n + r], n) for (tokens, n), r in zip(encoded, rooms, strict=True)]

    def _encode(self, prompt: Messages, response: str, number: int) -> tuple[list[int], int]:
        """Tokens of the rendered conversation, and how many of them are prompt."""
        asked, whole = self.render(prompt, response, number)
        tokens = self._tokens(whole)
        if tokens[-1] not in self.turn_ends:
            tokens = [*tokens, self.tokenizer.eos_token_id]
        prompt_tokens = self._tokens(asked)
        # Where a token spans the border, it belongs to the response.
        border = next(
            (i for i, (a, b) in enumerate(zip(prompt_tokens, tokens, strict=False)) if a != b),
            min(len(prompt_tokens), len(tokens) - 1),
        )
        if border == 0:
            raise ValueError(f"row {number}: the chat template renders an empty prompt; choose another `chat_template`")
        return tokens, border

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def render(self, prompt: Messages, response: str, number: int) -> tuple[str, str]:
        """The conversation up to the response, and with it.

        The second ends with the end-of-turn token: white space the template puts behind it belongs to the next
        turn. For a template that has no such token, `_encode` and the preference pairs add the tokenizer's
        end-of-sequence token.

        Raises:
            ValueError: the template fails, or what it renders does not begin with the rendered prompt.
        """
        asked = self._render(prompt, number, add_generation_prompt=True)
        whole = self._render([*prompt, {"role": "assistant", "content": response}], number).rstrip()
        if not whole.startswith(asked):
            raise ValueError(
                f"row {number}: the chat template renders the conversation so that it does not begin with the rendered "
                "prompt; choose another with `chat_template` or `chat_template_jinja`"
            )
        return asked, whole

    @property
    def adds_begin_token(self) -> bool:
        """Whether the tokenizer by itself puts its begin token before a text."""
        begin = self.tokenizer.bos_token_id
        return begin is not None and self.tokenizer("a")["input_ids"][0] == begin

    def ends_turn(self, text: str) -> bool:
        """Whether a rendered conversation ends with a token that ends a turn."""
        return self._tokens(text)[-1] in self.turn_ends

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

    def _report(self, mapped: Any, num_rows: int, num_kept: int, languages: list[int]) -> None:
        """Say how many examples of some target languages were kept, and which were left out by reason.

        Raises:
            ValueError: none was kept, or of a target language to train on none here or in another dataset.
        """
        dropped: dict[str, list[int]] = defaultdict(list)
        suspects = []
        kept_languages = set()
        for number, language, reason, column, suspect in zip(
            *(mapped[name] for name in ("row", "language", "dropped", "column", "suspect")), strict=True
        ):
            if reason:
                dropped[f"{reason} ({column})"].append(number)
                continue
            kept_languages.add(language)
            if suspect:
                suspects.append(number)
        collected = _REPORTS.get()
        if collected is not None:
            collected.append(RowReport(num_rows, len(mapped), num_kept, dict(dropped), suspects, self.held_out))
        if len(languages) == 1:
            parts = [f"kept {num_kept} of {num_rows} rows"]
        else:
            parts = [f"kept {num_kept} of {len(mapped)} examples ({num_rows} rows, {len(languages)} target languages)"]
        parts += [f"dropped {len(rows)}: {reason}, {_some(rows)}" for reason, rows in sorted(dropped.items())]
        report = "; ".join(parts)
        if num_kept == 0:
            raise ValueError(f"no row is left to train on: {report}")
        absent = self._nowhere([self.targets[i] for i in languages if i not in kept_languages])
        if absent:
            raise ValueError(f"clo.target_lang: no usable row holds {' or '.join(absent)}; {report}")
        LOG.info("clo: %s", report)
        if suspects:
            LOG.warning(
                "clo: %d responses look like the other language (%s); `clo.check_language: drop` leaves those rows out",
                len(suspects),
                _some(suspects),
            )


def _label_columns(record: dict[str, Any]) -> dict[str, Any]:
    """`input_ids`, `attention_mask` and `labels` of the target sequence, or of the source's where that is left out."""
    kept = SEQUENCES.index("target_chosen" if record["target_chosen"] else "source_chosen")
    tokens, prompt_length = record[SEQUENCES[kept]], record["prompt_lengths"][kept]
    labels = [-100] * prompt_length + tokens[prompt_length:]
    return {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels}


def _without(row: dict[str, Any], directions: np.ndarray) -> dict[str, Any]:
    """A tokenized row with the sequences of a direction emptied where it is not kept."""
    for i, name in enumerate(SEQUENCES):
        if not directions[i // 2]:
            row["length"] -= len(row[name])
            row[name], row["prompt_lengths"][i] = [], 0
    return row | _label_columns(row)


def _row_id(row: dict[str, Any]) -> str:
    """What the user's dataset calls a row, for messages about it; "" where it has no `id` that is text or a number."""
    name = row.get("id")
    return str(name) if isinstance(name, str | int | float) and not isinstance(name, bool) else ""


def _some(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:5]))
    return f"row{'s' if len(rows) > 1 else ''} {shown}" + (", …" if len(rows) > 5 else "")
