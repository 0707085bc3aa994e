"""English instruction data -> parallel data for CLO: `axolotl-clo translate` and its Python form.

from axolotl_clo.translate import inspect, translate

translate("my.jsonl", to="de", out="data/my", engine="command", command="apertium eng-deu")
inspect("data/my")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axolotl_clo.translate.pipeline import translate
    from axolotl_clo.translate.report import inspect

__all__ = ["inspect", "translate"]


def __getattr__(name: str) -> Any:
    if name == "translate":
        from axolotl_clo.translate.pipeline import translate

        return translate
    if name == "inspect":
        from axolotl_clo.translate.report import inspect

        return inspect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
