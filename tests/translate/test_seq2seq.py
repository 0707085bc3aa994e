"""Translation models run by transformers and by CTranslate2, on tiny models of every family."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import starter_rows, texts, tiny_m2m100, tiny_madlad, tiny_marian, tiny_nllb

from axolotl_clo.translate.engines import EngineError, EngineOptions, Failure, open_engine

BUILDERS = {"m2m100": tiny_m2m100, "nllb": tiny_nllb, "madlad": tiny_madlad, "marian": tiny_marian}
FAMILIES = list(BUILDERS)
MAX_NEW_TOKENS = 40

needs_ctranslate2 = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("ctranslate2"), reason="ctranslate2 is not installed"
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny model, made at first use."""
    root = tmp_path_factory.mktemp("translation-models")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            BUILDERS[family](root / family)
        return root / family

    return folder


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(session_cache))


@contextmanager
def opened(name: str, model: Path | str, **options: Any) -> Iterator[Any]:
    options = {"device": "cpu", "max_new_tokens": MAX_NEW_TOKENS, **options}
    engine = open_engine(name, EngineOptions(model=str(model), **options))
    try:
        yield engine
    finally:
        engine.close()


def translate(name: str, model: Path, segments: list[str], **options: Any) -> list[str | Failure]:
    with opened(name, model, **options) as engine:
        return engine.translate(segments, "en", "ko")


# ---- both engines ----


@needs_ctranslate2
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beam_size", [1, None])
def test_both_engines_give_the_same_translations(
    tiny: Callable[[str], Path], family: str, beam_size: int | None
) -> None:
    segments = texts(80)

    by_transformers = translate("transformers", tiny(family), segments, beam_size=beam_size)
    by_ctranslate2 = translate("ctranslate2", tiny(family), segments, beam_size=beam_size, dtype="float32")

    assert by_ctranslate2 == by_transformers
    assert sum(isinstance(text, str) for text in by_transformers) >= 50
    assert len(set(map(str, by_transformers))) >= 50


@needs_ctranslate2
@pytest.mark.parametrize("family", FAMILIES)
def test_int8_is_near_float32(tiny: Callable[[str], Path], family: str) -> None:
    from sacrebleu.metrics import CHRF

    segments = texts(80)
    pairs = zip(
        translate("ctranslate2", tiny(family), segments),
        translate("ctranslate2", tiny(family), segments, dtype="float32"),
        strict=True,
    )
    written = [(ours, theirs) for ours, theirs in pairs if isinstance(ours, str) and isinstance(theirs, str)]

    assert len(written) >= 50
    assert CHRF().corpus_score([ours for ours, _ in written], [[theirs for _, theirs in written]]).score > 60


@pytest.mark.parametrize("engine", ["transformers", pytest.param("ctranslate2", marks=needs_ctranslate2)])
class TestEitherEngine:
    def test_translations_come_in_the_order_of_the_segments(self, tiny: Callable[[str], Path], engine: str) -> None:
        segments = sorted(texts(30), key=len)
        with opened(engine, tiny("m2m100")) as one:
            alone = [one.translate([segment], "en", "ko")[0] for segment in segments]
            backwards = one.translate(segments[::-1], "en", "ko")
        assert backwards == alone[::-1]

    @pytest.mark.parametrize("family", ["m2m100", "nllb", "madlad"])
    def test_the_target_language_reaches_the_model(self, tiny: Callable[[str], Path], engine: str, family: str) -> None:
        # Only Korean was trained, so another language changes what comes out.
        with opened(engine, tiny(family)) as one:
            assert one.translate(texts(20), "en", "ko") != one.translate(texts(20), "en", "de")

    def test_a_long_segment_fails_with_its_length(self, tiny: Callable[[str], Path], engine: str) -> None:
        long = " ".join(row["response"]["en"] for row in starter_rows()[:5])
        first, second = translate(engine, tiny("m2m100"), [long, texts(1)[0]])
        assert isinstance(first, Failure)
        tokens, rest = first.reason.split(" ", 1)
        assert int(tokens) > 128
        assert rest == "tokens, the model takes 128"
        assert second == translate(engine, tiny("m2m100"), texts(1))[0]

    def test_a_translation_without_an_end_fails(self, tiny: Callable[[str], Path], engine: str) -> None:
        cut = translate(engine, tiny("m2m100"), texts(10), max_new_tokens=4)
        assert Failure("no end within 4 tokens") in cut

    def test_a_character_the_model_cannot_read_fails(self, tiny: Callable[[str], Path], engine: str) -> None:
        assert translate(engine, tiny("m2m100"), ["A 🦙 and ∮"]) == [Failure("the model has no token for '🦙', '∮'")]

    def test_bytes_stand_in_for_characters_where_the_model_has_them(
        self, tiny: Callable[[str], Path], engine: str
    ) -> None:
        with opened(engine, tiny("madlad")) as one:
            (bare,) = one.codec.encode([""], "en", "ko")
            (ids,) = one.codec.encode(["🦙"], "en", "ko")
            *_, end = bare
            assert one.codec.decode([*ids[len(bare) - 1 : -1], end]) == "🦙"

    @pytest.mark.parametrize("text", ["a</s>b", "__ko__", "<pad>"])
    def test_text_that_looks_like_a_special_token_is_text(
        self, tiny: Callable[[str], Path], engine: str, text: str
    ) -> None:
        with opened(engine, tiny("m2m100")) as one:
            (problem,) = one.codec.encode([text], "en", "ko")
        # The tiny vocabulary has no such signs at all; as special tokens they would have passed.
        assert isinstance(problem, Failure)
        assert problem.reason.startswith("the model has no token for")

    def test_empty_segments_stay(self, tiny: Callable[[str], Path], engine: str) -> None:
        assert translate(engine, tiny("m2m100"), ["", "  "]) == ["", "  "]
        assert translate(engine, tiny("m2m100"), []) == []

    def test_an_unknown_language_is_named_with_the_known(self, tiny: Callable[[str], Path], engine: str) -> None:
        with opened(engine, tiny("madlad")) as one:
            one.check("en", "sw")
            with pytest.raises(ValueError, match=r"does not know the language 'yo'; it knows de, en, ko, sw, zh$"):
                one.check("en", "yo")
            with pytest.raises(ValueError, match="does not know the language 'yo'"):
                one.check("yo", "en")

    def test_a_models_own_codes_are_taken(self, tiny: Callable[[str], Path], engine: str) -> None:
        with opened(engine, tiny("nllb")) as one:
            assert one.translate(texts(5), "eng_Latn", "kor_Hang") == one.translate(texts(5), "en", "ko")

    def test_it_describes_itself(self, tiny: Callable[[str], Path], engine: str) -> None:
        with opened(engine, tiny("nllb"), beam_size=2) as one:
            described = one.describe()
        assert described["engine"] == engine
        assert described["model"] == str(tiny("nllb"))
        assert described["revision"].startswith("sha256:")
        assert (described["family"], described["beam_size"], described["max_new_tokens"]) == ("NLLB", 2, MAX_NEW_TOKENS)
        assert described["dtype"] == {"transformers": "float32", "ctranslate2": "int8"}[engine]
        assert described["versions"][engine] == __import__(engine).__version__
        assert json.loads(json.dumps(described)) == described

    def test_other_weights_have_another_revision(
        self, tiny: Callable[[str], Path], engine: str, tmp_path: Path
    ) -> None:
        from safetensors.torch import load_file, save_file

        model = shutil.copytree(tiny("m2m100"), tmp_path / "model")
        weights = load_file(model / "model.safetensors")
        save_file(
            {**weights, "model.shared.weight": weights["model.shared.weight"] * 2},
            model / "model.safetensors",
            {"format": "pt"},
        )
        with opened(engine, tiny("m2m100")) as before, opened(engine, model) as after:
            assert before.describe()["revision"] != after.describe()["revision"]

    def test_segments_fit_the_model_by_their_characters(self, tiny: Callable[[str], Path], engine: str) -> None:
        with opened(engine, tiny("m2m100")) as one:
            assert one.max_chars == 2 * one.codec.max_source_tokens
            assert one.unit == "sentence"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"beam_size": 0}, "--beam-size: a number from 1 is accepted, got 0"),
            ({"max_new_tokens": 2}, "--max-new-tokens: .* accepts 3 to 128, got 2"),
            ({"max_new_tokens": 5000}, "--max-new-tokens: .* accepts 3 to 128, got 5000"),
            ({"dtype": "float8"}, "--dtype: .* accepts .*float32.*, got 'float8'"),
            ({"device": "cuda:99"}, "--device: 'cuda:99' cannot be used"),
        ],
    )
    def test_a_wrong_option_is_named(
        self, tiny: Callable[[str], Path], engine: str, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message), opened(engine, tiny("m2m100"), **options):
            pass

    def test_a_model_that_is_not_there_is_named(
        self, engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ValueError, match="--model: 'facebook/no-such-model' is neither a folder nor"):
            open_engine(engine, EngineOptions(model="facebook/no-such-model"))
        with pytest.raises(ValueError, match=r"--model: the folder .* holds no config\.json"):
            open_engine(engine, EngineOptions(model=str(tmp_path)))

    def test_a_language_model_is_no_translation_model(self, engine: str, tmp_path: Path, chatml_tokenizer: Any) -> None:
        from transformers import LlamaConfig

        LlamaConfig().save_pretrained(tmp_path)
        chatml_tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="accepted are M2M100, NLLB, MADLAD-400 and Marian"):
            open_engine(engine, EngineOptions(model=str(tmp_path)))

    def test_a_pair_in_the_models_name_is_checked(
        self, tiny: Callable[[str], Path], engine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        named = shutil.copytree(tiny("marian"), tmp_path / "opus-mt-tc-big-en-ko")
        with opened(engine, named) as one:
            one.check("eng", "ko-KR")
            with pytest.raises(ValueError, match="translates en to ko, not en to de"):
                one.check("en", "de")
        assert not caplog.records
        with opened(engine, tiny("marian")) as one:
            one.check("en", "de")
        assert "does not say its languages; taking it to translate en to de" in caplog.text

    def test_a_hub_model_is_read_from_the_cache_at_its_revision(
        self, tiny: Callable[[str], Path], engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit = "0123456789abcdef0123456789abcdef01234567"
        repository = tmp_path / "models--facebook--tiny"
        shutil.copytree(tiny("m2m100"), repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "v2").write_text(commit)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with opened(engine, "facebook/tiny", model_revision="v2") as one:
            assert one.describe()["model"] == "facebook/tiny"
            assert one.describe()["revision"] == commit
            assert one.translate(texts(3), "en", "ko") == translate(engine, tiny("m2m100"), texts(3))
        with pytest.raises(ValueError, match="--model: 'facebook/tiny' at --model-revision 'v3' is neither"):
            open_engine(engine, EngineOptions(model="facebook/tiny", model_revision="v3"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_model_is_understood(tiny: Callable[[str], Path], family: str) -> None:
    """The models learnt to copy: what comes out resembles what went in, so ids and weights are where they belong."""
    from sacrebleu.metrics import CHRF

    segments = texts(60)
    pairs = zip(translate("transformers", tiny(family), segments), segments, strict=True)
    written = [(ours, text) for ours, text in pairs if isinstance(ours, str)]

    same = CHRF().corpus_score([ours for ours, _ in written], [[text for _, text in written]]).score
    other = CHRF().corpus_score([ours for ours, _ in written], [[text for _, text in written[1:] + written[:1]]]).score
    assert same > 3 * other


# ---- what the libraries do not do right by themselves ----


def test_madlads_input_embeddings_are_those_of_its_weights(tiny: Callable[[str], Path]) -> None:
    from safetensors.torch import load_file

    weights = load_file(tiny("madlad") / "model.safetensors")
    assert "shared.weight" not in weights
    with opened("transformers", tiny("madlad")) as engine:
        for part in (engine.model.encoder, engine.model.decoder):
            assert torch.equal(part.embed_tokens.weight, weights["decoder.embed_tokens.weight"])
        assert torch.equal(engine.model.lm_head.weight, weights["lm_head.weight"])


@pytest.mark.parametrize("listed_in", [None, "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("engine", ["transformers", pytest.param("ctranslate2", marks=needs_ctranslate2)])
def test_m2m100s_languages_have_their_ids_wherever_its_files_list_them(
    tiny: Callable[[str], Path], tmp_path: Path, engine: str, listed_in: str | None
) -> None:
    model = shutil.copytree(tiny("m2m100"), tmp_path / "model")
    with opened("transformers", model) as one:
        ids = dict(one.codec.tokenizer.lang_token_to_id)
    config = json.loads((model / "tokenizer_config.json").read_text())
    del config["extra_special_tokens"], config["added_tokens_decoder"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    if listed_in:
        file = model / listed_in
        content = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**content, "additional_special_tokens": list(ids)}))

    with opened(engine, model) as one:
        vocabulary = one.codec.tokenizer.get_vocab()
        assert {token: vocabulary[token] for token in ids} == ids
        assert one.translate(texts(20), "en", "ko") == translate(engine, tiny("m2m100"), texts(20))


# ---- transformers ----


def test_batches_are_bounded_by_padded_tokens_and_segments(tiny: Callable[[str], Path]) -> None:
    with opened("transformers", tiny("m2m100"), batch_size=4) as engine:
        engine._batch_tokens = 60
        inputs = [[5] * length for length in (10, 50, 30, 11, 12, 13, 14, 70, 3)]
        batches = engine._batches(inputs)
    assert sorted(index for batch in batches for index in batch) == list(range(len(inputs)))
    for batch in batches:
        longest = max(len(inputs[index]) for index in batch)
        assert len(batch) <= 4
        assert len(batch) == 1 or len(batch) * longest <= 60


def test_too_little_memory_halves_the_batch(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    segments = texts(20)
    expected = translate("transformers", tiny("m2m100"), segments)
    with opened("transformers", tiny("m2m100")) as engine:
        sizes, search = [], engine.model.generate

        def room_for_five(**inputs: Any) -> Any:
            sizes.append(len(inputs["input_ids"]))
            if sizes[-1] > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return search(**inputs)

        monkeypatch.setattr(engine.model, "generate", room_for_five)
        assert engine.translate(segments, "en", "ko") == expected
        assert max(sizes) > 5
        sizes.clear()
        engine.translate(segments, "en", "ko")
        assert max(sizes) <= 10  # what did not fit is not tried at full size again


@pytest.mark.bad_input("translate")
def test_too_little_memory_for_one_segment_stops_the_run(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(**inputs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with opened("transformers", tiny("m2m100")) as engine:
        monkeypatch.setattr(engine.model, "generate", no_room)
        with pytest.raises(EngineError, match="too little memory for a single segment; give a smaller --beam-size"):
            engine.translate(texts(4), "en", "ko")


# ---- CTranslate2 ----


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for converted models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache" / "axolotl_clo" / "ctranslate2"


def converted(cache: Path) -> list[Path]:
    return sorted(folder for folder in cache.iterdir() if folder.is_dir())


def open_and_translate(model: str, results: Any) -> None:
    """Opens the engine in a process of its own."""
    try:
        results.put(translate("ctranslate2", Path(model), texts(3), dtype="float32"))
    except BaseException as error:
        results.put(repr(error))
        raise


@needs_ctranslate2
class TestConversion:
    def test_a_model_is_converted_once(self, tiny: Callable[[str], Path], own_cache: Path) -> None:
        first = translate("ctranslate2", tiny("m2m100"), texts(3))
        (folder,) = converted(own_cache)
        before = (folder / "model.bin").stat()

        assert translate("ctranslate2", tiny("m2m100"), texts(3)) == first

        after = (folder / "model.bin").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert converted(own_cache) == [folder]

    def test_each_precision_is_converted_for_itself(self, tiny: Callable[[str], Path], own_cache: Path) -> None:
        for dtype in ("int8", "float32"):
            translate("ctranslate2", tiny("m2m100"), texts(1), dtype=dtype)
        small, large = sorted((folder / "model.bin").stat().st_size for folder in converted(own_cache))
        assert small < large / 2

    def test_two_processes_convert_once(self, tiny: Callable[[str], Path], own_cache: Path) -> None:
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        model = str(tiny("m2m100"))
        processes = [context.Process(target=open_and_translate, args=(model, results)) for _ in range(2)]
        for process in processes:
            process.start()
        first, second = results.get(timeout=300), results.get(timeout=300)
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        assert first == second
        assert len(converted(own_cache)) == 1

    def test_a_killed_conversion_leaves_nothing_that_is_taken_for_a_model(
        self, tiny: Callable[[str], Path], own_cache: Path
    ) -> None:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=convert_slowly, args=(str(tiny("m2m100")), str(own_cache)))
        process.start()
        signalled = own_cache / "half-way"
        while process.is_alive() and not signalled.exists():
            time.sleep(0.05)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        (partial,) = converted(own_cache)
        assert partial.suffix == ".partial"

        translations = translate("ctranslate2", tiny("m2m100"), texts(20), dtype="float32")

        assert translations == translate("transformers", tiny("m2m100"), texts(20))
        (folder,) = converted(own_cache)
        assert (folder / "model.bin").is_file()
        assert folder.suffix == ""

    def test_a_converted_folder_is_taken_as_it_is(
        self, tiny: Callable[[str], Path], own_cache: Path, tmp_path: Path
    ) -> None:
        expected = translate("ctranslate2", tiny("nllb"), texts(10), dtype="float32")
        (folder,) = converted(own_cache)
        given = shutil.copytree(folder, tmp_path / "given")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny("nllb") / name, given / name)
        shutil.rmtree(own_cache)

        assert translate("ctranslate2", given, texts(10), dtype="float32") == expected
        assert not own_cache.exists()

    def test_a_converted_folder_needs_its_tokenizer(
        self, tiny: Callable[[str], Path], own_cache: Path, tmp_path: Path
    ) -> None:
        translate("ctranslate2", tiny("nllb"), texts(1))
        (folder,) = converted(own_cache)
        with pytest.raises(ValueError, match=r"--model: the tokenizer of .* cannot be loaded"):
            open_engine("ctranslate2", EngineOptions(model=str(folder)))

    def test_a_tokenizer_of_another_model_is_noticed(
        self, tiny: Callable[[str], Path], own_cache: Path, tmp_path: Path
    ) -> None:
        translate("ctranslate2", tiny("m2m100"), texts(1))
        (folder,) = converted(own_cache)
        given = shutil.copytree(folder, tmp_path / "given")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny("nllb") / name, given / name)
        with pytest.raises(EngineError, match=r"in the converted model and .* in the tokenizer"):
            open_engine("ctranslate2", EngineOptions(model=str(given)))

    def test_a_cache_that_cannot_be_written_is_named(
        self, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        with pytest.raises(EngineError, match="set XDG_CACHE_HOME to a folder with room"):
            open_engine("ctranslate2", EngineOptions(model=str(tiny("m2m100")), device="cpu"))

    def test_too_little_memory_halves_the_batch(
        self, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = translate("ctranslate2", tiny("m2m100"), texts(20))
        with opened("ctranslate2", tiny("m2m100")) as engine:
            model, tokens = engine.model, []

            class LittleMemory:
                def translate_batch(self, sources: Any, prefix: Any, **options: Any) -> Any:
                    tokens.append(options["max_batch_size"])
                    if tokens[-1] > 300:
                        raise RuntimeError("CUDA failed with error out of memory")
                    return model.translate_batch(sources, prefix, **options)

                def unload_model(self) -> None:
                    model.unload_model()

            monkeypatch.setattr(engine, "model", LittleMemory())
            assert engine.translate(texts(20), "en", "ko") == expected
        assert tokens == [2048, 1024, 512, 256]


def convert_slowly(model: str, cache: str) -> None:
    """Starts a conversion that stops half-way: its weights are written, the folder is not yet in its place."""
    from ctranslate2.converters import TransformersConverter

    finish = TransformersConverter.convert

    def stop_half_way(self: Any, output_dir: str, **options: Any) -> None:
        finish(self, output_dir, **options)
        (Path(output_dir) / "model.bin").write_bytes(b"half")
        (Path(cache) / "half-way").touch()
        time.sleep(600)

    TransformersConverter.convert = stop_half_way
    translate("ctranslate2", Path(model), texts(1), dtype="float32")
