"""The answer of a model that thinks aloud first."""

from __future__ import annotations

import re

_END = re.compile(
    r"</(?:\w+:)?(?:think|thinking|thought|thoughts|reasoning|reflection)>"  # DeepSeek-R1, Qwen3, Seed and others
    r"|\[/THINK\]|<\|END_THINKING\|>|◁/think▷"  # Magistral, Command A, Kimi
    r"|<\|channel\|>final<\|message\|>",  # gpt-oss
    re.IGNORECASE,
)
_START = re.compile(
    r"\s*(?:<(?:\w+:)?(?:think|thinking|thought|thoughts|reasoning|reflection)>"
    r"|\[THINK\]|<\|START_THINKING\|>|◁think▷|<\|channel\|>analysis<\|message\|>)",
    re.IGNORECASE,
)


def final_answer(text: str) -> str:
    """What follows the last end of thinking in a generated text; the text itself where nothing marks any thinking.

    Chat templates that open the thinking themselves leave only its end in the text, so the end decides. A text that
    begins to think and never ends has no answer yet and gives an empty one.
    """
    ends = list(_END.finditer(text))
    if ends:
        return text[ends[-1].end() :]
    return "" if _START.match(text) else text
