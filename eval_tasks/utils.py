# The harness executes this file anew for each `!function` line of a YAML, so nothing is done here.
from axolotl_clo.evaluate.tasks import (
    bits_per_byte,
    documents,
    fidelity,
    language_confusion_pass_rate,
    line_pass_rate,
    preference,
    prompt_documents,
    word_pass_rate,
)

__all__ = [
    "bits_per_byte",
    "documents",
    "fidelity",
    "language_confusion_pass_rate",
    "line_pass_rate",
    "preference",
    "prompt_documents",
    "word_pass_rate",
]
