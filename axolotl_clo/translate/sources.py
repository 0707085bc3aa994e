"""Where the English rows come from: files, folders and hub datasets, in the forms instruction data has.

Each row becomes one conversation. Forms: Alpaca's `instruction`, `input`, `output`; a prompt and a response column;
chat messages as OpenAI (`role`, `content`) and ShareGPT (`from`, `value`) have them; and the message trees of
OpenAssistant, of which the English first turns are taken with their replies, best-ranked first, as the CLO paper does
(arXiv 2505.14297, section 4).
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from axolotl_clo.translate.readers import SUFFIXES, digest, read_rows, suffix_of

PRESETS = ("auto", "alpaca", "prompt-response", "messages", "oasst1", "oasst2")
PROMPT_COLUMNS = ("prompt", "question", "query", "instruction", "input")
RESPONSE_COLUMNS = ("response", "completion", "answer", "output", "chosen")
MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}

Turn = dict[str, str]  # role, content


@dataclass(frozen=True)
class SourceRow:
    """One row of the source: its conversation, or why it has none.

    Attributes:
        number: its position among the source's rows, from 0.
        id: the source's own id, else the number.
        turns: role and content of each turn; the last is the assistant's.
        problem: short reason why the row cannot be used, None where it can.
        detail: the column at fault and what was found there.
    """

    number: int
    id: str
    turns: list[Turn] = field(default_factory=list)
    problem: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class SourceOptions:
    """Which rows to take, and how to read them.

    Attributes:
        preset: one of `PRESETS`; `auto` goes by the columns.
        prompt_column: column of the prompt, where it is not a usual one.
        response_column: column of the response.
        split: split of a folder or hub dataset.
        subset: configuration of a hub dataset.
        revision: revision of a hub dataset.
        top: take the first so many rows, None takes all.
        max_chars: longest text of a turn in characters; rows with longer ones are left out and reported.
    """

    preset: str = "auto"
    prompt_column: str | None = None
    response_column: str | None = None
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    top: int | None = None
    max_chars: int = 20_000


class _Unusable(Exception):
    """Why a row has no conversation: a reason, and the place."""

    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(problem)
        self.problem, self.detail = problem, detail


class Source:
    """The rows of a file, a folder or a hub dataset.

    Attributes:
        multi_turn: whether the rows are chat messages, so that the output has `messages` columns.
        fingerprint: what changes with the content: a digest of the files, or the commit of a hub dataset.
        total: how many rows `rows` gives, None where the source does not say.
        left_out: rows that the preset does not take, by reason; complete after `rows`.
    """

    def __init__(self, name: str, options: SourceOptions) -> None:
        """Find the source and read through local files once, so that a broken line stops before any work.

        Raises:
            ValueError: there is no such source, column or preset, or a file cannot be read.
        """
        if options.preset not in PRESETS:
            raise ValueError(f"--preset: {options.preset!r} is not one of {', '.join(PRESETS)}")
        self.name, self.options = name, options
        self.left_out: Counter[str] = Counter()
        self._raw: Callable[[], Iterable[dict[str, Any]]]
        files = _local_files(Path(name), options.split)
        count: int | None
        self._local = bool(files)
        if files:
            self.fingerprint = digest(files)
            self._raw = lambda: (row for file in files for row in read_rows(file))
            count = sum(1 for _ in self._raw())
        else:
            self._raw, self.fingerprint, count = _hub(name, options)
        first = next(iter(self._raw()), None)
        if first is None:
            raise ValueError(f"{name}: no rows in it")
        self.preset = _detect(first, options) if options.preset == "auto" else options.preset
        self._convert = self._converter(first)
        self.multi_turn = self.preset == "messages"
        if self.preset.startswith("oasst"):
            count = sum(1 for _ in self._pairs())
        self.total = min(count, options.top or count) if count is not None else options.top

    def describe(self) -> dict[str, Any]:
        """Where the rows come from, for the manifest."""
        taken = self.options
        return {
            "name": Path(self.name).name if self._local else self.name,  # a card says nothing of the machine's folders
            "fingerprint": self.fingerprint,
            "preset": self.preset,
            "split": taken.split,
            "subset": taken.subset,
            "revision": taken.revision,
            "prompt_column": taken.prompt_column,
            "response_column": taken.response_column,
            "top": taken.top,
            "max_chars": taken.max_chars,
        }

    def rows(self) -> Iterator[SourceRow]:
        """Every row, in order; one that cannot be used comes with its problem."""
        raw = self._pairs() if self.preset.startswith("oasst") else self._raw()
        for number, row in enumerate(islice(raw, self.options.top)):
            name = row.get("id")
            identity = str(name) if isinstance(name, str | int) else str(number)
            try:
                yield SourceRow(number, identity, turns=self._convert(row))
            except _Unusable as error:
                yield SourceRow(number, identity, problem=error.problem, detail=error.detail)

    def _pairs(self) -> Iterator[dict[str, Any]]:
        self.left_out.clear()
        return _oasst(self._raw(), self.left_out)

    def _converter(self, first: Mapping[str, Any]) -> Callable[[dict[str, Any]], list[Turn]]:
        limit = self.options.max_chars
        if self.preset.startswith("oasst"):
            return lambda row: _two_turns(row, ["prompt"], "response", limit)
        if self.preset == "messages":
            column = _one_of(first, MESSAGE_COLUMNS, self.options.prompt_column, "--prompt-column")
            return lambda row: _conversation(row, column, limit)
        if self.preset == "alpaca":
            for column in ("instruction", "output"):
                _one_of(first, (column,), None, "--preset alpaca")
            return lambda row: _two_turns(row, ["instruction", "input"], "output", limit)
        prompt = _one_of(first, PROMPT_COLUMNS, self.options.prompt_column, "--prompt-column")
        response = _one_of(first, RESPONSE_COLUMNS, self.options.response_column, "--response-column")
        return lambda row: _two_turns(row, [prompt], response, limit)


def _local_files(path: Path, split: str) -> list[Path]:
    """The files of a local source; none where the name must be a hub dataset's.

    Raises:
        ValueError: the name is that of a file or folder, and there are no rows to read.
    """
    if path.is_file():
        if suffix_of(path) not in SUFFIXES:
            raise ValueError(f"{path}: files ending in {', '.join(SUFFIXES)} (also .gz) are accepted")
        return [path]
    if path.is_dir():
        from datasets import load_dataset_builder
        from datasets.exceptions import DatasetNotFoundError

        try:
            found = load_dataset_builder(str(path)).config.data_files or {}
        except (DatasetNotFoundError, FileNotFoundError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: no dataset in this folder ({error})") from error
        if split not in found:
            raise ValueError(f"--split: {split!r} is not in {path}, which has {', '.join(map(str, found))}")
        return [_inside(path, str(file)) for file in found[split]]
    if path.suffix or path.is_absolute() or (path.name != str(path) and path.parts[0] in (".", "..")):
        if suffix_of(path) in SUFFIXES or not _looks_like_hub(path):
            raise ValueError(f"{path}: no such file (looked in {Path.cwd().name}/)")
    elif not _looks_like_hub(path):
        raise ValueError(f"{path}: no such file or folder, and a hub dataset is named OWNER/NAME")
    return []


def _inside(folder: Path, file: str) -> Path:
    """A file that a folder's own card names, which may name any."""
    if "://" in file or not _plain(Path(file)).is_relative_to(_plain(folder)):
        raise ValueError(f"{folder}: its README.md names {file!r}, which is not in the folder; remove the line")
    return Path(file)


def _plain(path: Path) -> Path:
    """Whole and without `..`; links stay, as the hub's cache is made of them."""
    return Path(os.path.normpath(path.absolute()))


def _looks_like_hub(path: Path) -> bool:
    return not path.is_absolute() and len(path.parts) == 2 and path.parts[0] not in (".", "..", "~")


def _hub(name: str, options: SourceOptions) -> tuple[Callable[[], Iterable[dict[str, Any]]], str, int | None]:
    """Rows (streamed), commit and number of rows of a hub dataset."""
    from datasets import load_dataset, load_dataset_builder
    from huggingface_hub import HfApi

    try:
        commit = str(HfApi().dataset_info(name, revision=options.revision).sha)
        builder = load_dataset_builder(name, options.subset, revision=commit)
    except Exception as error:  # the hub's client has no common base class for its errors
        raise ValueError(
            f"{name}: cannot be read from the hub ({type(error).__name__}: {error}); check the name and the network, "
            "or give a local file or folder"
        ) from error
    splits = builder.info.splits or {}
    if splits and options.split not in splits:
        raise ValueError(f"--split: {options.split!r} is not in {name}, which has {', '.join(splits)}")

    def rows() -> Iterable[dict[str, Any]]:
        return load_dataset(name, options.subset, split=options.split, revision=commit, streaming=True)  # type: ignore[no-any-return]

    return rows, commit, splits[options.split].num_examples if splits else None


def _detect(row: Mapping[str, Any], options: SourceOptions) -> str:
    """The form of a source, by the columns of its first row."""
    if options.prompt_column or options.response_column:
        return "prompt-response"
    columns = set(row)
    if columns >= {"message_tree_id", "parent_id", "role", "text"} or {"message_tree_id", "prompt"} <= columns:
        return "oasst1"
    if columns & set(MESSAGE_COLUMNS):
        return "messages"
    if {"instruction", "output"} <= columns:
        return "alpaca"
    if columns & set(PROMPT_COLUMNS) and columns & set(RESPONSE_COLUMNS):
        return "prompt-response"
    raise ValueError(
        f"--preset: the columns {', '.join(row)} are those of none of {', '.join(PRESETS[1:])}; name the columns with "
        "--prompt-column and --response-column"
    )


def _one_of(row: Mapping[str, Any], usual: Iterable[str], given: str | None, option: str) -> str:
    """The given column, else the first of the usual ones that is there."""
    if given is not None and given not in row:
        near = difflib.get_close_matches(given, list(row), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{option}: no column {given!r} in the source, which has {', '.join(row)}{hint}")
    found = given or next((column for column in usual if column in row), None)
    if found is None:
        raise ValueError(
            f"{option}: none of the columns {', '.join(usual)} is in the source, which has {', '.join(row)}; name it"
        )
    if isinstance(row[found], dict):  # as in the output of a run
        raise ValueError(
            f"{option}: column {found!r} is no text, but holds the fields {', '.join(row[found])}; if these are "
            "languages, the rows are parallel already"
        )
    return found


def _text(row: Mapping[str, Any], column: str, limit: int) -> str:
    value = row.get(column)
    if value is None:
        raise _Unusable("missing", f"{column}: null" if column in row else f"{column}: no such column in this row")
    if not isinstance(value, str):
        raise _Unusable("not text", f"{column}: {type(value).__name__} {value!r:.40}")
    if not value.strip():
        raise _Unusable("empty", column)
    if len(value) > limit:
        raise _Unusable("too long", f"{column}: {len(value)} characters, --max-chars is {limit}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON may hold half of a surrogate pair
        raise _Unusable("not text", f"{column}: half a surrogate pair at character {error.start}") from error
    return value


def _two_turns(row: Mapping[str, Any], prompt_columns: list[str], response_column: str, limit: int) -> list[Turn]:
    first, *more = prompt_columns
    prompt = [_text(row, first, limit)]
    prompt += [_text(row, column, limit) for column in more if row.get(column) not in (None, "")]
    return [
        {"role": "user", "content": "\n\n".join(prompt)},
        {"role": "assistant", "content": _text(row, response_column, limit)},
    ]


def _conversation(row: Mapping[str, Any], column: str, limit: int) -> list[Turn]:
    turns = row.get(column)
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise _Unusable("missing" if not turns else "not messages", f"{column}: {turns!r:.40}")
    found = []
    for i, turn in enumerate(turns):
        keys = ("role", "content") if "role" in turn else ("from", "value")
        role = _ROLES.get(str(turn.get(keys[0])))
        if role is None:
            raise _Unusable("role", f"{column}[{i}].{keys[0]}: {turn.get(keys[0])!r}; {', '.join(_ROLES)} are accepted")
        try:
            found.append({"role": role, "content": _text(turn, keys[1], limit)})
        except _Unusable as error:
            raise _Unusable(error.problem, f"{column}[{i}].{error.detail}") from error
    if len(found) < 2 or found[-1]["role"] != "assistant":
        roles = ", ".join(turn["role"] for turn in found)
        raise _Unusable("role", f"{column}: the last of two or more turns must be the assistant's, got {roles}")
    return found


def _oasst(rows: Iterable[dict[str, Any]], left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """First turns in English with each of their replies, all best-ranked replies first, then the second ones."""
    prompts: dict[str, str] = {}
    replies: list[tuple[float, str, str, str]] = []  # rank, id of the prompt, id, text
    for message in _messages(rows):
        identity, parent = str(message.get("message_id")), message.get("parent_id")
        if message.get("deleted"):
            left_out["deleted message"] += 1
        elif message.get("lang") != "en":
            left_out["message not in English"] += 1
        elif message.get("role") == "prompter" and parent is None:
            prompts[identity] = message["text"]
        elif message.get("role") == "assistant" and parent in prompts:
            rank = message.get("rank")
            replies.append((float("inf") if rank is None else rank, str(parent), identity, message["text"]))
        else:
            left_out["message of a later turn"] += 1
    replies.sort(key=lambda reply: reply[0])  # stable: the order of the trees within a rank
    for _, parent, identity, text in replies:
        yield {"id": identity, "prompt": prompts[parent], "response": text}


def _messages(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Single messages, parents first, from rows that are messages or whole trees."""
    for row in rows:
        if "prompt" not in row:
            if "text" not in row or "parent_id" not in row:
                raise ValueError(
                    f"--preset oasst1: the columns {', '.join(row)} are not those of OpenAssistant's messages "
                    "(message_id, parent_id, role, text, lang, rank) or trees (message_tree_id, prompt)"
                )
            yield row
            continue
        below = [{**row["prompt"], "parent_id": None}]
        while below:
            message = below.pop(0)
            yield message
            below += [{**reply, "parent_id": message.get("message_id")} for reply in message.get("replies") or []]
