"""Cross-Lingual Optimization (CLO) as an Axolotl plugin.

Importing this package loads neither torch nor axolotl: the plugin class, and the prompt strategies that Axolotl's
preference loaders look up here, are resolved on first use, so that tools which only list entry points or read
`__version__` stay fast.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axolotl_clo.plugin import CLOPlugin as CLOPlugin

__all__ = ["CLOPlugin", "__version__"]

_STRATEGIES = ("preference", "preference_held_out", "kto", "kto_held_out")


def __getattr__(name: str) -> Any:
    if name == "CLOPlugin":
        from axolotl_clo.plugin import CLOPlugin

        return CLOPlugin
    if name in _STRATEGIES:
        from axolotl_clo import pairs

        return getattr(pairs, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("axolotl-clo")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
