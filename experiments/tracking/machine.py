"""Describe where a run was made: process, code, packages and hardware, as plain tags."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil

from experiments.common.files import pid_namespace
from experiments.common.hashing import sha256

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "reasoning_gym",
    "mlflow",
    "peft",
    "datasets",
    "optuna",
    "lm_eval",
)
REPOSITORY = Path(__file__).resolve().parents[2]


def process_tags() -> dict[str, str]:
    """Return tags by which `process_state` finds out later whether this process still runs."""
    tags = {
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "pid": str(os.getpid()),
        "pid_started": f"{psutil.Process().create_time():.0f}",
        "pid_ticks": _ticks(os.getpid()),
    }
    known = {"machine_id": _machine_id(), "pid_namespace": pid_namespace()}
    return tags | {name: value for name, value in known.items() if value}


def process_alive(tags: Mapping[str, str]) -> bool:
    """Whether the process of `process_tags` may still run. True if it cannot be known."""
    return process_state(tags) is not False


def process_state(tags: Mapping[str, str]) -> bool | None:
    """Whether the process of `process_tags` runs. None if it cannot be known: no tags, another machine or container."""
    if "pid" not in tags or tags.get("host") != socket.gethostname():
        return None
    if tags.get("machine_id", _machine_id()) != _machine_id():  # two machines with one host name
        return None
    if tags.get("boot_id") != _boot_id():
        return False
    if tags.get("pid_namespace", pid_namespace()) != pid_namespace():  # of a container that has the host's name
        return None
    try:
        process = psutil.Process(int(tags["pid"]))
        # Ids are reused. The start time moves when the clock is set, but not the ticks between boot and start.
        if ticks := tags.get("pid_ticks"):
            same = ticks == _ticks(process.pid)
        else:
            same = abs(process.create_time() - float(tags.get("pid_started", 0))) < 60
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, ValueError):
        return False


@functools.cache
def code_tags() -> dict[str, str]:
    """Return commit and state of the repository, if the code is in one, and the versions of the packages."""
    tags = {"version/python": platform.python_version()}
    for name in PACKAGES:
        try:
            tags[f"version/{name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = git("rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit.strip()
        tags["code"] = "changed since the commit" if git("status", "--porcelain") else "as committed"
    return tags


@functools.cache
def hardware_tags() -> dict[str, str]:
    """Return processor, cores that this process may use, memory in GB (10^9 bytes), and GPUs."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    tags = {
        "hardware/cpu": _cpu_model(),
        "hardware/cores": str(cores),
        "hardware/memory_gb": f"{psutil.virtual_memory().total / 1e9:.1f}",
        "hardware/system": f"{platform.system()} {platform.release()}",
    }
    if torch.cuda.is_available():
        tags["hardware/gpu"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return tags


def _ticks(pid: int) -> str:
    """Return the clock ticks from the machine's boot to the start of a process; an empty text without /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]  # field 22; the name before ")" may contain anything


@functools.cache
def _machine_id() -> str:
    """Return a hash that differs between machines of one host name (the id itself is private), or an empty text."""
    try:
        own = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return sha256(f"ctrl {own}")[:16] if own else ""


@functools.cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{psutil.boot_time() // 60:.0f}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def git(*arguments: str) -> str:
    """Return the output of a git command in this repository; empty without git or a repository.

    Installed in the environment of another project, the code is not in that one's repository: its changes are private.
    """
    if not (REPOSITORY / ".git").exists():
        return ""
    command = ["git", "-C", str(REPOSITORY), *arguments]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # hooks name another one
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=20, check=True, env=plain
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
