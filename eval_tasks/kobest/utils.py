# The harness executes this file anew for each `!function` line of a YAML, so nothing is done here.
from axolotl_clo.evaluate.benchmarks import macro_f1

__all__ = ["macro_f1"]
