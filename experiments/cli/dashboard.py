"""Serve optuna-dashboard to the browser of this machine alone.

A page of the web can let its own name point to this machine (DNS rebinding): its requests then reach a server on the
loopback address, with that name as their host. MLflow refuses them itself, optuna-dashboard does not.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIServer, make_server

from experiments.cli.servers import HOST
from experiments.studies.locks import STORAGE

OWN = (HOST, "localhost")
App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Threads(ThreadingMixIn, WSGIServer):
    """A thread for each request: the browser keeps some open."""

    daemon_threads = True


def only_local(app: App) -> App:
    """Answer 403 to requests whose Host or Origin is not this machine."""

    def checked(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        asked = f"//{environ.get('HTTP_HOST', '')}", environ.get("HTTP_ORIGIN") or f"//{HOST}"
        if all(_host(address) in OWN for address in asked):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [f"open http://{HOST} instead: other hosts are refused\n".encode()]

    return checked


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def main() -> None:
    """Serve a storage until a signal ends it. STUDY_STORAGE goes before the argument: it may have a password."""
    from optuna.artifacts import FileSystemArtifactStore
    from optuna_dashboard import wsgi

    parser = argparse.ArgumentParser(description="Serve optuna-dashboard.")
    parser.add_argument("storage", help="URL of an Optuna storage, if STUDY_STORAGE is not set")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--artifact-dir", help="folder of the studies' pictures")
    args = parser.parse_args()
    pictures = FileSystemArtifactStore(args.artifact_dir) if args.artifact_dir else None
    app = only_local(wsgi(os.environ.get(STORAGE) or args.storage, artifact_store=pictures))
    with make_server(HOST, args.port, app, server_class=Threads) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
