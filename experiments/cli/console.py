"""What commands write to the terminal, and what the libraries must not."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Any

Commands = Any  # what argparse's add_subparsers returns; its class is private


def say(text: str) -> None:
    """A line that does not break a progress bar."""
    from tqdm import tqdm

    tqdm.write(text)
    sys.stdout.flush()


def stop(code: int, message: str) -> int:
    """Write why a command ends, and return its exit code."""
    print(f"error: {message}" if code != 130 else message, file=sys.stderr)
    return code


def quiet() -> None:
    """Progress bars stay; the libraries' own chatter about what is meant to be so goes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def add_root(command: argparse.ArgumentParser) -> None:
    """The option --root, which most commands have."""
    command.add_argument("--root", type=Path, help="where results go (default: mlruns)")
