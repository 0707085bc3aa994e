"""The dataset card of a parallel dataset: front matter for the hub, and what a reader must know."""

from __future__ import annotations

from typing import Any

import yaml


def dataset_card(manifest: dict[str, Any]) -> str:
    """The card's text, made from the manifest alone."""
    source, *targets = manifest["languages"]
    counts = manifest["counts"]
    # No `configs`: with them `datasets` keeps a local folder's rows under a key that does not change with its files.
    front = {
        "language": manifest["languages"],
        "multilinguality": ["translation"],
        "task_categories": ["text-generation"],
        "tags": ["axolotl-clo", "machine-translated"],
    }
    engine = manifest["engine"]
    names = ", ".join(targets)
    dropped = [
        f"| {target} | {why} | {count} |"
        for target in targets
        for why, count in sorted(counts["languages"][target]["dropped"].items(), key=lambda item: -item[1])
    ] + [f"| {source} | {why} | {count} |" for why, count in counts["unusable"].items()]
    told = "\n".join(f"    {key}: {value}" for key, value in engine.items())
    kept = "\n".join(f"| {target} | {counts['languages'][target]['kept']} |" for target in targets)
    lines = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {manifest['source']['name']}, {source} to {names}",
        f"Rows of `{manifest['source']['name']}` (fingerprint `{manifest['source']['fingerprint']}`), translated by "
        f"machine with axolotl-clo {manifest['versions']['axolotl-clo']}. The licence is that of the source.",
        f"## Engine\n\n{told}",
        f"## Rows\n\n{counts['source_rows']} source rows, {counts['rows']} rows here.\n\n"
        f"| language | translations kept |\n|---|---|\n{kept}",
        "Left out (each is in `rejected.jsonl` with its reason):\n\n| language | reason | rows |\n|---|---|---|\n"
        + "\n".join(dropped)
        if dropped
        else "Nothing was left out.",
        "A language that did not pass is null in its row. `scores` holds what the filter measured, so the rows can be "
        "filtered again.",
        "## Train\n\n```yaml\ndatasets:\n  - path: PATH_OF_THIS_FOLDER\n    type: axolotl_clo.cross_lingual\nclo:\n"
        f"  source_lang: {source}\n  target_lang: {targets[0] if len(targets) == 1 else '[' + names + ']'}\n```",
    ]
    return "\n\n".join(lines) + "\n"
