"""What a trained model's card says about CLO."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from axolotl_clo.datasets import STARTER, starter_folder
from axolotl_clo.redact import redact, redact_options
from axolotl_clo.schema import CLOConfig

CITATION = """@inproceedings{lee-etal-2025-cross,
  title     = {Cross-Lingual Optimization for Language Transfer in Large Language Models},
  author    = {Lee, Jungseob and Hong, Seongtae and Moon, Hyeonseok and Lim, Heuiseok},
  booktitle = {Proceedings of the 63rd Annual Meeting of the Association for Computational Linguistics
               (Volume 1: Long Papers)},
  year      = {2025},
  doi       = {10.18653/v1/2025.acl-long.734},
  url       = {https://arxiv.org/abs/2505.14297}
}"""

_YAML = re.compile(r"(?<=```yaml\n).*?(?=\n```)", re.DOTALL)
_HEADING = "## Cross-Lingual Optimization"


def add_clo_section(card: Path, clo: CLOConfig, cfg: Any) -> None:
    """Append method, data, languages and citation to a model card that Axolotl has written; idempotent.

    The card holds the whole config: keys, tokens and passwords in it are hidden.
    """
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if _HEADING in text:
        return
    text = _YAML.sub(lambda config: redact_options(config[0]), redact(text))
    paths = [str(d["path"]) for d in cfg.datasets or []]
    data = ", ".join(f"`{STARTER if p == str(starter_folder()) else p}`" for p in paths)
    rows = [
        ("Method", "CLO: preference for the prompt's language in both directions, plus NLL"),
        ("Base model", f"`{cfg.base_model}`"),
        ("Languages", f"{clo.source_lang} (kept), {', '.join(clo.target_langs)} (added)"),
        ("Data", f"parallel rows of {data}"),
        ("Trained", clo.train_modules + (f", layers {clo.layers}" if clo.layers else "")),
        ("λ (NLL weight), β", f"{clo.nll_weight}, {clo.beta or 'none'}; NLL on {clo.nll_languages}"),
        ("Preference loss", clo.preference_loss),
    ]
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    section = f"{_HEADING}\n\n{table}\n\nTrained with the `axolotl-clo` plugin.\n\n```bibtex\n{CITATION}\n```\n"
    card.write_text(f"{text.rstrip()}\n\n{redact(section)}", encoding="utf-8")
