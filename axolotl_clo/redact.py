"""What must stand in no file, log or message: keys, tokens, and passwords in addresses.

Secrets are found by where they stand (an address, an option named like one), by their form (`hf_…`, `sk-…`, `Bearer …`)
and by their value: that of an environment variable named like a secret, wherever it turns up.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit, urlunsplit

HIDDEN = "(hidden)"

_SECRET_NAME = re.compile(
    r"(?:^|[-_.])(?:(?:api|auth|access|secret|private|account|client)?"
    r"(?:key|token|secret|password|passwd|pwd|credentials?|sig|signature)|auth)$",
    re.IGNORECASE,
)
# Names that end alike and hold no secret.
_TOKENIZER_NAME = re.compile(
    r"(?:^|[-_.])(?:bos|eos|pad|unk|sep|cls|mask|image|audio|video|foreign|primary|public|sort)[-_.](?:token|key)$",
    re.IGNORECASE,
)
_USER = re.compile(r"(?<=://)[^\s/?#'\"]+@")
_QUERY = re.compile(r"(?<=[?&;])([\w.-]+)=([^\s&;#'\"]+)")
_FORMS = re.compile(
    r"\b(?:hf_|sk-|ghp_|github_pat_|glpat-)[A-Za-z0-9_-]{16,}|(?<=Bearer )\S+|(?<=Basic )[A-Za-z0-9+/=]{8,}"
)
_VALUE = r"""(?P<quote>["']?)(?P<value>(?<=["'])[^"'\n]+(?=["'])|[^\s,;"'\[\]{}()]+)"""
_ASSIGNED = re.compile(rf"""(?P<name>[A-Za-z][\w.-]*)(?P<between>["']?[ \t]*[:=][ \t]*){_VALUE}""")
_FLAG = re.compile(rf"(?<!\S)--?(?P<name>[A-Za-z][\w-]*)(?P<between>[ \t]+){_VALUE}")
_PLAIN = {"true", "false", "null", "none", "~", "yes", "no", HIDDEN}
_SHORTEST = 8  # characters of an environment variable's value; shorter ones are words of any text


def names_a_secret(name: str) -> bool:
    """Whether an option, column or variable of this name holds a secret: `hub_token`, but not `pad_token`."""
    return bool(_SECRET_NAME.search(name)) and not _TOKENIZER_NAME.search(name)


def public_url(url: str) -> str:
    """An address without user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def redact(text: str) -> str:
    """A text without the secrets in it, for messages and prose."""
    text = _FORMS.sub(HIDDEN, _QUERY.sub(_hide_query, _USER.sub("", text)))
    for value in _environment():
        text = text.replace(value, HIDDEN)
    return text


def redact_options(text: str) -> str:
    """The same for commands, YAML and JSON, where the value of an option named like a secret is one too."""
    return _FLAG.sub(_hide_option, _ASSIGNED.sub(_hide_option, redact(text)))


def _hide_query(found: re.Match[str]) -> str:
    return f"{found[1]}={HIDDEN}" if names_a_secret(found[1]) else found[0]


def _hide_option(found: re.Match[str]) -> str:
    if not names_a_secret(found["name"]) or found["value"].lower() in _PLAIN:
        return found[0]
    return found[0][: found.start("value") - found.start()] + HIDDEN


def _environment() -> list[str]:
    """Values of the environment's secrets, long ones first, as one may hold another."""
    found = {value for name, value in os.environ.items() if names_a_secret(name) and len(value) >= _SHORTEST}
    return sorted(found, key=len, reverse=True)
