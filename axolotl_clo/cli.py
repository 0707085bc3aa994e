"""The `axolotl-clo` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from axolotl_clo import cli_evaluate
from axolotl_clo.cli_common import (
    RUN,
    STDERR,
    api_key_env_option,
    concurrency_option,
    cost,
    price_option,
    progress_bar,
    retries_option,
    stoppable,
    token_budget_option,
)
from axolotl_clo.cli_inspect import inspect, print_counts, side_by_side
from axolotl_clo.redact import redact

if TYPE_CHECKING:
    from axolotl_clo.translate import pipeline

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Cross-Lingual Optimization: parallel rows from English instructions, and models compared by their answers.",
)

SOURCE, ENGINE, QUALITY = "Source", "Engine", "Quality"


def main() -> None:
    """Entry point: errors become one line that says what to change."""
    from axolotl_clo.translate.engines import EngineError
    from axolotl_clo.translate.store import OutputError

    try:
        app()
    except (ValueError, OSError, EngineError, OutputError) as error:
        STDERR.print(f"[red]error:[/red] {escape(redact(str(error)))}", soft_wrap=True)
        sys.exit(1)


@app.callback()
def _commands() -> None:
    """Cross-Lingual Optimization: parallel rows from English instructions, and models compared by their answers."""


@app.command()
def translate(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(help="File (JSONL, JSON, CSV, TSV, Parquet), folder, or hub dataset OWNER/NAME.")
    ],
    to: Annotated[str, typer.Option(help="Target language, or several with commas: `ko` or `sw,yo`.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the dataset. Run the same command again to go on.")
    ] = None,
    from_: Annotated[str, typer.Option("--from", help="Language of the source.")] = "en",
    preset: Annotated[
        str,
        typer.Option(
            rich_help_panel=SOURCE,
            help="Form of the rows: auto, alpaca, prompt-response, messages, oasst1 or oasst2 (English first turns, "
            "best-ranked replies first).",
        ),
    ] = "auto",
    top: Annotated[int | None, typer.Option(min=1, rich_help_panel=SOURCE, help="Take the first so many rows.")] = None,
    prompt_column: Annotated[str | None, typer.Option(rich_help_panel=SOURCE, help="Column of the prompt.")] = None,
    response_column: Annotated[str | None, typer.Option(rich_help_panel=SOURCE, help="Column of the response.")] = None,
    split: Annotated[str, typer.Option(rich_help_panel=SOURCE, help="Split of a folder or hub dataset.")] = "train",
    subset: Annotated[str | None, typer.Option(rich_help_panel=SOURCE, help="Configuration of a hub dataset.")] = None,
    revision: Annotated[str | None, typer.Option(rich_help_panel=SOURCE, help="Revision of a hub dataset.")] = None,
    max_chars: Annotated[
        int,
        typer.Option(
            min=1, rich_help_panel=SOURCE, help="Longest text in characters; rows with longer ones are set aside."
        ),
    ] = 20_000,
    engine: Annotated[
        str,
        typer.Option(
            rich_help_panel=ENGINE,
            help="transformers, ctranslate2 (fastest), openai (any compatible server), command (any line-in line-out "
            "command), or one of another package.",
        ),
    ] = "transformers",
    model: Annotated[str | None, typer.Option(rich_help_panel=ENGINE, help="Hub name or folder of the model.")] = None,
    model_revision: Annotated[str | None, typer.Option(rich_help_panel=ENGINE, help="Revision of the model.")] = None,
    device: Annotated[str | None, typer.Option(rich_help_panel=ENGINE, help="cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(rich_help_panel=ENGINE, help="float32, float16, bfloat16, or int8 and others of CTranslate2."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, rich_help_panel=ENGINE, help="Segments in a batch.")] = None,
    beam_size: Annotated[int | None, typer.Option(min=1, rich_help_panel=ENGINE, help="Beams of the search.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=ENGINE, help="Longest translation of a segment in tokens.")
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(rich_help_panel=ENGINE, help="The command, such as 'apertium eng-spa'; no shell runs it."),
    ] = None,
    back_command: Annotated[
        str | None, typer.Option(rich_help_panel=ENGINE, help="The command for the other direction, for --round-trip.")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(rich_help_panel=ENGINE, help="Address of the server, such as http://localhost:8000/v1."),
    ] = None,
    api_key_env: Annotated[str, api_key_env_option(ENGINE)] = "OPENAI_API_KEY",
    concurrency: Annotated[int, concurrency_option(ENGINE)] = 8,
    token_budget: Annotated[int | None, token_budget_option(ENGINE, " at the server")] = None,
    price: Annotated[float | None, price_option(ENGINE)] = None,
    timeout: Annotated[
        float,
        typer.Option(min=0, rich_help_panel=ENGINE, help="Seconds to wait for a server's answer or a command's batch."),
    ] = 600.0,
    retries: Annotated[int, retries_option(ENGINE)] = 5,
    seed: Annotated[int, typer.Option(rich_help_panel=ENGINE, help="Seed for engines that sample.")] = 0,
    check_language: Annotated[
        bool, typer.Option(rich_help_panel=QUALITY, help="Drop rows one of whose sides is surely in another language.")
    ] = True,
    max_untranslated: Annotated[
        float, typer.Option(rich_help_panel=QUALITY, help="Largest share of words copied from the source (0 to 1).")
    ] = 0.4,
    max_repetition: Annotated[
        float,
        typer.Option(rich_help_panel=QUALITY, help="Largest share of n-grams repeated beyond the source (0 to 1)."),
    ] = 0.3,
    max_loop: Annotated[
        int, typer.Option(rich_help_panel=QUALITY, help="Longest passage, in words, that says the same over and over.")
    ] = 20,
    min_length_ratio: Annotated[
        float | None,
        typer.Option(rich_help_panel=QUALITY, help="Least length of a translation by its source, in characters."),
    ] = None,
    max_length_ratio: Annotated[
        float | None, typer.Option(rich_help_panel=QUALITY, help="Likewise the largest.")
    ] = None,
    max_length_deviation: Annotated[
        float,
        typer.Option(
            rich_help_panel=QUALITY, help="Farthest from the usual length ratio, in spreads of its logarithm."
        ),
    ] = 8.0,
    min_completeness: Annotated[
        float, typer.Option(rich_help_panel=QUALITY, help="Least log-odds that a translation is whole, not cut off.")
    ] = -2.0,
    min_alignment: Annotated[
        float,
        typer.Option(rich_help_panel=QUALITY, help="Least log-odds that both sides belong together (from 500 rows)."),
    ] = -1.25,
    max_numbers_missing: Annotated[
        float | None,
        typer.Option(rich_help_panel=QUALITY, help="Largest share of the source's numbers that is missing."),
    ] = None,
    round_trip: Annotated[
        bool,
        typer.Option(
            "--round-trip", rich_help_panel=QUALITY, help="Translate back and compare (chrF); doubles the work."
        ),
    ] = False,
    min_round_trip_chrf: Annotated[
        float, typer.Option(rich_help_panel=QUALITY, help="Least chrF (0 to 100) of the way there and back.")
    ] = 20.0,
    filter_rows: Annotated[
        bool, typer.Option("--filter/--no-filter", rich_help_panel=QUALITY, help="Whether failed checks drop a row.")
    ] = True,
    workers: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=RUN, help="Processes, each with an engine. Default: one per GPU, or one."),
    ] = None,
    engine_workers: Annotated[
        str | None, typer.Option(rich_help_panel=RUN, help="Ray cluster that translates: ray://HOST:PORT, or local.")
    ] = None,
    part_rows: Annotated[
        int,
        typer.Option(min=1, rich_help_panel=RUN, help="Rows that are committed together: the most a kill can cost."),
    ] = 200,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=RUN, help="Show ten rows and an estimate; write nothing.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", rich_help_panel=RUN, help="Print the manifest as JSON, and nothing else on stdout."),
    ] = False,
) -> None:
    """Translate English instruction data into parallel rows for `type: axolotl_clo.cross_lingual`.

    SOURCE is a file (JSONL, JSON, CSV, TSV, Parquet), a folder, or a hub dataset OWNER/NAME.

    Code, URLs, LaTeX, HTML, placeholders and numbers keep their bytes. Rows that fail a check go to `rejected.jsonl`
    with the reason. A run that was killed goes on with the same command; other thresholds with the same command filter
    again without translating again.

    **Examples**

        axolotl-clo translate tatsu-lab/alpaca --to ko --model facebook/m2m100_1.2B --out data/alpaca-en-ko

        axolotl-clo translate my.jsonl --to es --engine command --command 'apertium -u eng-spa' --out data/my-es

        axolotl-clo translate my.jsonl --to de --engine openai --base-url http://localhost/v1 --model qwen --out my-de
    """
    from axolotl_clo.translate.pipeline import Run
    from axolotl_clo.translate.quality import no_checks

    options = {name: value for name, value in context.params.items() if name not in _OF_THE_COMMAND}
    if not filter_rows:
        options |= no_checks()
    if out is None and not dry_run:
        raise ValueError("--out: the folder of the dataset is needed (or --dry-run, which writes nothing)")
    run = Run(source, to=to, from_=from_, engine=engine, **options)
    if dry_run or out is None:
        _preview(run, price, as_json)
        return
    with stoppable("Finished parts are safe"), _progress(run.source.total) as on_progress:
        manifest = run.run(out, on_progress, on_estimate=lambda estimate: STDERR.print(_in_words(estimate, price)))
    if as_json:
        print(json.dumps(manifest, ensure_ascii=False))
    else:
        print_counts(Console(), manifest)
        if not manifest["counts"]["rows"]:
            STDERR.print(
                "[red]No row passed[/red]: other thresholds with the same command filter again (--help, Quality)."
            )
        STDERR.print(f"Written to {escape(str(out))}; `axolotl-clo inspect {escape(str(out))}` shows what is in it.")


app.command()(inspect)
cli_evaluate.register(app)

_OF_THE_COMMAND = {"source", "to", "out", "from_", "engine", "price", "filter_rows", "dry_run", "as_json"}


def _preview(run: pipeline.Run, price: float | None, as_json: bool) -> None:
    table, estimate = run.preview()
    source, rows = run.task.source, table.to_pylist()
    if as_json:
        print(json.dumps({"rows": rows, "estimate": estimate and vars(estimate)}, ensure_ascii=False))
        return
    console = Console()
    for row in rows:
        said = {source: [turn["content"] for turn in row["turns"] or []]}
        said |= {target: row[f"{target}.texts"] or [row[f"{target}.failure"] or ""] for target in run.task.targets}
        problem = f", cannot be used: {row['problem']} ({row['detail']})" if row["problem"] else ""
        console.print(side_by_side(f"row {row['id']}{problem}", said))
    if estimate:
        console.print(_in_words(estimate, price))


def _in_words(estimate: pipeline.Estimate, price: float | None) -> str:
    minutes = estimate.seconds / 60
    time = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
    tokens = f", {estimate.tokens:,} tokens{cost(estimate.tokens, price)}" if estimate.tokens else ""
    return f"Estimate: {estimate.rows:,} rows in about {time}{tokens}"


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[pipeline.Progress], None]]:
    """A bar on a terminal; elsewhere a line each time another twentieth is done."""
    with progress_bar("translating") as bar:
        task = bar.add_task("rows", total=total, speed="")
        told = 0

        def show(progress: pipeline.Progress) -> None:
            nonlocal told
            elapsed = bar.tasks[0].elapsed or 0.0
            share = 100 * progress.failed / progress.new
            speed = f"{progress.new / elapsed if elapsed else 0:.1f} rows/s, {share:.1f} % cannot be used"
            bar.update(task, completed=progress.done, speed=speed)
            if not STDERR.is_terminal and (not total or progress.done >= told + total / 20):
                told = progress.done
                STDERR.print(f"{progress.done} of {total or '?'} rows, {speed}")

        yield show


if __name__ == "__main__":
    main()
