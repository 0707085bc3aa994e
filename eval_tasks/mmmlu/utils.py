# The harness executes this file anew for each `!function` line of a YAML, so nothing is done here.
from functools import partial

from axolotl_clo.evaluate.benchmarks import of_subject


def __getattr__(subject):
    """`!function utils.anatomy` keeps the rows of anatomy; a YAML cannot pass arguments."""
    if subject.startswith("_"):
        raise AttributeError(subject)
    return partial(of_subject, subject=subject)
