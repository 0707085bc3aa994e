"""Families of translation models: how each is told its languages, and how it is best searched.

What both engines that run such models share: `Family` holds the settings, `ModelSource` says where a model is, and
`Codec` turns segments into token ids and token ids into translations.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_clo.translate.engines import EngineError, Failure
from axolotl_clo.translate.engines.languages import by_key, model_code, normalise


@dataclass(frozen=True)
class Family:
    """How models of one kind are used.

    Attributes:
        name: what the family is called.
        language: a whole token that stands for a language, whose code is the first group.
        forces_first: the target language is the first token of the translation, and the source language stands with
            the source; otherwise the target language stands before the source, where there is one.
        beam_size: beams of the search its authors report, or a customary number.
        max_source_tokens: longest source; beyond what the models saw in training they leave out parts of it.
        max_new_tokens: longest translation, wide enough for languages that take twice the tokens of English.
        half_dtype: precision on a GPU; T5's activations overflow float16.
    """

    name: str
    language: re.Pattern[str]
    forces_first: bool
    beam_size: int
    max_source_tokens: int
    max_new_tokens: int
    half_dtype: str = "float16"


M2M100 = Family("M2M100", re.compile(r"__([a-z]{2,3})__"), True, 5, 256, 400)
NLLB = Family("NLLB", re.compile(r"([a-z]{3}_[A-Z][a-z]{3})"), True, 4, 400, 512)
MADLAD = Family("MADLAD-400", re.compile(r"<2([A-Za-z_-]+)>"), False, 4, 400, 512, half_dtype="bfloat16")
MARIAN = Family("Marian", re.compile(r">>([A-Za-z_-]+)<<"), False, 4, 256, 400)

# A pair is in the name of an OPUS-MT model and nowhere else: opus-mt-en-de, opus-mt-tc-big-en-ko.
_PAIR = re.compile(r"opus-mt-(?:\w+-)*?([a-z]{2,3}(?:_[A-Z][a-z]{3})?)-([a-z]{2,3}(?:_[A-Z][a-z]{3})?)")


@dataclass(frozen=True)
class ModelSource:
    """Where a model is.

    Attributes:
        name: hub name or folder.
        revision: commit of the hub, None for a folder.
        folder: holds the model's config.
    """

    name: str
    revision: str | None
    folder: Path

    @classmethod
    def find(cls, name: str, revision: str | None) -> ModelSource:
        """The model in a folder, in the hub's cache or, downloaded, on the hub.

        Raises:
            ValueError: there is none.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        folder = Path(name).expanduser()
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise ValueError(f"--model: the folder {name} holds no config.json, so no model")
            return cls(str(folder), None, folder)
        try:
            config = Path(hf_hub_download(name, "config.json", revision=revision))
        except (OSError, ValueError, HfHubHTTPError) as error:
            at = f" at --model-revision {revision!r}" if revision else ""
            raise ValueError(
                f"--model: {name!r}{at} is neither a folder nor a model that the Hugging Face hub or its cache gives "
                f"({first_line(error)}); give the hub name of a model, such as facebook/m2m100_418M, or the "
                "folder of a downloaded one; with HF_HUB_OFFLINE set only models in the cache are found"
            ) from error
        return cls(name, config.parent.name, config.parent)

    def fingerprint(self) -> str:
        """The commit on the hub, or a digest of all files of the folder that a model is read from."""
        if self.revision is not None:
            return self.revision
        digest = hashlib.sha256()
        for file in sorted(self.folder.iterdir()):
            if file.suffix in {".json", ".model", ".spm", ".txt", ".safetensors", ".bin"} and file.is_file():
                digest.update(file.name.encode())
                with file.open("rb") as handle:
                    digest.update(hashlib.file_digest(handle, "sha256").digest())
        return f"sha256:{digest.hexdigest()}"

    def load_tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            ValueError: there is none, or it cannot be read.
        """
        from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Tokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.name, revision=self.revision, trust_remote_code=False)
            if isinstance(tokenizer, T5Tokenizer):
                # T5Tokenizer keeps neither the unknown token's id nor the byte fallback of MADLAD's tokenizer.json.
                tokenizer = PreTrainedTokenizerFast.from_pretrained(self.name, revision=self.revision)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"--model: the tokenizer of {self.name} cannot be loaded ({error}); the model needs the files of a "
                "transformers tokenizer"
            ) from error
        # M2M100Tokenizer knows the tokens for its languages, but its vocabulary holds them only where the model's
        # tokenizer_config.json lists them.
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in getattr(tokenizer, "lang_token_to_id", {}) if token not in vocabulary]
        tokenizer.add_tokens(missing, special_tokens=True)
        return tokenizer


class Codec:
    """Segments to token ids, and the token ids of translations to text.

    Attributes:
        family: the model's family, recognised by the tokens for languages.
        max_source_tokens: longest source, with its language and end.
        max_new_tokens: longest translation, with its language and end.

    Raises:
        ValueError: the tokenizer is of none of the families.
    """

    def __init__(self, tokenizer: Any, model: str, max_new_tokens: int | None, positions: int | None) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.family, self._languages = _family(tokenizer, model)
        most = positions or max(self.family.max_new_tokens, max_new_tokens or 0)
        self.max_source_tokens = min(self.family.max_source_tokens, most)
        self.max_new_tokens = min(self.family.max_new_tokens, most) if max_new_tokens is None else max_new_tokens
        if not 3 <= self.max_new_tokens <= most:
            upper = f"3 to {positions}" if positions else "3 and more"
            raise ValueError(f"--max-new-tokens: {model} accepts {upper}, got {max_new_tokens}")
        named = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self._reserved = named | set(self._languages.values())

    @property
    def codes(self) -> list[str]:
        """The model's own codes of its languages; none where it is made for one pair."""
        return list(self._languages)

    @property
    def pair(self) -> tuple[str, str] | None:
        """Keys of the languages in the name of a model for one pair."""
        match = _PAIR.fullmatch(self.model.rstrip("/").split("/")[-1])
        try:
            return (normalise(match[1]), normalise(match[2])) if match else None
        except ValueError:  # a group of languages, such as `mul`
            return None

    def check(self, source: str, target: str) -> None:
        """
        Raises:
            ValueError: the model does not know a language; names those it knows.
        """
        if self.family is MARIAN:
            self._check_pair(source, target)
        else:
            model_code(source, self.codes, self.model)
        if self._languages:
            model_code(target, self.codes, self.model)

    def _check_pair(self, source: str, target: str) -> None:
        if self.pair is None:
            return
        wanted = (normalise(source), self.pair[1] if self._languages else normalise(target))
        if wanted != self.pair:
            raise ValueError(f"{self.model} translates {self.pair[0]} to {self.pair[1]}, not {source} to {target}")

    def forced_token(self, target: str) -> int | None:
        """The id of the translation's first token, where the family wants one."""
        return self._language(target) if self.family.forces_first else None

    def encode(self, segments: Sequence[str], source: str, target: str) -> list[list[int] | Failure]:
        """Token ids of each segment with its languages and end, or why the model cannot take it."""
        start, end = self._frame(source, target)
        # Text that looks like a special token (`</s>`, or `__is__` in Markdown) is text.
        encoded = self.tokenizer(list(segments), add_special_tokens=False, split_special_tokens=True)
        return [
            self._problem(segment, ids, len(start) + len(end)) or [*start, *ids, *end]
            for segment, ids in zip(segments, encoded["input_ids"], strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str | Failure:
        """The text of a translation, or why it is none; `ids` begin after the decoder's start token."""
        end = self.tokenizer.eos_token_id
        if end not in ids:
            return Failure(f"no end within {self.max_new_tokens} tokens")
        body = list(ids[int(self.family.forces_first) : list(ids).index(end)])
        if self.tokenizer.unk_token_id in body:
            return Failure("the translation holds a character that the model has no token for")
        if strays := self._reserved.intersection(body):
            token = self.tokenizer.convert_ids_to_tokens(min(strays))
            return Failure(f"the translation holds {token!r}, a token of the model's own")
        text = self.tokenizer.decode(body, clean_up_tokenization_spaces=False)
        return " ".join(text.splitlines()).strip() or Failure("the translation is empty")

    def _language(self, wanted: str) -> int:
        return self._languages[model_code(wanted, self.codes, self.model)]

    def _frame(self, source: str, target: str) -> tuple[list[int], list[int]]:
        """Token ids before and after the text."""
        if self.family.forces_first:
            self.tokenizer.src_lang = model_code(source, self.codes, self.model)
            return list(self.tokenizer.prefix_tokens), list(self.tokenizer.suffix_tokens)
        end = [self.tokenizer.eos_token_id]
        if not self._languages:
            return [], end
        token = self.tokenizer.convert_ids_to_tokens(self._language(target))
        # The tokenizer may put a space before it; models know the token as their tokenizer writes it.
        return self.tokenizer(token, add_special_tokens=False)["input_ids"], end

    def _problem(self, segment: str, ids: list[int], around: int) -> Failure | None:
        if len(ids) + around > self.max_source_tokens:
            return Failure(f"{len(ids) + around} tokens, the model takes {self.max_source_tokens}")
        if self.tokenizer.unk_token_id in ids:
            unknown = ", ".join(map(repr, self._unknown(segment)))
            return Failure(f"the model has no token for {unknown or 'a part of it'}")
        if strays := self._reserved.intersection(ids):
            token = self.tokenizer.convert_ids_to_tokens(min(strays))
            return Failure(f"the text holds {token!r}, a token of the model's own")
        return None

    def _unknown(self, segment: str) -> list[str]:
        characters = [character for character in dict.fromkeys(segment) if not character.isspace()]
        encoded = self.tokenizer(characters, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        unknown = self.tokenizer.unk_token_id
        return [character for character, ids in zip(characters, encoded, strict=True) if unknown in ids]


def _family(tokenizer: Any, model: str) -> tuple[Family, dict[str, int]]:
    """The family, and the ids of the tokens for languages by the model's codes."""
    vocabulary = tokenizer.get_vocab()
    for family in (M2M100, NLLB, MADLAD, MARIAN):
        matches = ((family.language.fullmatch(token), index) for token, index in vocabulary.items())
        tokens = {match[1]: index for match, index in matches if match}
        if len(by_key(tokens)) > 1 or (family is MARIAN and type(tokenizer).__name__ == "MarianTokenizer"):
            return family, tokens
    raise ValueError(
        f"--model: {model} is no translation model that this engine runs: its tokenizer "
        f"({type(tokenizer).__name__}) has no tokens for languages; accepted are M2M100, NLLB, MADLAD-400 and Marian"
    )


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def no_memory(device: str, what: str = "a single segment") -> EngineError:
    """The error for what does not fit into a device."""
    return EngineError(
        f"{device} has too little memory for {what}; give a smaller --beam-size or --max-new-tokens, a smaller "
        "--model, or another --dtype"
    )
