"""`axolotl-clo generate` and `judge`: what a user types to compare models by their answers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from axolotl_clo.cli_common import (
    COST,
    RUN,
    SERVER,
    STDERR,
    ApiKeyEnv,
    AsJson,
    Concurrency,
    cost,
    price_option,
    progress_bar,
    retries_option,
    say,
    stoppable,
    token_budget_option,
    typed_command,
)
from axolotl_clo.cli_report import report

PROMPTS, MODEL = "Prompts", "Model"


def register(app: typer.Typer) -> None:
    """Add the commands of evaluation to the `axolotl-clo` command."""
    app.command()(generate)
    app.command()(judge)
    app.command()(report)


def generate(
    prompts: Annotated[
        str,
        typer.Argument(help="`starter:LANG`, or a file."),
    ],
    model: Annotated[str, typer.Option(help="Hub name or folder of the model; with --base-url its name there.")],
    out: Annotated[Path, typer.Option(help="Answers file (JSONL). Run the same command again to go on.")],
    language: Annotated[
        str | None,
        typer.Option(rich_help_panel=PROMPTS, help="Language to take of the file, or several with commas; else all."),
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=PROMPTS, help="Take the first so many rows.")
    ] = None,
    shots: Annotated[
        int, typer.Option(min=0, rich_help_panel=PROMPTS, help="Examples before each prompt, as earlier turns.")
    ] = 0,
    shots_from: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=PROMPTS,
            help="Where examples come from: a file with columns `prompt` and `response`. Default: the training part of "
            "the starter rows. A prompt is never its own example.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, rich_help_panel=MODEL, help="Longest answer in tokens, thinking included.")
    ] = 512,
    temperature: Annotated[float, typer.Option(min=0, rich_help_panel=MODEL, help="Of sampling; 0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(rich_help_panel=MODEL, help="Of sampling, and of the draw of examples.")] = 0,
    chat_template: Annotated[
        bool | None,
        typer.Option(
            "--chat-template/--no-chat-template",
            rich_help_panel=MODEL,
            help="Default: the tokenizer's template where it has one, else plain text (Q: … A: …).",
        ),
    ] = None,
    template_options: Annotated[
        str, typer.Option(rich_help_panel=MODEL, help="JSON for the template, such as '{\"enable_thinking\": false}'.")
    ] = "{}",
    adapter: Annotated[
        str | None, typer.Option(rich_help_panel=MODEL, help="Hub name or folder of a PEFT adapter (LoRA).")
    ] = None,
    revision: Annotated[str | None, typer.Option(rich_help_panel=MODEL, help="Revision of the model.")] = None,
    dtype: Annotated[
        str,
        typer.Option(
            rich_help_panel=MODEL,
            help="auto (the checkpoint's on a GPU, float32 on a CPU), float32, float16 or bfloat16.",
        ),
    ] = "auto",
    device: Annotated[
        str | None, typer.Option(rich_help_panel=MODEL, help="cpu, cuda, cuda:N, or auto (spread over all GPUs).")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, rich_help_panel=MODEL, help="Prompts in a batch.")] = 8,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", rich_help_panel=MODEL, help="Run code that comes with the model.")
    ] = False,
    base_url: Annotated[
        str | None,
        typer.Option(rich_help_panel=SERVER, help="Ask a server instead, such as http://localhost:8000/v1."),
    ] = None,
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    concurrency: Concurrency = 8,
    token_budget: Annotated[int | None, token_budget_option(SERVER)] = None,
    timeout: Annotated[float, typer.Option(rich_help_panel=SERVER, help="Seconds to wait for an answer.")] = 600.0,
    retries: Annotated[int, retries_option(SERVER)] = 5,
    as_json: AsJson = False,
) -> None:
    """Write a model's answers to a file of prompts, for `axolotl-clo judge` and `report`.

    PROMPTS is `starter:ko`, the held-out starter rows in a language (`starter:ko,en` in two), or a file (JSONL, JSON,
    CSV, TSV, Parquet) with a column `prompt` and, where there are any, `id` and `language`. Parallel rows have
    `prompt: {en: …, ko: …}`.

    Answers are greedy. Those of a model that thinks are what stands after its thinking; `text` keeps all of it. A run
    that was killed goes on with the same command.

    **Examples**

        axolotl-clo generate starter:ko --model outputs/clo-ko --out answers/clo.jsonl

        axolotl-clo generate prompts.jsonl --model meta-llama/Llama-2-7b-hf --shots 5 --out answers/base-5.jsonl

        axolotl-clo generate starter:ko,en --base-url http://localhost:8000/v1 --model clo --out answers/clo.jsonl
    """
    from axolotl_clo.evaluate.answers import counts, read_answers
    from axolotl_clo.evaluate.generate import Generation, PromptOptions
    from axolotl_clo.evaluate.models import ModelOptions
    from axolotl_clo.translate.engines import EngineOptions

    server = None
    if base_url is not None:
        server = EngineOptions(
            base_url=base_url,
            api_key_env=api_key_env,
            concurrency=concurrency,
            token_budget=token_budget,
            timeout=timeout,
            retries=retries,
        )
    options = ModelOptions(
        model=model,
        revision=revision,
        adapter=adapter,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        chat_template=chat_template,
        template_options=_json_object("--template-options", template_options),
        trust_remote_code=trust_remote_code,
        server=server,
    )
    asked = PromptOptions(prompts, tuple(language.split(",")) if language else (), top, shots, shots_from)
    run = Generation(asked, options, typed_command(base_url))
    for reason, count in run.prompts.left_out.items():
        say(f"Prompts left out, {escape(reason)}: {count}")
    with stoppable(), _progress("answering", "prompts") as on_progress:
        about = run.run(out, on_progress)
    problems = counts(read_answers(out).rows)
    if as_json:
        print(json.dumps({**about, "not_whole": problems, "file": str(out)}, ensure_ascii=False))
        return
    for reason, count in problems.items():
        say(f"Answers not whole, {escape(reason)}: {count} of {about['rows']}")
    say(f"{about['rows']} answers in {escape(str(out))}")


def judge(
    a: Annotated[
        Path, typer.Argument(help="Answers of the first model, whose wins are counted (`generate` writes them).")
    ],
    b: Annotated[Path, typer.Argument(help="Answers of the second.")],
    model: Annotated[str, typer.Option(help="The judge, as its server names it.")],
    out: Annotated[Path, typer.Option(help="Folder for verdicts and result. Run the same command again to go on.")],
    base_url: Annotated[
        str | None,
        typer.Option(rich_help_panel=SERVER, help="Address of the judge's server, such as http://localhost:8000/v1."),
    ] = None,
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    concurrency: Concurrency = 8,
    timeout: Annotated[float, typer.Option(rich_help_panel=SERVER, help="Seconds to wait for a verdict.")] = 600.0,
    retries: Annotated[int, retries_option(SERVER, ", for prose too")] = 5,
    max_new_tokens: Annotated[
        int,
        typer.Option(min=1, rich_help_panel=SERVER, help="Longest reply in tokens; a judge that thinks needs more."),
    ] = 1024,
    seed: Annotated[int, typer.Option(rich_help_panel=SERVER, help="Seed that the judge is sent.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", rich_help_panel=COST, help="Ask the judge without asking you.")] = False,
    token_budget: Annotated[int | None, token_budget_option(COST, "; needs no --yes")] = None,
    price: Annotated[float | None, price_option(COST)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=COST, help="Show the estimate; ask and write nothing.")
    ] = False,
    common: Annotated[
        bool, typer.Option("--common", rich_help_panel=RUN, help="Leave out prompts that only one model answers.")
    ] = False,
    max_answer_chars: Annotated[
        int, typer.Option(min=1, rich_help_panel=RUN, help="Show the judge no more of an answer, in characters.")
    ] = 20_000,
    as_json: AsJson = False,
) -> None:
    """Win rate of one model's answers against another's, by a judge behind any OpenAI-compatible server.

    A and B are answers of `axolotl-clo generate` to the same prompts; wins are those of A, the first.

    Each pair is judged in both orders. Wins, ties and losses are of prompts; the win rate is the mean verdict with a
    95 % bootstrap interval, and beside it stands what it would be if both models' answers were equally long. Empty and
    equal answers are decided without the judge.

    **Examples**

        axolotl-clo judge answers/clo.jsonl answers/sft.jsonl --model gpt-4o --out judged/clo-sft --dry-run --price 5

        axolotl-clo judge answers/clo.jsonl answers/sft.jsonl --base-url http://localhost:8000/v1
        --model Qwen/Qwen2.5-72B-Instruct --out judged/clo-sft --yes
    """
    from axolotl_clo.evaluate.judge import NO_VERDICT, Estimate, Judgement
    from axolotl_clo.translate.engines import EngineOptions

    options = EngineOptions(
        model=model,
        base_url=base_url,
        api_key_env=api_key_env,
        concurrency=concurrency,
        token_budget=token_budget,
        timeout=timeout,
        retries=retries,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    run = Judgement(a, b, options, common, max_answer_chars, typed_command(base_url))

    def tell(estimate: Estimate) -> None:
        pairs, skipped = len(run.pairs), sum(pair.rule() is not None for pair in run.pairs)
        say(
            f"Estimate: {estimate.requests:,} requests for {pairs:,} pairs, about {estimate.tokens:,} "
            f"tokens{cost(estimate.tokens, price)}; {skipped} pairs need no judge"
        )

    def confirm(estimate: Estimate) -> None:
        tell(estimate)
        if yes or token_budget is not None:
            return
        if not sys.stdin.isatty():
            raise ValueError("--yes or --token-budget N is needed to ask the judge where nobody can be asked")
        typer.confirm("Ask the judge?", abort=True, err=True)

    for reason, count in (run.left_out | run.shown_otherwise()).items():
        say(f"{escape(reason)}: {count} of {len(run.pairs)}", style="yellow")
    if dry_run:
        tell(run.estimate())
        return
    with stoppable(), _progress("judging", "verdicts") as on_progress:
        result = run.run(out, on_progress, confirm)
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    if result["languages"]:
        _print_table(result)
    else:
        say("Nothing was judged.", style="red")
    for reason, count in (result["by_rule"] | result["unjudged"]).items():
        what = "decided without the judge" if reason in result["by_rule"] else "not judged"
        say(f"{what}, {escape(reason)}: {count}")
    if NO_VERDICT in result["unjudged"]:
        say(
            "`detail` in verdicts.jsonl says what the judge answered in place of a verdict. A judge that thinks needs "
            "more --max-new-tokens, and a small model may be no judge at all; another --out judges anew."
        )
    say(f"Written to {escape(str(out))}")


def _print_table(result: dict[str, Any]) -> None:
    """Wins, ties and losses in per cent of the prompts, as the second paper's Table 1 has them."""
    first, second = (
        side["model"] + (f" (k = {side['shots']})" if side["shots"] else "") for side in (result["a"], result["b"])
    )
    table = Table(
        title=f"{escape(first)} against {escape(second)}, judged by {escape(result['judge'])}", title_justify="left"
    )
    table.add_column("language")
    for column in ("prompts", "win %", "tie %", "loss %", "win rate", "at equal length", "first shown"):
        table.add_column(column, justify="right")
    languages = result["languages"]
    for language, found in languages.items():
        if language == "all" and len(languages) == 2:
            continue
        shares = [f"{100 * found[what] / found['n']:.1f}" for what in ("wins", "ties", "losses")]
        rate = _rate(found["win_rate"], found["interval"])
        controlled = _rate(found["length_controlled"], found["length_controlled_interval"])
        place = "–" if found["first_shown"] is None else f"{100 * found['first_shown']:.0f} %"
        table.add_row(language, str(found["n"]), *shares, rate, controlled, place)
    console = Console()
    console.print(table)
    console.print(
        "In brackets 95 % intervals; where one holds 50 the difference may be chance. `first shown`: how often "
        "the judge preferred the answer it saw first; far from 50 % it goes by place."
    )


def _rate(rate: float, interval: list[float] | None) -> str:
    ends = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return escape(f"{100 * rate:.1f}{ends}")


def _json_object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{option}: not valid JSON ({error}); an object such as '{{\"key\": 1}}' is accepted"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{option}: an object such as '{{\"key\": 1}}' is accepted, got {type(value).__name__}")
    return value


@contextmanager
def _progress(verb: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; elsewhere a line each time another tenth is done."""
    bar = progress_bar(verb)
    task = bar.add_task(verb, total=None, speed="")
    started_with, told, since = -1, 0, 0.0

    def show(done: int, total: int) -> None:
        nonlocal started_with, told, since
        if started_with < 0:
            started_with, told, since = done, done, time.monotonic()
            if done:
                say(f"{done} of {total} {unit} were finished before")
            bar.start()  # not before: the user may be asked something first
        speed = f"{(done - started_with) / max(time.monotonic() - since, 1e-3):.2f} {unit}/s"
        bar.update(task, completed=done, total=total, speed=speed)
        if not STDERR.is_terminal and done > started_with and (done >= told + total / 10 or done == total):
            told = done
            say(f"{done} of {total} {unit}, {speed}")

    try:
        yield show
    finally:
        bar.stop()
