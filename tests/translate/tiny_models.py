"""Translation models of every family, small enough to make in a test: real tokenizers, two layers, a little training.

They learn to copy, not quite to the end: translations end, and the beams of a search still differ. Folders are as a
hub repository of the family has them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from axolotl_clo.datasets import starter_folder

MAX_WORDS = 6
STEPS = 150


def starter_rows() -> list[dict[str, Any]]:
    """The training rows of the starter data."""
    lines = (starter_folder() / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def texts(count: int, languages: tuple[str, ...] = ("en", "de", "id", "sw")) -> list[str]:
    """Pieces of the starter rows of up to `MAX_WORDS` words, none twice."""
    pieces: dict[str, None] = {}
    for row in starter_rows():
        for language in languages:
            words = row["response"][language].split()
            for start in range(0, len(words), MAX_WORDS):
                size = 2 + start % (MAX_WORDS - 1)
                pieces[" ".join(words[start : start + size])] = None
    chosen = list(pieces)
    random.Random(0).shuffle(chosen)
    return chosen[:count]


def train_sentencepiece(prefix: Path, vocab_size: int, **options: Any) -> Path:
    """A sentencepiece model of all languages of the starter rows, at `<prefix>.model`."""
    import sentencepiece

    lines = [text for row in starter_rows() for side in ("prompt", "response") for text in row[side].values()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(prefix),
        vocab_size=vocab_size,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return Path(f"{prefix}.model")


def m2m100_tokenizer(folder: Path, entries: int = 0) -> Any:
    """M2M100's tokenizer: a sentencepiece model, vocab.json, and `__ko__` tokens outside both; saved to `folder`.

    Args:
        folder: where to make it.
        entries: what vocab.json is filled up to, with tokens that no text has.
    """
    from transformers import M2M100Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    model_file = train_sentencepiece(folder / "sentencepiece.bpe", 2300)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *_pieces(model_file)]
    tokens += [f"unused{i}" for i in range(entries - len(tokens))]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(model_file))
    tokenizer.save_pretrained(folder)
    return tokenizer


def m2m100_vocabulary(tokenizer: Any) -> int:
    """Embeddings of a model for `tokenizer`: pieces, languages, and some that were never used."""
    return int(tokenizer.encoder_size + len(tokenizer.lang_code_to_id) + tokenizer.num_madeup_words)


def tiny_m2m100(folder: Path) -> Path:
    """M2M100 as on the hub."""
    tokenizer = m2m100_tokenizer(folder)
    config = _bart_like("M2M100Config", m2m100_vocabulary(tokenizer))
    return _train(folder, config, "M2M100ForConditionalGeneration", tokenizer, _languages_in_front("en", "ko"))


def tiny_nllb(folder: Path) -> Path:
    """NLLB: `kor_Hang` tokens after a BPE vocabulary, an M2M100 architecture, tokenizer.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import NllbTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    lines = [text for row in starter_rows() for side in ("prompt", "response") for text in row[side].values()]
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=2500, special_tokens=special, show_progress=False))
    trained = json.loads(bpe.to_str())["model"]
    tokenizer = NllbTokenizer(vocab=trained["vocab"], merges=[tuple(merge) for merge in trained["merges"]])
    tokenizer.save_pretrained(folder)
    config = _bart_like("M2M100Config", len(tokenizer) + 2)
    return _train(
        folder, config, "M2M100ForConditionalGeneration", tokenizer, _languages_in_front("eng_Latn", "kor_Hang")
    )


def tiny_madlad(folder: Path) -> Path:
    """MADLAD-400: a T5 of version 1.1 with `<2ko>` in its vocabulary, byte fallback, and an output layer of its own.

    Its weights name the input embeddings by the decoder alone, and its unknown token is not where T5's is.
    """
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config

    folder.mkdir(parents=True, exist_ok=True)
    languages = [f"<2{code}>" for code in ("en", "ko", "de", "sw", "zh", "translate")]
    model_file = train_sentencepiece(
        folder / "spiece", 2600, byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, user_defined_symbols=languages
    )
    backend = Tokenizer(models.Unigram(_scores(model_file), unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<s>"
    )
    tokenizer.save_pretrained(folder)
    _edit(folder / "tokenizer_config.json", tokenizer_class="T5Tokenizer")
    config = T5Config(
        vocab_size=len(tokenizer) + 12,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    start = tokenizer("<2ko>", add_special_tokens=False).input_ids

    def frame(body: list[int]) -> tuple[list[int], list[int]]:
        return [*start, *body, 2], [*body, 2]

    _train(folder, config, "T5ForConditionalGeneration", tokenizer, lambda _: frame, untie=True)
    weights = load_file(folder / "model.safetensors")
    weights["decoder.embed_tokens.weight"] = weights.pop("shared.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _edit(folder / "config.json", tie_word_embeddings=False, scale_decoder_outputs=None)
    return folder


def tiny_marian(folder: Path) -> Path:
    """Marian: one pair, two sentencepiece models, a padding token at the end that starts the decoder."""
    from transformers import MarianTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    for side in ("source", "target"):
        train_sentencepiece(folder / side, 2300).rename(folder / f"{side}.spm")
    tokens = ["</s>", "<unk>", *_pieces(folder / "source.spm"), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    files = [str(folder / name) for name in ("source.spm", "target.spm", "vocab.json")]
    tokenizer = MarianTokenizer(*files)
    tokenizer.save_pretrained(folder)
    pad = tokenizer.pad_token_id
    config = _bart_like(
        "MarianConfig", len(tokenizer), pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad, forced_eos=0
    )

    def frame(body: list[int]) -> tuple[list[int], list[int]]:
        return [*body, 0], [*body, 0]

    return _train(folder, config, "MarianMTModel", tokenizer, lambda _: frame, bad_words_ids=[[pad]])


Frame = Callable[[list[int]], tuple[list[int], list[int]]]


def _languages_in_front(source: str, target: str) -> Callable[[Any], Frame]:
    def framer(tokenizer: Any) -> Frame:
        names = [f"__{name}__" if len(name) == 2 else name for name in (source, target)]
        start, first = tokenizer.convert_tokens_to_ids(names)
        end = tokenizer.eos_token_id
        return lambda body: ([start, *body, end], [first, *body, end])

    return framer


def _bart_like(name: str, vocab_size: int, forced_eos: int | None = None, **ids: int) -> Any:
    import transformers

    return getattr(transformers, name)(
        vocab_size=vocab_size,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        init_std=0.1,
        scale_embedding=True,
        max_position_embeddings=128,
        **{"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0, "decoder_start_token_id": 2, **ids},
        forced_eos_token_id=forced_eos,
    )


def _train(
    folder: Path,
    config: Any,
    model_class: str,
    tokenizer: Any,
    framer: Callable[[Any], Frame],
    untie: bool = False,
    **generation: Any,
) -> Path:
    """Train a model of `config` a little and save it to `folder`."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config)
    if untie:
        model.lm_head.weight = torch.nn.Parameter(model.shared.weight.detach() * 0.1)
    bodies = tokenizer(texts(600), add_special_tokens=False).input_ids
    pairs = [framer(tokenizer)(body) for body in bodies if len(body) < 30]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    order = random.Random(0)
    model.train()
    for _ in range(STEPS):
        chosen = order.sample(pairs, 32)
        loss = model(**_padded(chosen, config.pad_token_id)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():  # the output layer shares the embeddings, and Marian's decoder starts from a zero one
            model.get_input_embeddings().weight[config.pad_token_id] = 0
    for option, value in generation.items():
        setattr(model.generation_config, option, value)
    model.eval().save_pretrained(folder)
    return folder


def _padded(pairs: list[tuple[list[int], list[int]]], pad: int) -> dict[str, torch.Tensor]:
    def pack(rows: list[list[int]], filler: int) -> torch.Tensor:
        longest = max(map(len, rows))
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])

    sources, targets = [list(rows) for rows in zip(*pairs, strict=True)]
    lengths = torch.tensor([len(row) for row in sources])
    return {
        "input_ids": pack(sources, pad),
        "attention_mask": (torch.arange(max(lengths))[None, :] < lengths[:, None]).long(),
        "labels": pack(targets, -100),
    }


def _pieces(model_file: Path) -> list[str]:
    """The vocabulary of a sentencepiece model without its special tokens."""
    return [piece for piece, _ in _scores(model_file)[3:]]


def _scores(model_file: Path) -> list[tuple[str, float]]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    return [(model.IdToPiece(i), model.GetScore(i)) for i in range(model.GetPieceSize())]


def _edit(file: Path, **values: Any) -> None:
    """Set values of a JSON file; None removes one."""
    content = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
