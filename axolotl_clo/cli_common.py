"""What the commands of `axolotl-clo` share: options that mean the same, progress, Ctrl-C, what is said on stderr."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from axolotl_clo.redact import public_url, redact_options

STDERR = Console(stderr=True)
CTRL_C = 130  # 128 + SIGINT, as shells have it

SERVER, COST, RUN = "Server", "Cost", "Run"


# Options of a server, under the heading of each command's help that they belong to.


def api_key_env_option(heading: str) -> Any:
    return typer.Option(rich_help_panel=heading, help="Environment variable with the server's key.")


def concurrency_option(heading: str) -> Any:
    return typer.Option(min=1, rich_help_panel=heading, help="Requests under way at a time.")


def token_budget_option(heading: str, more: str = "") -> Any:
    return typer.Option(min=1, rich_help_panel=heading, help=f"Stop after so many tokens{more}.")


def price_option(heading: str) -> Any:
    return typer.Option(min=0, rich_help_panel=heading, help="Price of a million tokens, for the estimate.")


def retries_option(heading: str, more: str = "") -> Any:
    return typer.Option(min=0, rich_help_panel=heading, help=f"Times a request is tried again{more}.")


ApiKeyEnv = Annotated[str, api_key_env_option(SERVER)]
Concurrency = Annotated[int, concurrency_option(SERVER)]
AsJson = Annotated[
    bool, typer.Option("--json", rich_help_panel=RUN, help="Print the result as JSON, and nothing else on stdout.")
]


def say(text: str, style: str | None = None) -> None:
    """Tell the user; stdout is for results."""
    STDERR.print(text, style=style, soft_wrap=True, highlight=False)


def cost(tokens: int, price: float | None) -> str:
    """What tokens cost, in brackets; empty without a price."""
    return f" (costs {tokens * price / 1e6:.2f} at {price} per million)" if price is not None else ""


def typed_command(base_url: str | None = None) -> str:
    """What the user typed, without secrets, and without a query in the server's address."""
    public = public_url(base_url) if base_url else ""
    typed = [argument.replace(base_url, public) if base_url else argument for argument in sys.argv[1:]]
    return redact_options(shlex.join(["axolotl-clo", *typed]))


@contextmanager
def stoppable(safe: str = "What is finished is safe") -> Iterator[None]:
    """Ctrl-C ends the command with a word on what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"\nStopped. {safe}; the same command goes on from here.")
        raise typer.Exit(CTRL_C) from None


def progress_bar(verb: str) -> Progress:
    """A bar that shows only on a terminal; its tasks have a field `speed`."""
    columns = (
        TextColumn(verb),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=STDERR, disable=not STDERR.is_terminal)
