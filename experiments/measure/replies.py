"""The replies of a model on a server, noted on disk, so that none is asked for twice."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.common.files import json_lines, parse_json
from experiments.common.hashing import short_digest, text_id
from experiments.measure.endpoint import Endpoint, EndpointError
from experiments.models.conversation import Conversation
from experiments.models.sharing import Progress, no_progress

WORKERS = 8  # requests at a time


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
