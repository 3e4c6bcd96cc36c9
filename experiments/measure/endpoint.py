"""A model behind an endpoint that speaks the OpenAI protocol (vLLM, llama.cpp's server, ...): greedy replies alone."""

from __future__ import annotations

import functools
import json
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from ctrl.errors import unknown_name
from experiments.common.errors import ConfigError, MachineError
from experiments.common.files import json_lines, parse_json
from experiments.common.hashing import short_digest, text_id
from experiments.common.printable import printable
from experiments.models.conversation import Conversation, messages_of, tools_of
from experiments.models.sharing import Progress, no_progress

URL = re.compile(r"(?P<url>https?://[^\s#?@]+)(#(?P<model>\S+))?")
SECRET = re.compile(r"(?<=//)[^/]*@|\?.*")  # parts of an address that may hold a password or a key
KEY = "OPENAI_API_KEY"  # of the environment
SHORTEST_KEY = 12  # characters: servers at home are given EMPTY or none, which are words of replies too
TRIES, WAIT, LONGEST_WAIT = 6, 1.0, 30.0  # seconds, doubled after each try
TIMEOUT = httpx.Timeout(300.0, connect=10.0)  # seconds of one reply
WORKERS = 8  # requests at a time
# Models here write without a penalty on repetition. vLLM reads one from a model's generation_config.json (Qwen 2.5 has
# 1.05 to 1.1) if a request names none; llama.cpp had 1.1. Servers that know neither field refuse it or pass over it.
UNCHANGED = {"repetition_penalty": 1.0, "repeat_penalty": 1.0}
UNKNOWN_FIELD = (400, 422)
THOUGHT = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)  # replies of models here have none either
NO_PROBABILITIES = "an endpoint gives replies, not the probabilities that it needs"


class EndpointError(MachineError):
    """A server that gives no reply, after all tries: it says nothing about the model."""


def is_endpoint(address: str) -> bool:
    return address.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Endpoint:
    """A model of a server: POST URL/chat/completions. url: with /v1. model: its name there.

    The key of the environment variable OPENAI_API_KEY, if there is one, goes to the server and nowhere else.
    """

    url: str
    model: str
    client: httpx.Client = field(repr=False, compare=False)

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
        found = self.client.post(f"{self.url}/chat/completions", json={**body, **UNCHANGED})
        if found.status_code not in UNKNOWN_FIELD:
            return found
        return self.client.post(f"{self.url}/chat/completions", json=body)

    def _without_key(self, text: str) -> str:
        return _without_key(text, self.client)


@dataclass(frozen=True)
class Replies:
    """The replies of an endpoint, each written to a file of JSON lines as soon as it arrives: a second call goes on."""

    endpoint: Endpoint
    file: Path
    known: dict[str, str]
    progress: Progress = no_progress
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def read(cls, endpoint: Endpoint, file: Path, progress: Progress = no_progress) -> Replies:
        """Read the replies that are in the file. progress: called with 1 after each reply."""
        known = {line["key"]: line["reply"] for line in _lines(file, endpoint)}
        return cls(endpoint, file, known, progress)

    def ask(self, questions: Sequence[str], most: int) -> list[str]:
        """Return the reply to each question, in this order; several are asked at a time."""
        with ThreadPoolExecutor(WORKERS) as pool:
            asked = [pool.submit(self._one, question, most) for question in questions]
            try:
                return [one.result() for one in asked]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _one(self, question: str, most: int) -> str:
        key = text_id(f"{most} {question}")
        if key not in self.known:
            reply = self.endpoint.reply(question, most)
            with self.lock, self.file.open("a", encoding="utf-8") as file:
                line: dict[str, Any] = {"key": key, "reply": reply, "digest": _digest(self.endpoint, key, reply)}
                line |= {"question": question, "most": most, "chat": isinstance(question, Conversation)}
                file.write("\n" + json.dumps(line))  # the line before may have been cut off
            self.known[key] = reply
        with self.lock:
            self.progress(1)
        return self.known[key]


def changed_replies(endpoint: Endpoint, file: Path) -> tuple[int, int]:
    """Ask a few questions of the file once more. Returns how many replies are others now, and how many were asked for.

    A server that was started with another model has the same address and may have the same name. One that answers
    nothing now changes nothing; earlier versions noted no questions.
    """
    noted = [line for line in _lines(file, endpoint) if "question" in line]
    few = noted[:: max(1, len(noted) // WORKERS)][:WORKERS]
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            now = list(pool.map(functools.partial(_once_more, endpoint), few))
        except EndpointError:
            return 0, 0
    return sum(reply != line["reply"] for reply, line in zip(now, few, strict=True)), len(few)


def _once_more(endpoint: Endpoint, line: dict[str, Any]) -> str:
    question = str(line["question"])
    return endpoint.reply(Conversation(question) if line.get("chat") else question, int(line["most"]))


def _lines(file: Path, endpoint: Endpoint) -> Iterator[dict[str, Any]]:
    """Yield what was written. A line that was cut off or changed, or is of another model, is asked again."""
    for _, line in json_lines(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else ():
        try:
            values = parse_json(line)
            # earlier versions wrote no digest
            if values.get("digest", "") in (_digest(endpoint, values["key"], values["reply"]), ""):
                yield values
        except (ValueError, KeyError, TypeError, AttributeError):
            continue


def _digest(endpoint: Endpoint, key: str, reply: str) -> str:
    return short_digest(endpoint.url, endpoint.model, key, reply)


def _in_the_open(url: str) -> bool:
    """Whether what is sent to an address can be read on the way: http, to another machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "http" and not (host in ("localhost", "::1", "0.0.0.0") or host.startswith("127."))


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
    try:
        return THOUGHT.sub("", response.json()["choices"][0]["message"].get("content") or "")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EndpointError(f"{response.url} does not speak the OpenAI protocol: its answer has no message") from error


def _waits() -> Iterator[float]:
    """Return the seconds before each try."""
    return (min(WAIT * (2**i - 1), LONGEST_WAIT) for i in range(TRIES))


def _asked_wait(response: httpx.Response) -> float:
    """Return the seconds that a server asks to wait, at most LONGEST_WAIT."""
    try:
        return min(float(response.headers.get("Retry-After", 0)), LONGEST_WAIT)
    except ValueError:  # a date
        return 0.0
