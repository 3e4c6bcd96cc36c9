"""System metrics: sampled by the thread that delivers, with GPUs where the driver or its program can tell."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from experiments.tracking import delivery, system
from experiments.tracking import tracker as tracking
from experiments.tracking.system import Smi, gpu_metrics, system_metrics
from experiments.tracking.tracker import Tracker
from tests.helpers.tracking_store import read

A, B = "11111111-aaaa-aaaa-aaaa-111111111111", "22222222-bbbb-bbbb-bbbb-222222222222"
ANSWER = f"""cat <<'END'
GPU-{A}, 37, 1536, 120.25
GPU-{B}, [N/A], 512, [N/A]
END
"""
Install = Callable[[str], Smi]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a program named nvidia-smi first on PATH; it also notes each call."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(system, "TIMEOUT_SECONDS", 120.0)  # a busy machine takes its time over any program

    def write(script: str) -> Smi:
        (folder / "nvidia-smi").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{script}')
        (folder / "nvidia-smi").chmod(0o755)
        return Smi()

    return write


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_nvidia_smi_is_read_in_percent_gigabytes_and_watts(install: Install, tmp_path: Path) -> None:
    figures = install(ANSWER).figures()
    assert figures == {
        A: {"percent": 37.0, "memory_used_gb": pytest.approx(1.610612736), "power_watts": 120.25},
        B: {"memory_used_gb": pytest.approx(0.536870912)},
    }
    asked = "--query-gpu=uuid,utilization.gpu,memory.used,power.draw --format=csv,noheader,nounits"
    assert calls(tmp_path) == [asked]


@pytest.mark.parametrize(
    "script",
    ["exec sleep 30\n", "echo 'NVIDIA-SMI has failed because it could not reach the driver.'\nexit 9\n"],
    ids=["hangs", "fails"],
)
def test_a_program_that_hangs_or_fails_is_left_alone_for_a_while(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    smi = install(script)
    if "sleep" in script:
        monkeypatch.setattr(system, "TIMEOUT_SECONDS", 0.3)
    start = time.monotonic()
    assert smi.figures() == smi.figures() == {}
    assert time.monotonic() - start < 25
    (tmp_path / "calls").unlink(missing_ok=True)
    install(ANSWER)
    assert smi.figures() == {}
    assert not (tmp_path / "calls").exists()
    smi._again = 0.0  # REST_SECONDS are over
    monkeypatch.setattr(system, "TIMEOUT_SECONDS", 120.0)
    assert smi.figures()[A]["percent"] == 37


def test_without_the_program_and_with_words_for_an_answer_there_is_no_figure(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert install("echo No devices were found\n").figures() == {}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Smi().figures() == {}


def test_gpus_are_matched_by_uuid_and_keep_their_memory_where_nothing_else_is_known(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch is asked for two of the machine's GPUs, in another order than nvidia-smi has; there is no GPU here."""
    smi = install(ANSWER)
    monkeypatch.setattr(system, "_smi", lambda: smi)
    uuids = [B, "33333333-cccc-cccc-cccc-333333333333", A]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (10**9, 8 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=uuids[i]))

    def no_package(i: int) -> None:
        raise ModuleNotFoundError("pynvml does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "utilization", no_package)
    assert gpu_metrics() == {
        "system/gpu_0_memory_used_gb": pytest.approx(0.536870912),
        "system/gpu_1_memory_used_gb": 7.0,
        "system/gpu_2_memory_used_gb": pytest.approx(1.610612736),
        "system/gpu_2_percent": 37.0,
        "system/gpu_2_power_watts": 120.25,
    }
    monkeypatch.setattr(torch.cuda, "utilization", lambda i: 50 + i)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda i: 90_500)
    driver = gpu_metrics()
    assert (driver["system/gpu_1_percent"], driver["system/gpu_1_power_watts"]) == (51.0, 90.5)
    assert driver["system/gpu_0_memory_used_gb"] == 7.0


def test_system_metrics_are_sampled_by_the_thread_that_delivers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "SAMPLE_SECONDS", 0.0)
    threads, sampled = [], threading.Event()

    def sample() -> dict[str, float]:
        threads.append(threading.current_thread().name)
        if len(threads) == 1:
            raise RuntimeError("CUDA error: unspecified launch failure")
        sampled.set()
        return system_metrics()

    monkeypatch.setattr(tracking, "system_metrics", sample)
    tracker = Tracker(root, "demo")
    with tracker.run("demo", kind="arm") as run:
        run.log_metrics({"gain": 0.0}, 0)  # before the first figure nothing is sampled
        assert sampled.wait(120)
    metrics = read(tracker, run).data.metrics
    assert 0.01 < metrics["system/process_memory_gb"] < metrics["system/memory_used_gb"]
    assert set(threads) == {"tracking"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, torch sees none")
def test_a_real_gpu_tells_its_load() -> None:
    torch.ones(1).cuda()
    metrics = system_metrics()
    assert metrics["system/gpu_0_memory_used_gb"] > 0
    assert 0 <= metrics["system/gpu_0_percent"] <= 100
