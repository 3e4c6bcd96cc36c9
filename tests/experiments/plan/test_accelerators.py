"""Devices by name and by memory."""

from __future__ import annotations

import pytest

from experiments.common.errors import ConfigError
from experiments.plan.accelerators import GIB, GPUS, chosen, here, known_gpu, parsed


def test_a_device_is_chosen_by_name_or_by_memory() -> None:
    assert chosen("h100-80gb", None) is GPUS["h100-80gb"]
    assert chosen(None, "24gb").memory == 24e9
    assert chosen(None, None) == here()
    assert here().memory > 1e9
    for gpu in GPUS.values():  # the name says the memory, of which some is reserved
        assert 0.85 < gpu.memory / (1e9 * float(gpu.name.rpartition("-")[2].removesuffix("gb"))) < 1.06


@pytest.mark.parametrize(("text", "size"), [("24gb", 24e9), ("1.5 GiB", 1.5 * 2**30), ("800MB", 8e8), ("1tb", 1e12)])
def test_memory_has_a_unit(text: str, size: float) -> None:
    assert parsed(text) == size


@pytest.mark.parametrize("text", ["24", "gb", "-1gb", "0gb", "24kb", "24 gigabytes"])
def test_other_memory_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"give a number and a unit of mb, gb, .* for example 24gb"):
        parsed(text)


def test_wrong_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="--gpu h100: unknown; did you mean 'h100-80gb'"):
        chosen("h100", None)
    with pytest.raises(ConfigError, match="give one of them"):
        chosen("h100-80gb", "24gb")


@pytest.mark.parametrize(
    ("name", "gib", "wanted"),
    [("NVIDIA L4", 22, "l4-24gb"), ("NVIDIA L40S", 44.4, "l40s-48gb"), ("NVIDIA L40", 44.4, None),
     ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40gb"), ("NVIDIA A100-SXM4-80GB", 79.3, "a100-80gb"),
     ("NVIDIA A10", 22, None), ("NVIDIA GeForce RTX 4090", 23.5, "rtx4090-24gb"), ("NVIDIA H200", 140, "h200-141gb"),
     ("NVIDIA H100 80GB HBM3", 79.1, "h100-80gb"), ("Tesla T4", 15, None)],
)  # fmt: skip
def test_the_speed_of_this_machines_gpu_is_that_of_its_own_model(name: str, gib: float, wanted: str | None) -> None:
    assert known_gpu(name, gib * GIB) == GPUS.get(str(wanted))
