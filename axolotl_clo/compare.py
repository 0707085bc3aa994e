"""`python -m axolotl_clo.compare`: train SFT, SFT then DPO, ORPO and CLO on the same rows, print one table.

Every method is a run of Axolotl's own on the starter rows, with the same parallel rows, the same number of
optimizer steps and the same trained parameters (attention). A step takes one parallel row's worth: for CLO one row,
which is two pairs; for DPO and ORPO two pairs; for SFT two sequences. SFT then DPO spends half of the steps on each.

Each method's learning rate is picked by the same search in the first language: three candidates train on seven eighths
of the training rows and are scored on every eighth. The criterion (`choose_learning_rate`) is what the methods are for
and no loss of theirs: answers in the prompt's language that do not repeat it, at most two of sixteen fewer than the
best, then the lowest target bits per byte, among the candidates whose English bits per byte rose by at most 5 % and
whose target's did not rise. The test rows are for the table alone.

Each run has a folder, `OUT/base`, `OUT/search/METHOD-LANG-RATE` or `OUT/runs/METHOD-LANG-SIZE-SEED`, with its Axolotl
YAML, its log and, written last, `scores.json`. A run whose scores were made with the same YAML is skipped.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import os
import platform
import shutil
import sys
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import yaml
from tqdm import tqdm

from axolotl_clo.datasets import STARTER, starter_folder
from axolotl_clo.evaluate import task_folder
from axolotl_clo.evaluate.tasks import fidelity, is_echo
from axolotl_clo.quickstart import check_machine, ensure_smollm2

METHODS = {"sft": "SFT", "sft_dpo": "SFT, then DPO", "orpo": "ORPO", "clo": "CLO"}
# Candidates of the search; of `sft_dpo` those of its DPO stage, whose SFT stage takes what was chosen for `sft`.
LEARNING_RATES: dict[str, tuple[float, ...]] = {
    "sft": (1e-4, 3e-4, 1e-3),
    "sft_dpo": (1e-5, 5e-5, 2e-4),
    "orpo": (1e-4, 3e-4, 1e-3),
    "clo": (1e-4, 3e-4, 1e-3),
}
MAX_ENGLISH_RISE = 0.05  # share of the base model's English bits per byte
FIDELITY_TIE = 0.125  # two answers of sixteen: about one standard error
HELD_OUT_EVERY = 8  # every eighth training row scores the search: two of each category
SEARCH_SEED = 0


@dataclass(frozen=True)
class Grid:
    """How much is trained.

    Attributes:
        sizes: parallel rows trained on.
        seeds: of the rows drawn and of training.
        search_size: rows of the search for the learning rate, at most; no more than the largest size.
        search_steps: optimizer steps of the search, at most; no more than those of any run.
        min_steps: least optimizer steps of a run.
        passes: passes over the rows of a run that this gives more steps.
    """

    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    search_size: int
    search_steps: int
    min_steps: int
    passes: int


FULL = Grid(sizes=(8, 16, 32, 64, 128), seeds=(1, 2, 3), search_size=64, search_steps=128, min_steps=64, passes=2)
SMALL = Grid(sizes=(32, 8), seeds=(1, 2), search_size=32, search_steps=32, min_steps=32, passes=1)

DEFAULT_MODEL = Path("outputs/quickstart/smollm2-135m-instruct")
BETA_CLO = 0.04  # as in example_configs/quickstart.yml
BETA_DPO = 0.1  # the usual one (arXiv 2305.18290); TRL's default for ORPO too
NEEDED_MEMORY_GB = 4.0  # for each worker
COMMAND = "axolotl_clo.compare"
SOURCE = "en"
TAIL_LINES = 15

Rows = list[dict[str, Any]]
Cell = tuple[str, str, int, int]  # method, language, size, seed


@dataclass(frozen=True)
class Run:
    """One unit of work: Axolotl configs trained one after the other, then scored.

    Attributes:
        name: its folder below `out`.
        out: where all runs lie; `out/base/scores.json` is what a trained model is compared with.
        languages: target languages it is scored in.
        configs: Axolotl configs in the order they train; none for the base model.
        base_model: folder of the model before training.
        search: score bits per byte on the held-out training rows instead of the tasks.
        keep_model: leave the trained weights.
    """

    name: str
    out: Path
    languages: tuple[str, ...]
    configs: tuple[dict[str, Any], ...]
    base_model: Path
    search: bool = False
    keep_model: bool = False

    @property
    def folder(self) -> Path:
        return self.out / self.name

    @property
    def recipe(self) -> dict[str, Any]:
        """What `scores.json` was made with; another recipe is another run."""
        return {"base_model": str(self.base_model), "languages": list(self.languages), "configs": list(self.configs)}

    def result(self) -> dict[str, Any] | None:
        """The stored result, or None where there is none of this recipe (or its model is to be kept and is gone)."""
        file = self.folder / "scores.json"
        if not file.is_file() or (self.keep_model and not Path(self.configs[-1]["output_dir"]).is_dir()):
            return None
        stored = json.loads(file.read_text(encoding="utf-8"))
        return stored if stored["recipe"] == json.loads(json.dumps(self.recipe)) else None


# ---- what is trained ----


@dataclass(frozen=True)
class Comparison:
    """The command's options after checking, and the runs they ask for."""

    out: Path
    base_model: Path
    methods: tuple[str, ...]
    languages: tuple[str, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    grid: Grid
    given_steps: int | None
    jobs: int
    keep_models: bool

    def steps(self, size: int) -> int:
        """Optimizer steps of a run on `size` rows, one row each."""
        return self.given_steps or max(self.grid.min_steps, self.grid.passes * size)

    @property
    def search_size(self) -> int:
        return min(self.grid.search_size, max(self.sizes))

    @property
    def search_steps(self) -> int:
        return min(self.grid.search_steps, *(self.steps(size) for size in self.sizes))

    @property
    def search_phases(self) -> list[list[str]]:
        """Methods whose learning rate is searched; SFT, then DPO waits for SFT's."""
        first = [
            m for m in METHODS if m != "sft_dpo" and (m in self.methods or (m == "sft" and "sft_dpo" in self.methods))
        ]
        return [first, [m for m in self.methods if m == "sft_dpo"]]

    @property
    def cells(self) -> list[Cell]:
        """All runs of the table, ordered so that those done first make a table of their own."""
        return [
            (method, language, size, seed)
            for size in self.sizes
            for seed in self.seeds
            for language in self.languages
            for method in self.methods
        ]

    def base(self) -> Run:
        """The model before training."""
        return Run("base", self.out, self.languages, (), self.base_model)

    def search(self, method: str, language: str, rate: float, sft_rate: float | None) -> Run:
        """One candidate of the search; `sft_rate` is that of the SFT stage of `sft_dpo`."""
        name = f"search/{method}-{language}-{rate:g}"
        rows = str(self.out / "search" / "rows.jsonl")
        stages = _stages(method, rate, sft_rate, self.search_steps)
        configs = self._configs(name, language, self.search_size, SEARCH_SEED, stages, rows)
        return Run(name, self.out, (language,), configs, self.base_model, search=True)

    def run(self, method: str, language: str, size: int, seed: int, rate: float, sft_rate: float | None) -> Run:
        """One run of the table."""
        name = f"runs/{method}-{language}-{size}-{seed}"
        stages = _stages(method, rate, sft_rate, self.steps(size))
        configs = self._configs(name, language, size, seed, stages, STARTER)
        return Run(name, self.out, (language,), configs, self.base_model, keep_model=self.keep_models)

    def _configs(
        self, name: str, language: str, size: int, seed: int, stages: list[tuple[str, float, int]], rows: str
    ) -> tuple[dict[str, Any], ...]:
        configs: list[dict[str, Any]] = []
        for stage, rate, steps in stages:
            strategy = {"sft": "sft", "clo": "cross_lingual"}.get(stage, "preference")
            config: dict[str, Any] = {
                "base_model": configs[-1]["output_dir"] if configs else str(self.base_model),
                "plugins": ["axolotl_clo.CLOPlugin"],
                "clo": {"target_lang": language, "max_examples": size, "train_modules": "attention"},
                "datasets": [{"path": rows, "type": f"axolotl_clo.{strategy}"}],
                "dataset_prepared_path": str(self.out / name / "prepared"),
                "dataset_num_proc": 0,
                "dataloader_num_workers": 0,
                "output_dir": str(self.out / name / f"model-{stage}"),
                "sequence_len": 512,
                "micro_batch_size": 1 if stage == "clo" else 2,
                "gradient_accumulation_steps": 1,
                "max_steps": steps,
                "num_epochs": math.ceil(steps / size),
                "optimizer": "adamw_torch",
                "learning_rate": rate,
                "lr_scheduler": "cosine",
                "warmup_steps": steps // 20,
                "weight_decay": 0.0,
                "seed": seed,
                "gradient_checkpointing": False,
                "save_strategy": "no",
                "logging_steps": 1,
                **_precision(),
            }
            if stage == "clo":
                config["rl"] = "clo"
                config["clo"]["beta"] = BETA_CLO
            elif stage != "sft":
                config["rl"] = stage
                config["orpo_alpha" if stage == "orpo" else "rl_beta"] = BETA_DPO
            configs.append(config)
        return tuple(configs)


def _stages(method: str, rate: float, sft_rate: float | None, steps: int) -> list[tuple[str, float, int]]:
    """What trains after what: name, learning rate and optimizer steps of each."""
    if method != "sft_dpo":
        return [(method, rate, steps)]
    assert sft_rate is not None, "SFT's learning rate is chosen first"
    return [("sft", sft_rate, steps // 2), ("dpo", rate, steps - steps // 2)]


@lru_cache
def _precision() -> dict[str, Any]:
    """Float32 on a GPU too: weights of bfloat16 would round away most updates at the learning rates of DPO."""
    import torch

    return {"bf16": False, "tf32": torch.cuda.is_available(), "attn_implementation": "sdpa"}


def starter_rows() -> Rows:
    """The training rows of the package."""
    lines = (starter_folder() / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


class Candidate(NamedTuple):
    """A learning rate's scores on rows held out of the search.

    target: bits per byte in the target language.
    english: bits per byte in English.
    fidelity: share of answers in the target language that do not repeat the prompt.
    """

    target: float
    english: float
    fidelity: float


def choose_learning_rate(candidates: Mapping[float, Candidate], base: Candidate) -> float:
    """The best of the candidates by the one criterion that holds for all methods.

    Args:
        candidates: scores by learning rate.
        base: those of the base model on the same rows.

    Returns:
        Among the rates whose English bits per byte rose by at most `MAX_ENGLISH_RISE` and whose target's did not rise:
        of those within `FIDELITY_TIE` of the highest fidelity, the one with the lowest target bits per byte. Where
        there is none, the one whose English rose least.
    """
    kept = {
        rate: scores
        for rate, scores in candidates.items()
        if scores.english <= base.english * (1 + MAX_ENGLISH_RISE) and scores.target <= base.target
    }
    if kept:
        best = max(scores.fidelity for scores in kept.values())
        ties = [rate for rate, scores in kept.items() if scores.fidelity >= best - FIDELITY_TIE]
        return min(ties, key=lambda rate: kept[rate].target)
    rises = {rate: scores.english for rate, scores in candidates.items()}
    return min(rises, key=lambda rate: (math.isnan(rises[rate]), rises[rate]))  # NaN: training diverged


# ---- what a worker does ----


def execute(run: Run) -> None:
    """Train and score one run in this process; `scores.json` appears once all is done."""
    folder = run.folder
    (folder / "scores.json").unlink(missing_ok=True)
    _remove_models(folder)
    start = time.perf_counter()
    for config in run.configs:
        file = folder / f"{Path(config['output_dir']).name.removeprefix('model-')}.yml"
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        train(file)
    trained = time.perf_counter()
    model = Path(run.configs[-1]["output_dir"]) if run.configs else run.base_model
    result = search_scores(model, run) if run.search else scores(model, run)
    if not run.configs:
        result["search"] = search_scores(model, run)["scores"]
    seconds = {"train": trained - start, "score": time.perf_counter() - trained}
    partial = folder / ".scores.json.partial"
    text = json.dumps({"recipe": run.recipe, **result, "seconds": seconds}, ensure_ascii=False, indent=1)
    partial.write_text(text, encoding="utf-8")
    partial.rename(folder / "scores.json")


def _remove_models(folder: Path) -> None:
    for path in (folder / "prepared", *folder.glob("model-*")):
        shutil.rmtree(path, ignore_errors=True)


def train(file: Path) -> None:
    """What `axolotl train` runs after its launcher, in this process."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets, load_preference_datasets
    from axolotl.train import train as axolotl_train

    cfg = load_cfg(str(file))
    meta = (load_preference_datasets if cfg.rl else load_datasets)(cfg=cfg)
    axolotl_train(cfg=cfg, dataset_meta=meta)


def scores(folder: Path, run: Run) -> dict[str, Any]:
    """Score a model on the held-out test rows.

    Returns:
        `scores`: by language `fidelity`, `fidelity_no_echo`, `echoes` and `preference` (shares, 0 to 1; preference not
        in English), `bits_per_byte` and `characters` (mean length of an answer of at most 64 tokens); under `en` also
        `kl` (see `mean_kl`). `answers`: by language `[prompt, answer]` of each test row.
    """
    languages = (*run.languages, SOURCE)
    model, tokenizer = _load(folder)
    # Generation is faster in large batches, scoring in small ones, which need less padding.
    generated = _evaluate(model, tokenizer, [f"axolotl_clo_{lang}_fidelity" for lang in languages], batch_size=64)
    # English preference stands against six languages: the dearest task, and not in the table.
    names = [f"axolotl_clo_{lang}_preference" for lang in run.languages]
    names += [f"axolotl_clo_{lang}_bits_per_byte" for lang in languages]
    scored = _evaluate(model, tokenizer, names, batch_size=16)
    result: dict[str, dict[str, float]] = {}
    answers: dict[str, list[tuple[str, str]]] = {}
    for lang in languages:
        samples = sorted(generated["samples"][f"axolotl_clo_{lang}_fidelity"], key=lambda sample: sample["doc_id"])
        answers[lang] = [(sample["doc"]["prompt"], sample["filtered_resps"][0]) for sample in samples]
        result[lang] = {
            "echoes": mean(is_echo(*pair) for pair in answers[lang]),
            "characters": mean(len(answer) for _, answer in answers[lang]),
        }
    for task, values in {**generated["results"], **scored["results"]}.items():
        lang = task.split("_")[2]
        for metric in ("fidelity", "fidelity_no_echo", "preference", "bits_per_byte"):
            if f"{metric},none" in values:
                result[lang][metric] = values[f"{metric},none"]
    if run.configs:
        base, _ = _load(run.base_model)
        base_answers = json.loads((run.out / "base" / "scores.json").read_text(encoding="utf-8"))["answers"][SOURCE]
        result[SOURCE]["kl"] = mean_kl(base, model, tokenizer, base_answers)
    else:
        result[SOURCE]["kl"] = 0.0
    return {"scores": result, "answers": answers}


def search_scores(folder: Path, run: Run) -> dict[str, Any]:
    """`scores`: by language `bits_per_byte`, and for targets `fidelity_no_echo`, on the rows held out of the search."""
    rows = starter_rows()[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    model, tokenizer = _load(folder)
    result: dict[str, dict[str, float]] = {}
    for lang in (*run.languages, SOURCE):
        pairs = [(row["prompt"][lang], row["response"][lang]) for row in rows]
        result[lang] = {"bits_per_byte": bits_per_byte(model, tokenizer, pairs)}
        if lang != SOURCE:
            prompts = [prompt for prompt, _ in pairs]
            result[lang]["fidelity_no_echo"] = mean(
                fidelity({"language": lang, "prompt": prompt}, [answer])["fidelity_no_echo"]
                for prompt, answer in zip(prompts, answer_greedily(model, tokenizer, prompts), strict=True)
            )
    return {"scores": result}


def answer_greedily(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 64) -> list[str]:
    """The model's answers in its chat template, as the task of fidelity generates them, in one batch."""
    from axolotl_clo.evaluate.continuations import continuations

    ids = tokenizer([_chat(tokenizer, prompt) for prompt in prompts], add_special_tokens=False)["input_ids"]
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    tokens = continuations(model, ids, pad, max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def bits_per_byte(model: Any, tokenizer: Any, pairs: Iterable[tuple[str, str]]) -> float:
    """−Σ log₂ p(response | prompt) / Σ UTF-8 bytes of the responses, for ranking candidates on rows no task has.

    The task of that name is a little higher: the harness counts the template's last line break to the response.
    """
    nats = size = 0.0
    for prompt, response in pairs:
        log_probs, ids = _log_probs(model, tokenizer, prompt, response)
        nats -= log_probs.gather(-1, ids[:, None]).sum().item()
        size += len(response.encode("utf-8"))
    return nats / math.log(2) / size


def _log_probs(model: Any, tokenizer: Any, prompt: str, response: str) -> tuple[Any, Any]:
    """Log-probabilities over the vocabulary at each token of the response `[tokens, vocabulary]`, and its ids."""
    import torch

    before, after = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (_chat(tokenizer, prompt), response)
    )
    ids = torch.tensor([before + after], device=model.device)
    with torch.no_grad():
        # The position before a token predicts it.
        return model(ids).logits[0, len(before) - 1 : -1].float().log_softmax(-1), ids[0, len(before) :]


def _chat(tokenizer: Any, prompt: str) -> str:
    chat = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


def _load(folder: Path) -> tuple[Any, Any]:
    """Model in evaluation mode, on the GPU where there is one, and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder)


def _evaluate(model: Any, tokenizer: Any, tasks: list[str], batch_size: int) -> dict[str, Any]:
    """What the harness returns for some of this package's tasks, with samples."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    output = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=tasks,
        task_manager=TaskManager(include_path=str(task_folder()), include_defaults=False),
        apply_chat_template=True,
        log_samples=True,
        bootstrap_iters=0,
    )
    assert output is not None
    return output


def mean_kl(base: Any, trained: Any, tokenizer: Any, answers: Sequence[Sequence[str]]) -> float:
    """KL(base || trained), the mean over the tokens of all answers, in nats per token.

    At each token of an answer it compares the two models' distributions over the whole vocabulary, given the prompt
    in the chat template and the answer so far: KL = Σ_v p_base(v) · [log p_base(v) − log p_trained(v)].

    Args:
        base: the model before training.
        trained: the model after training, with the same vocabulary.
        tokenizer: of both.
        answers: `[prompt, answer]`, the answers being the base model's own.
    """
    total, tokens = 0.0, 0
    for prompt, answer in answers:
        (log_p, _), (log_q, ids) = (_log_probs(model, tokenizer, prompt, answer) for model in (base, trained))
        total += (log_p.exp() * (log_p - log_q)).sum().item()
        tokens += len(ids)
    return total / tokens if tokens else math.nan


# ---- the queue ----


class Workers:
    """Processes that each take one run after another: importing Axolotl takes longer than a short run.

    Args:
        jobs: how many at a time.
        threads: CPU threads of each, unless the environment's OMP_NUM_THREADS says otherwise.
    """

    def __init__(self, jobs: int, threads: int) -> None:
        self.jobs, self.threads = jobs, threads
        self._idle: list[tuple[Any, Connection]] = []
        self._busy: dict[Connection, tuple[Any, Run]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process, connection in self._idle:
            connection.close()  # an idle worker then ends by itself
            process.join(timeout=10)
        for process, _other in [*self._idle, *self._busy.values()]:
            process.terminate()
            process.join()

    def results(self, runs: Iterable[Run], on_start: Callable[[list[str]], None]) -> Iterator[tuple[Run, str | None]]:
        """Each run as it ends, with what went wrong, or None.

        Args:
            runs: to be done, started in their order.
            on_start: called with the names of the runs in hand whenever they change.
        """
        waiting = deque(runs)
        while waiting or self._busy:
            while waiting and len(self._busy) < self.jobs:
                process, connection = self._idle.pop() if self._idle else self._start()
                if not process.is_alive():
                    continue
                run = waiting.popleft()
                connection.send(run)
                self._busy[connection] = (process, run)
            on_start([run.name for _, run in self._busy.values()])
            # A process that dies closes its end, unless one of its own children holds it: hence the time limit.
            ready = wait(list(self._busy), timeout=5)
            for connection, (process, run) in list(self._busy.items()):
                if connection not in ready and process.is_alive():
                    continue
                del self._busy[connection]
                try:
                    if not connection.poll():
                        raise EOFError
                    error = connection.recv()
                    self._idle.append((process, connection))
                except (EOFError, ConnectionError):
                    process.join()
                    error = f"its process ended with exit code {process.exitcode}"
                    error += ", probably for want of memory" if process.exitcode == -9 else ""
                yield run, error

    def _start(self) -> tuple[Any, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.threads))
        process.start()
        theirs.close()
        return process, ours


def _work(connection: Connection, threads: int) -> None:
    """A worker's life: take a run, do it, say what went wrong."""
    # Before torch is imported; accelerate would give a CPU process one thread.
    for name, value in {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Rows are few: datasets would start a process, with its imports, to save them.
        "AXOLOTL_DATASET_NUM_PROC": "0",
    }.items():
        os.environ.setdefault(name, value)
    while True:
        try:
            run = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        connection.send(_attempt(run))


def _attempt(run: Run) -> str | None:
    """Do a run with all output in its log; returns None, or the error in one line."""
    run.folder.mkdir(parents=True, exist_ok=True)
    error = None
    with (run.folder / "log.txt").open("w", encoding="utf-8") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    try:
        execute(run)
    except (Exception, SystemExit) as caught:
        traceback.print_exc()
        error = f"{type(caught).__name__}: {' '.join(str(caught).split())}"
    finally:
        if error or not run.keep_model:
            _remove_models(run.folder)
        shutil.rmtree(run.folder / "prepared", ignore_errors=True)
        _forget_run()
        sys.stdout.flush()
        sys.stderr.flush()
    return error


def _forget_run() -> None:
    """Leave nothing of a run to the next one in the same process."""
    if "axolotl.integrations.base" in sys.modules:
        from axolotl.integrations.base import PluginManager

        PluginManager.get_instance().plugins.clear()
    gc.collect()
    if "torch" in sys.modules:
        import torch

        torch.cuda.empty_cache()


# ---- the command ----


class Queue:
    """Does the runs that have no result yet, shows a progress bar and remembers what failed, by name."""

    def __init__(self, workers: Workers, bar: Any) -> None:
        self.workers, self.bar = workers, bar
        self.failed: dict[str, str] = {}

    def finish(self, runs: Sequence[Run]) -> list[dict[str, Any] | None]:
        """The result of each run in their order, None where it failed."""
        missing = [run for run in runs if run.result() is None]
        self.bar.update(len(runs) - len(missing))
        for run, error in self.workers.results(missing, lambda names: self.bar.set_postfix_str(", ".join(names))):
            if error is None:
                seconds = json.loads((run.folder / "scores.json").read_text(encoding="utf-8"))["seconds"]
                line = f"✓ {run.name}: trained in {seconds['train']:.0f} s, scored in {seconds['score']:.0f} s"
            else:
                line = f"✗ {run.name}: {error}"
                self.failed[run.name] = f"{error}\n{_tail(run.folder / 'log.txt')}"
            self.bar.write(line, sys.stderr)
            self.bar.update()
        return [run.result() for run in runs]


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return "\n".join(lines[-TAIL_LINES:])


@dataclass
class Search:
    """What the search for learning rates found.

    Attributes:
        language: the target language searched in.
        base: the base model's scores on the rows that score the search.
        candidates: by method, scores by learning rate.
        rates: by method, the learning rate chosen.
    """

    language: str
    base: Candidate
    candidates: dict[str, dict[float, Candidate]]
    rates: dict[str, float]


def search_rates(plan: Comparison, queue: Queue, base: dict[str, Any]) -> Search:
    """Choose a learning rate for each method; one is missing where all of its candidates failed."""
    (plan.out / "search").mkdir(parents=True, exist_ok=True)
    kept = [row for i, row in enumerate(starter_rows(), start=1) if i % HELD_OUT_EVERY]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    (plan.out / "search" / "rows.jsonl").write_text(text, encoding="utf-8")
    language = plan.languages[0]
    search = Search(language, _candidate(base["search"], language), defaultdict(dict), {})
    for methods in plan.search_phases:
        wanted = [
            (method, rate)
            for method in methods
            for rate in LEARNING_RATES[method]
            if method != "sft_dpo" or "sft" in search.rates
        ]
        runs = [plan.search(method, language, rate, search.rates.get("sft")) for method, rate in wanted]
        for (method, rate), result in zip(wanted, queue.finish(runs), strict=True):
            if result is not None:
                search.candidates[method][rate] = _candidate(result["scores"], language)
        for method, found in search.candidates.items():
            search.rates[method] = choose_learning_rate(found, search.base)
    return search


def _candidate(scores: Mapping[str, Mapping[str, float]], language: str) -> Candidate:
    own = scores[language]
    return Candidate(own["bits_per_byte"], scores[SOURCE]["bits_per_byte"], own["fidelity_no_echo"])


def compare(plan: Comparison) -> dict[str, str]:
    """Do all runs that are not done, write and print the table of what there is; returns what failed, by name."""
    start = time.perf_counter()
    threads = max(1, (os.cpu_count() or 1) // plan.jobs)
    searches = sum(len(LEARNING_RATES[method]) for phase in plan.search_phases for method in phase)
    total = 1 + searches + len(plan.cells)
    with Workers(plan.jobs, threads) as workers, tqdm(total=total, unit="run", file=sys.stderr) as bar:
        queue = Queue(workers, bar)
        (base,) = queue.finish([plan.base()])
        if base is None:
            return queue.failed
        search = search_rates(plan, queue, base)
        runs = {}
        for method, language, size, seed in plan.cells:
            if method in search.rates:
                rates = search.rates[method], search.rates.get("sft")
                runs[method, language, size, seed] = plan.run(method, language, size, seed, *rates)
            else:
                queue.failed[f"runs/{method}-{language}-{size}-{seed}"] = "all candidates of its search failed"
        try:
            queue.finish(list(runs.values()))
        finally:
            bar.close()
            results = {cell: result for cell, run in runs.items() if (result := run.result()) is not None}
            minutes = (time.perf_counter() - start) / 60
            text = report(plan, base, search, results, minutes)
            (plan.out / "table.md").write_text(text + "\n", encoding="utf-8")
            print(text)
    return queue.failed


# ---- the table ----

# Column: language ("" for the target), metric, factor, format.
COLUMNS: dict[str, tuple[str, str, float, str]] = {
    "fidelity %": ("", "fidelity", 100, ".1f"),
    "without echoes %": ("", "fidelity_no_echo", 100, ".1f"),
    "preference %": ("", "preference", 100, ".1f"),
    "bits per byte": ("", "bits_per_byte", 1, ".3f"),
    "echoes %": ("", "echoes", 100, ".1f"),
    f"{SOURCE} fidelity %": (SOURCE, "fidelity", 100, ".1f"),
    f"{SOURCE} bits per byte": (SOURCE, "bits_per_byte", 1, ".3f"),
    f"{SOURCE} KL": (SOURCE, "kl", 1, ".3f"),
    f"{SOURCE} characters": (SOURCE, "characters", 1, ".0f"),
    "of base's": (SOURCE, "characters_ratio", 1, ".2f"),
}

LEGEND = f"""\
Mean ± sample standard deviation over seeds, on the 32 held-out prompts of a language.
Fidelity: answers in the prompt's language; without echoes: and not a repetition of the prompt; echoes: repetitions.
Preference: the reference response is likelier than its English translation.
Bits per byte of the reference response: lower is better.
{SOURCE} KL: KL(base ‖ trained) in nats per token, over the base model's own greedy English answers.
{SOURCE} characters: mean length of an English answer of at most 64 tokens, and its ratio to the base model's."""


def report(
    plan: Comparison, base: dict[str, Any], search: Search, results: Mapping[Cell, dict[str, Any]], minutes: float
) -> str:
    """The whole of `table.md`: a table for each language, and below them how they were made."""
    blocks = [_block(language, plan, base["scores"], results) for language in plan.languages]
    return "\n\n".join([*blocks, LEGEND, _rates(plan, search), _budget(plan, results, minutes)])


def _block(language: str, plan: Comparison, base: dict[str, Any], results: Mapping[Cell, dict[str, Any]]) -> str:
    lines = [
        f"### {SOURCE} → {language}\n",
        f"| {' | '.join(['method', 'rows', 'seeds', *COLUMNS])} |",
        "|---" + "|---:" * (2 + len(COLUMNS)) + "|",
        f"| base | | | {' | '.join(_cells(language, [base], base))} |",
    ]
    for size in sorted(plan.sizes):
        for method in plan.methods:
            found = [results[cell]["scores"] for cell in results if cell[:3] == (method, language, size)]
            if found:
                lines.append(
                    f"| {METHODS[method]} | {size} | {len(found)} | {' | '.join(_cells(language, found, base))} |"
                )
    return "\n".join(lines)


def _cells(language: str, found: Rows, base: dict[str, Any]) -> list[str]:
    """One line's cells; `found` holds the scores of each seed."""
    length = base[SOURCE]["characters"] or math.nan
    ratios = [{"characters_ratio": scores[SOURCE]["characters"] / length} for scores in found]
    full = [{**scores, SOURCE: {**scores[SOURCE], **ratio}} for scores, ratio in zip(found, ratios, strict=True)]
    return [
        spread([factor * scores[code or language][metric] for scores in full], form)
        for code, metric, factor, form in COLUMNS.values()
    ]


def spread(values: Sequence[float], form: str) -> str:
    """`mean ± sample standard deviation`, or the value alone where there is one."""
    text = format(mean(values), form)
    return f"{text} ± {format(stdev(values), form)}" if len(values) > 1 else text


def _rates(plan: Comparison, search: Search) -> str:
    """The candidates of the search, and a line for each choice at the edge of its candidates."""
    lines = [
        f"Learning rates were searched in {search.language} and hold for all languages: {plan.search_steps} steps on",
        f"{plan.search_size} rows, scored on {len(starter_rows()) // HELD_OUT_EVERY} other training rows. Chosen is",
        "the one with the lowest target bits per byte, of those with most answers in the prompt's language that do",
        "not repeat it (within two of the best), whose English bits per byte rose against base by at most",
        f"{MAX_ENGLISH_RISE:.0%} and whose target's did not rise. For SFT, then DPO it is the DPO stage's; its SFT",
        "stage takes SFT's.\n",
        "| method | learning rate: answers / bits per byte / rise of English | chosen |",
        "|---|---|---|",
    ]
    edges = []
    for method, rate in search.rates.items():
        found, english = search.candidates[method], search.base.english
        tried = (f"{r:g}: {c.fidelity:.0%} / {c.target:.3f} / {c.english / english - 1:+.1%}" for r, c in found.items())
        lines.append(f"| {METHODS[method]} | {', '.join(tried)} | {rate:g} |")
        if rate in (LEARNING_RATES[method][0], LEARNING_RATES[method][-1]):
            side = "lowest" if rate == LEARNING_RATES[method][0] else "highest"
            edges.append(f"- {METHODS[method]}: {rate:g} is the {side} candidate; a better one may lie beyond.")
    return "\n".join([*lines, *(["", *edges] if edges else [])])


def _budget(plan: Comparison, results: Mapping[Cell, dict[str, Any]], minutes: float) -> str:
    import torch

    steps = ", ".join(f"{plan.steps(size)} on {size}" for size in sorted(plan.sizes))
    seconds = [sum(result["seconds"].values()) for result in results.values()]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    packages = ("axolotl-clo", "axolotl", "transformers", "trl", "torch", "lm_eval")
    return "\n".join(
        [
            f"{len(results)} of {len(plan.cells)} runs, {sum(seconds) / 60:.0f} minutes of training and scoring;",
            f"optimizer steps: {steps} rows. This call took {minutes:.0f} minutes, {plan.jobs} at a time on {device}.",
            f"Base model: {plan.base_model.name}. Python {platform.python_version()}, "
            + ", ".join(f"{name} {version(name)}" for name in packages)
            + ".",
        ]
    )


# ---- the command line ----


def parse(arguments: list[str] | None) -> Comparison:
    """The checked options.

    Raises:
        SystemExit: an option is wrong; the message names it and what is accepted.
    """
    rows = starter_rows()
    languages = [code for code in rows[0]["prompt"] if code != SOURCE]
    parser = argparse.ArgumentParser(prog=f"python -m {COMMAND}", description=main.__doc__)
    add = parser.add_argument
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD", help="of %(choices)s")
    add("--languages", nargs="+", choices=languages, default=["de", "sw"], metavar="LANG", help="of %(choices)s")
    size, seed, count = (_whole_number(*bounds) for bounds in ((1, len(rows)), (0, 2**32 - 1), (1, 2**31)))
    add("--sizes", nargs="+", type=size, metavar="ROWS", help=f"parallel rows trained on, 1 to {len(rows)}")
    add("--seeds", nargs="+", type=seed, metavar="SEED", help="of the rows drawn and of training")
    add("--steps", type=_whole_number(2, 2**31), help="optimizer steps of a run; default: a rule over the size")
    add("--out", type=Path, default=Path("outputs/compare"), help="folder of all runs and of table.md")
    add("--base-model", type=Path, default=DEFAULT_MODEL, help="folder of a chat model; default: SmolLM2, converted")
    add("--jobs", type=count, help="runs at a time; default: 2 on a CPU with more than one core, else 1")
    add("--keep-models", action="store_true", help="leave the weights of the runs in the table")
    add("--small", action="store_true", help=f"a grid for two CPU cores: {SMALL}")
    given = parser.parse_args(arguments)
    if given.base_model != DEFAULT_MODEL and not (given.base_model / "config.json").is_file():
        parser.error(
            f"argument --base-model: no config.json in {given.base_model}; a folder with a model in the Hugging Face "
            "format is accepted (`hf download NAME --local-dir FOLDER` makes one)"
        )
    grid = SMALL if given.small else FULL
    return Comparison(
        out=given.out,
        base_model=given.base_model,
        methods=tuple(dict.fromkeys(given.methods)),
        languages=tuple(dict.fromkeys(given.languages)),
        sizes=tuple(dict.fromkeys(given.sizes or grid.sizes)),
        seeds=tuple(dict.fromkeys(given.seeds or grid.seeds)),
        grid=grid,
        given_steps=given.steps,
        jobs=given.jobs or _default_jobs(),
        keep_models=given.keep_models,
    )


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def check(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"got {text!r}; whole numbers from {least} to {most} are accepted")
        return int(text)

    return check


def _default_jobs() -> int:
    import torch

    return 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def check_disk_and_memory(plan: Comparison) -> None:
    """Stop before anything is trained where disk or memory is short.

    Raises:
        NotEnough: names the folder of --out or the memory, what is free and what is needed.
    """
    model_gb = sum(file.stat().st_size for file in plan.base_model.iterdir()) / 1e9
    kept = len(plan.cells) if plan.keep_models else 0
    # A worker has at most two models on disk, those of two stages; a kept run too.
    name = f"{COMMAND}: --out"
    check_machine(plan.out, 1 + 2 * model_gb * (plan.jobs + kept), NEEDED_MEMORY_GB * plan.jobs, name)


def main(arguments: list[str] | None = None) -> None:
    """Compare base, SFT, SFT then DPO, ORPO and CLO on the starter rows with equal budgets; print one table."""
    plan = parse(arguments)
    plan.out.mkdir(parents=True, exist_ok=True)
    if plan.base_model == DEFAULT_MODEL:
        ensure_smollm2(plan.base_model, COMMAND)
    check_disk_and_memory(plan)
    try:
        failed = compare(plan)
    except KeyboardInterrupt:
        raise SystemExit(f"{COMMAND}: stopped; the same command goes on with the runs that are missing") from None
    for name, error in failed.items():
        print(f"\n✗ {name} failed: {error}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
