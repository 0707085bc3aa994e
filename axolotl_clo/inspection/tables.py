"""What `inspect_run` found, for a reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

GIB, MIB = 2**30, 2**20


def show(found: dict[str, Any], console: Console) -> None:
    """Print everything.

    Args:
        found: of `inspect_run`.
        console: where to.
    """
    _print_head(console, found)
    for sample in found["samples"]:
        _print_sample(console, sample)
    for table in (_rows(found), _tokens(found), _parameters(found), _memory(found)):
        if table is not None:
            console.print(table)
    for line in (*_length(found), *(f"Note: {note}" for note in found["notes"])):
        console.print(Text(line), soft_wrap=True)


def _print_head(console: Console, found: dict[str, Any]) -> None:
    config, model = found["config"], found["model"]
    source, *targets = config["languages"]
    adapter = f", {config['adapter']}" if config["adapter"] else ""
    where = f"{config['engine']}, {_count(config['gpus'], 'GPU')}" if config["gpus"] > 1 else config["engine"]
    console.print(
        f"[bold]{escape(config['file'])}[/bold] is valid: {escape(config['base_model'])} ({model['class']}, "
        f"{config['dtype']}{adapter}), {source} to {', '.join(targets)}, {where}",
        highlight=False,
        soft_wrap=True,
    )


def _print_sample(console: Console, sample: dict[str, Any]) -> None:
    console.print(
        f"\nRow {sample['row']} as the model reads it: [cyan]prompt[/cyan] ‖ [green]response[/green], tokens between "
        "│, [magenta]special tokens[/magenta]",
        highlight=False,
        soft_wrap=True,
    )
    for sequence in sample["sequences"]:
        role = sequence["name"].replace("_", ", ")
        heard = sequence["identified"]
        wrong = heard not in (None, sequence["response_language"])
        said = f"; identified as {heard}" if wrong else ""
        size = [sum(piece["tokens"] for piece in sequence[part]) for part in ("prompt", "response")]
        console.print(
            f"[bold]{role}[/bold] ({sequence['prompt_language']} → {sequence['response_language']}{said}; "
            f"{size[0]} + {size[1]} tokens)",
            highlight=False,
        )
        console.print(
            Text.assemble(*_pieces(sequence["prompt"], "cyan"), " ‖ ", *_pieces(sequence["response"], "green"))
        )


def _pieces(pieces: list[dict[str, Any]], style: str) -> Iterator[tuple[str, str]]:
    for i, piece in enumerate(pieces):
        if i:
            yield "│", "dim"
        yield piece["text"].replace("\n", "⏎"), "magenta" if piece["special"] else style


def _rows(found: dict[str, Any]) -> Table:
    rows, steps = found["rows"], found["steps"]
    title = (
        f"Rows: {rows['train']:,} to train on, {rows['held_out']:,} held out; {steps['total']:,} steps of "
        f"{steps['rows_per_step']:.4g} rows, {steps['epochs']:.3g} epochs"
    )
    table = Table("dataset", "what", "examples", "row numbers", title=title, title_justify="left")
    for one in rows["datasets"]:
        name = escape(one["path"]) + (" (held out)" if one["held_out"] else "")
        table.add_row(name, "can be used", f"{one['kept']:,} of {one['examples']:,}")
        for reason, numbers in sorted(one["dropped"].items()):
            table.add_row("", f"dropped: {escape(reason)}", f"{len(numbers):,}", _some(numbers))
        if one["suspects"]:
            text = "kept, but the response looks like the other language"
            table.add_row("", text, f"{len(one['suspects']):,}", _some(one["suspects"]))
    return table


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")


def _tokens(found: dict[str, Any]) -> Table:
    tokens = found["tokens"]
    layouts = tokens["layouts"]
    saved = [f"{layouts[name]:,} {name} ({layouts[name] / layouts['padded']:.0%})" for name in ("packed", "shared")]
    title = f"Tokens of an epoch: {layouts['padded']:,} padded, {', '.join(saved)}; {tokens['scored']:,} are scored"
    columns = ("direction", "pairs", "prompts", "chosen responses", "rejected responses", "longest sequence")
    table = Table(*columns, title=title.replace("shared", "with each prompt once"), title_justify="left")
    for name, of in tokens["directions"].items():
        table.add_row(name, *(f"{of[key]:,}" for key in ("pairs", "prompts", "chosen", "rejected", "longest")))
    return table


def _parameters(found: dict[str, Any]) -> Table:
    model = found["model"]
    kind = "LoRA adapts" if found["config"]["adapter"] else "trained modules"
    title = f"clo.train_modules: {model['train_modules']}; {kind}: {_targets(model['targets'])}"
    table = Table("parameters", "trained", "all", title=escape(title), title_justify="left")
    for name, of in model["parameters"].items():
        table.add_row(name, f"{of['trained']:,}", f"{of['all']:,}")
    total = [sum(of[key] for of in model["parameters"].values()) for key in ("trained", "all")]
    table.add_row("total", *(f"{value:,}" for value in total), style="bold")
    return table


def _targets(paths: list[str]) -> str:
    """Paths with numbers of layers taken together, such as `model.layers.0-29.self_attn`."""
    found: dict[str, list[int]] = {}
    for path in paths:
        number = next((part for part in path.split(".") if part.isdigit()), None)
        form = path.replace(f".{number}.", ".{}.", 1) if number else path
        found.setdefault(form, []).append(int(number) if number else 0)
    return ", ".join(form.format(_ranges(numbers)) if "{}" in form else form for form, numbers in found.items())


def _ranges(numbers: list[int]) -> str:
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)


def _memory(found: dict[str, Any]) -> Table | None:
    memory = found["memory"]
    parts = memory["parts"]
    if parts is None:
        return None
    worst = max(parts["moments"], key=lambda name: parts["moments"][name])
    other = "without" if memory["checkpointing"] else "with"
    batch = f"{_count(memory['batch']['rows'], 'row')}, {memory['batch']['tokens']:,} tokens"
    title = f"Memory of {'each GPU' if found['config']['gpus'] > 1 else 'the device'}, for the largest batch ({batch})"
    table = Table("part", "size", "what", title=title, title_justify="left")
    kept = ", ".join(f"{_size(size)} {how} checkpointing" for how, size in sorted(memory["activations"].items()))
    what = {
        "weights": "",
        "gradients": "of what trains, as far as they are there at that moment",
        "optimizer": memory["optimizer"],
        "activations": f"at the end of the forward pass: {kept}",
        "working": f"what runs meanwhile; logits at once: {_size(memory['logits'])}",
        "buffers": "of communication between GPUs",
    }
    for name, text in what.items():
        if parts[name] or name != "buffers":
            table.add_row(name, _size(parts[name]), text)
    more = f"; {_size(memory['total'][other])} {other} gradient checkpointing" if other in memory["total"] else ""
    table.add_row("total", _size(parts["total"]), f"at its highest, in the {worst}{more}", style="bold")
    if parts["host"]:
        table.add_row("host", _size(parts["host"]), "offloaded, for each GPU")
    return table


def _length(found: dict[str, Any]) -> Iterator[str]:
    time, measured = found["time"], found["time"]["calibration"]
    yield f"The run takes at least {time['operations']:.3g} floating-point operations."
    if measured is None:
        yield "With --calibrate a few real steps tell how long that is on this machine."
        return
    gpus = found["config"]["gpus"]
    how = f", {gpus} of them sharing it without loss" if gpus > 1 else ""
    speed = measured["micro_tokens"] / measured["micro_seconds"]
    took = _duration(time["seconds"])
    yield f"About {took} on {measured['device']}{how}: {speed:,.0f} tokens/s forward and backward."
    if measured["peak"] is not None:
        yield f"The steps took {_size(measured['peak'])} above the loaded model."


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"
