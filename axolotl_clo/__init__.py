"""Cross-Lingual Optimization (CLO) as an Axolotl plugin.

Importing this package loads neither torch nor axolotl: the plugin class is resolved on first use, so
that tools which only list entry points or read `__version__` stay fast.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axolotl_clo.plugin import CLOPlugin as CLOPlugin

__all__ = ["CLOPlugin", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "CLOPlugin":
        from axolotl_clo.plugin import CLOPlugin

        return CLOPlugin
    if name == "__version__":
        from importlib.metadata import version

        return version("axolotl-clo")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
