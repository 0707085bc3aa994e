# The harness executes this file anew for each `!function` line of a YAML, so nothing is done here.
from axolotl_clo.evaluate.tasks import bits_per_byte, documents, fidelity, preference

__all__ = ["bits_per_byte", "documents", "fidelity", "preference"]
