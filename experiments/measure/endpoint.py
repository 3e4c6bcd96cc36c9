"""A model behind an endpoint that speaks the OpenAI protocol (vLLM, llama.cpp's server, ...): greedy replies alone."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx

from ctrl.errors import unknown_name
from experiments.common.errors import ConfigError, MachineError
from experiments.common.printable import printable
from experiments.models.conversation import messages_of, tools_of
from experiments.models.turns import THOUGHT_MARKS

URL = re.compile(r"(?P<url>https?://[^\s#?@]+)(#(?P<model>\S+))?")
SECRET = re.compile(r"(?<=//)[^/]*@|\?.*")  # parts of an address that may hold a password or a key
KEY = "OPENAI_API_KEY"  # of the environment
SHORTEST_KEY = 12  # characters: servers at home are given EMPTY or none, which are words of replies too
TRIES, WAIT, LONGEST_WAIT = 6, 1.0, 30.0  # seconds, doubled after each try
TIMEOUT = httpx.Timeout(300.0, connect=10.0)  # seconds of one reply
# Models here write without a penalty on repetition. vLLM reads one from a model's generation_config.json (Qwen 2.5 has
# 1.05 to 1.1) if a request names none; llama.cpp had 1.1. Servers that know neither field refuse it or pass over it.
UNCHANGED = {"repetition_penalty": 1.0, "repeat_penalty": 1.0}
UNKNOWN_FIELD = (400, 422)
BLOCKS = "|".join(f"{re.escape(begin)}.*?{re.escape(end)}" for begin, end in THOUGHT_MARKS.items())
THOUGHT = re.compile(rf"\A\s*(?:{BLOCKS})\s*", re.DOTALL)  # replies of models here have none either
CALLS = ("tool_calls", "function_call")  # fields of a message; the latter of older servers
NO_PROBABILITIES = "an endpoint gives replies, not the probabilities that it needs"


class EndpointError(MachineError):
    """A server that gives no reply, after all tries: it says nothing about the model."""


def is_endpoint(address: str) -> bool:
    return address.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Endpoint:
    """A model of a server: POST URL/chat/completions. url: with /v1. model: its name there.

    more: further fields of each request; empty as soon as the server has refused them. The key of the environment
    variable OPENAI_API_KEY, if there is one, goes to the server and nowhere else.
    """

    url: str
    model: str
    client: httpx.Client = field(repr=False, compare=False)
    more: dict[str, float] = field(default_factory=UNCHANGED.copy, repr=False, compare=False)

    @classmethod
    def opened(cls, address: str) -> Endpoint:
        """Read `http://HOST:PORT/v1#MODEL` and ask the server for its models. Raises ConfigError.

        Without #MODEL it is the only model that the server lists. A server that lists none is taken at its word.
        """
        match = URL.fullmatch(address)
        if match is None:
            raise ConfigError(
                f"--model {SECRET.sub('...', address)}: write NAME=http://HOST:PORT/v1#MODEL, the model's "
                f"name on the server after the #; a key goes into the environment variable {KEY}"
            )
        key = os.environ.get(KEY)
        if key and _in_the_open(match["url"]):
            warnings.warn(
                f"the key in {KEY} goes to {match['url']} without encryption: use https, or unset {KEY} if that server "
                "needs no key",
                stacklevel=2,
            )
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url, client = match["url"].rstrip("/"), httpx.Client(headers=headers, timeout=TIMEOUT)
        return cls(url, _chosen(url, match["model"], _listed(url, client)), client)

    @property
    def address(self) -> str:
        return f"{self.url}#{self.model}"

    def reply(self, question: str, most: int) -> str:
        """Return the greedy reply to a question. most: tokens.

        A server that is busy (429), fails (5xx) or does not answer is asked again, later each time. Raises
        EndpointError.
        """
        asked: dict[str, Any] = {"model": self.model, "messages": messages_of(question), "temperature": 0}
        tools = tools_of(question)
        body = {**asked, "max_tokens": most, **({"tools": tools} if tools else {})}
        fault, longer = "", 0.0
        for wait in _waits():
            time.sleep(max(wait, longer))
            longer = 0.0
            try:
                found = self._posted(body)
            except httpx.TransportError as error:
                fault = type(error).__name__
            else:
                if found.is_success:
                    return self._without_key(_text(found))  # which is written down: a server may echo its headers
                fault = f"{found.status_code} {printable(self._without_key(found.text)[:200])}"
                if found.status_code != 429 and found.status_code < 500:
                    raise EndpointError(f"{self.url} refuses a question: {fault}")
                longer = _asked_wait(found)
        raise EndpointError(f"{self.url} gave no reply in {TRIES} tries ({fault}): the same command goes on from here")

    def _posted(self, body: Mapping[str, Any]) -> httpx.Response:
        more = self.more.copy()  # another thread may learn meanwhile that they are refused
        found = self.client.post(f"{self.url}/chat/completions", json={**body, **more})
        if found.status_code not in UNKNOWN_FIELD or not more:
            return found
        plain = self.client.post(f"{self.url}/chat/completions", json=body)
        if plain.is_success:
            self.more.clear()  # the server knows no such field: it would be asked each question twice
        return plain

    def _without_key(self, text: str) -> str:
        return _without_key(text, self.client)


def _in_the_open(url: str) -> bool:
    """Whether what is sent to an address can be read on the way: http, to another machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        own = host in ("localhost", "0.0.0.0") or ip_address(host).is_loopback
    except ValueError:  # a name, such as 127.example.org
        own = False
    return parts.scheme == "http" and not own


def _listed(url: str, client: httpx.Client) -> list[str]:
    """Ask a server for the names of its models. Raises ConfigError if none answers, or if it lets nobody in now."""
    try:
        found = client.get(f"{url}/models", timeout=10.0)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(
            f"--model: no server answers at {url} ({type(error).__name__}): start it, or correct the address"
        ) from error
    if found.status_code in (401, 403):
        raise ConfigError(f"--model: {url} refuses the key ({found.status_code}): set {KEY} in the environment")
    if found.status_code >= 500:
        raise ConfigError(
            f"--model: the server at {url} is not ready ({found.status_code}): look at it, try again later"
        )
    return [_without_key(name, client) for name in _names(found)]


def _without_key(text: str, client: httpx.Client) -> str:
    key = client.headers.get("Authorization", "").removeprefix("Bearer ")
    return text.replace(key, "...") if len(key) >= SHORTEST_KEY else text


def _names(response: httpx.Response) -> list[str]:
    try:
        return [str(one["id"]) for one in response.json()["data"]] if response.is_success else []
    except (ValueError, KeyError, TypeError):
        return []


def _chosen(url: str, model: str | None, names: Sequence[str]) -> str:
    if model is None and len(names) == 1:
        return names[0]
    if model is None:
        known = f"it has {', '.join(names)}" if names else "it does not list them"
        raise ConfigError(f"--model {url}: name one of the server's models, {url}#MODEL: {known}")
    if names and model not in names:
        raise ConfigError(f"--model: {url}: {unknown_name('model', model, names)}")
    return model


def _text(response: httpx.Response) -> str:
    """Return the text of a reply; of a refusal, which some servers put into a field of its own, that text.

    Warns of a reply without any text that was not cut at max_tokens: it counts as an empty one. Raises EndpointError
    for an answer of another form, and for calls of tools: a model here writes them as text.
    """
    try:
        choice = response.json()["choices"][0]
        message = choice["message"]
        calls = next((name for name in CALLS if message.get(name)), "")
        text = THOUGHT.sub("", message.get("content") or message.get("refusal") or "")
        ended = choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EndpointError(f"{response.url} does not speak the OpenAI protocol: its answer has no message") from error
    if calls:
        raise EndpointError(
            f"{response.url} took a call of a tool out of a reply, into its field {calls}: the text of the call is "
            "measured, so start the server without a parser of calls (vLLM: without --enable-auto-tool-choice)"
        )
    if message.get("content") is None and not text and ended != "length":
        warnings.warn(
            f"{response.url} gave a reply whose content is null (finish_reason {printable(str(ended)[:40])}): it "
            "counts as an empty reply, also if a filter of the server took its text",
            stacklevel=2,
        )
    elif ended == "content_filter":
        warnings.warn(
            f"{response.url}: a filter of the server cut a reply (finish_reason content_filter): it counts as far as "
            "it goes",
            stacklevel=2,
        )
    return text


def _waits() -> Iterator[float]:
    """Return the seconds before each try."""
    return (min(WAIT * (2**i - 1), LONGEST_WAIT) for i in range(TRIES))


def _asked_wait(response: httpx.Response) -> float:
    """Return the seconds that a server asks to wait, at most LONGEST_WAIT."""
    try:
        return min(float(response.headers.get("Retry-After", 0)), LONGEST_WAIT)
    except ValueError:  # a date
        return 0.0
