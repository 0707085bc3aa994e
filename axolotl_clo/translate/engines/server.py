"""An OpenAI-compatible server: its address, the key to it, and what its errors mean to a user."""

from __future__ import annotations

import base64
import os
import re
from urllib.parse import parse_qsl, unquote, urlsplit

from axolotl_clo.redact import HIDDEN, public_url, redact
from axolotl_clo.translate.engines import EngineError, EngineOptions

try:
    import openai
except ImportError:
    raise EngineError("--base-url, --engine openai: the package openai is missing; pip install openai") from None

_OPENAI = "https://api.openai.com/v1"
_QUOTED = 300  # characters of what a server said
_SHORTEST = 4  # characters of a secret; shorter ones are parts of other words


class Server:
    """A client of a server, and what may be said about it.

    A user and password in `base_url` are sent in place of the key.

    Attributes:
        url: address without user, password and query.
        client: the client, which retries by itself as often as it is told for each request.

    Raises:
        ValueError: the address or the key cannot be used.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._key = _key(options.api_key_env)
        address = options.base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI
        self.url, headers, query = _address(address)
        password = unquote(urlsplit(address).netloc.rpartition("@")[0]).partition(":")[2]
        sent = (password, headers.get("Authorization", "").removeprefix("Basic "), *query.values())
        self._sent = [value for value in sent if len(value) >= _SHORTEST]
        self.client = openai.AsyncOpenAI(
            api_key=self._key or "none",  # the client wants one; a server without keys does not look at it
            base_url=self.url,
            default_headers=headers,
            default_query=query,
            timeout=options.timeout,
        )

    def explain(self, error: openai.APIError) -> str:
        """What to do about an error that no further try can mend, or did."""
        options = self._options
        status = error.status_code if isinstance(error, openai.APIStatusError) else 0
        if isinstance(error, openai.APITimeoutError):
            advice = f"no answer within {options.timeout:g} seconds (--timeout), with {options.retries} --retries"
        elif isinstance(error, openai.APIConnectionError):
            advice = f"no connection (--base-url), with {options.retries} --retries; does the server run?"
        elif status in (401, 403):
            is_set = "is set, but" if self._key else "is not set, and"
            advice = f"--api-key-env: the variable {options.api_key_env} {is_set} the server refuses access"
        elif status == 404:
            advice = f"--model, --base-url: the server does not know the model {options.model!r}, or not this address"
        elif status == 429:
            advice = f"too many requests, or a quota is used up; lower --concurrency ({options.concurrency}) or wait"
        elif status >= 500:
            advice = f"the server failed, with {options.retries} --retries"
        else:
            advice = "the server does not take the request"
        code = f" (HTTP {status})" if status else ""
        return f"{self.url}: {advice}{code}: {self.quote(said(error))}"

    def quote(self, text: object) -> str:
        """What a server said, on one line, not too long, and without the secrets it was sent, which some repeat."""
        line = " ".join(str(text).split())
        line = redact(line.replace(self._key, "[key]") if self._key else line)
        for secret in self._sent:
            line = line.replace(secret, HIDDEN)
        return line if len(line) <= _QUOTED else line[:_QUOTED] + "..."


def about_the_text(error: openai.APIError) -> bool:
    """Whether a server refuses this text and may take the next one."""
    if error.code in ("content_filter", "content_policy_violation", "context_length_exceeded"):
        return True
    words = str(said(error)).lower()  # vLLM and llama.cpp give no such code
    return isinstance(error, openai.BadRequestError) and ("context length" in words or "context size" in words)


def said(error: openai.APIError) -> object:
    """A server's own words, or what went wrong on the way to it."""
    match error.body:
        case {"message": words} | {"detail": words}:  # OpenAI's form and FastAPI's
            return words
        case None:
            return error.__cause__ or error
        case words:
            return words


def _key(variable: str) -> str:
    """The key; what cannot stand in a header is found here, as the HTTP client would show it."""
    if not re.fullmatch(r"[A-Za-z_]\w*", variable):  # most likely the key itself, so it is not repeated
        raise ValueError(
            "--api-key-env: the name of an environment variable such as OPENAI_API_KEY is accepted, not a key"
        )
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"--api-key-env: the variable {variable} holds spaces or signs that no key can have")
    return key


def _address(url: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """An address without secrets, as logs of the HTTP client show it, and the headers and query with them."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    address = public_url(url)
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"--base-url: expected an address such as http://localhost:8000/v1, found {address!r}")
    headers = {"Authorization": "Basic " + base64.b64encode(unquote(user).encode()).decode()} if user else {}
    return address, headers, dict(parse_qsl(parts.query))
