"""What the launcher of a run has set in the environment: how many processes, and how they keep weights."""

from __future__ import annotations

import os

from accelerate import DeepSpeedPlugin
from accelerate.utils import is_deepspeed_available

from experiments.common.errors import ConfigError

OF_MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # of mpirun and srun; accelerate reads them too
# what accelerate does by itself in training, where neither the YAML nor the digest of a run has it
OVERRIDES = {
    "ACCELERATE_DYNAMO_BACKEND": "a run compiles its model if its YAML says so. Write it there, training.arguments: "
    "{torch_compile_backend: NAME}, leave out --dynamo_backend",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is not supported. Take --use_fsdp --fsdp_version 2 in its place",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parts of a layer or of a row on several devices are not supported. Take "
    "--use_fsdp --fsdp_version 2 in its place",
}
UNSET = ("", "no", "false", "0")


def world_size() -> int:
    """How many processes a launcher has started for this job; 1 without a launcher."""
    given = os.environ.get("WORLD_SIZE") or "1"
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"WORLD_SIZE={given!r} is no number of processes: unset it, or let torchrun set it")
    return int(given)


def is_main_process() -> bool:
    """Whether this is process 0 of its launch, or the only one."""
    return world_size() == 1 or int(os.environ.get("RANK") or 0) == 0


def shards() -> bool:
    """Whether accelerate was asked to shard models over the processes (accelerate launch --use_fsdp)."""
    return world_size() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def deepspeed() -> bool:
    """Whether accelerate was asked to use DeepSpeed (accelerate launch --use_deepspeed)."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def launch_kind() -> str:
    """How the launch keeps weights, which decides what its checkpoints look like."""
    return "fsdp" if shards() else "deepspeed" if deepspeed() else "whole"


def check_launcher() -> None:
    """Raise ConfigError for a launch that would compute something else than the run's settings say, or nothing."""
    mpi = next((name for name in OF_MPI if os.environ.get(name, "1") != "1"), None)
    if mpi and world_size() == 1:
        raise ConfigError(
            f"{mpi}={os.environ[mpi]}: processes of MPI do not train together here, start them with torchrun or "
            f"accelerate launch, or unset {mpi}"
        )
    if shards() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("accelerate launch --use_fsdp: only its second version is supported, add --fsdp_version 2")
    if deepspeed() and not is_deepspeed_available():
        raise ConfigError("ACCELERATE_USE_DEEPSPEED=true, but deepspeed is not installed: install it, or unset this")
    if deepspeed() and (stage := DeepSpeedPlugin().zero_stage) == 3:
        raise ConfigError(
            f"DeepSpeed with zero_stage={stage} is not supported: take stage 1 or 2, or accelerate launch "
            "--use_fsdp --fsdp_version 2, which has the weights in shards too"
        )
    for name, why in OVERRIDES.items():
        if os.environ.get(name, "").lower() not in UNSET:
            raise ConfigError(f"{name}={os.environ[name]}: {why}, and unset {name}")
