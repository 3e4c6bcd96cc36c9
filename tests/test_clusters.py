"""The examples for clusters in docs/: Slurm and Kubernetes with stand-ins for their commands, files for accelerate."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from experiments.cli.main import parser
from tests.helpers.launch import FSDP
from tests.helpers.pages import ROOT, blocks

EXAMPLES = ROOT / "docs" / "examples"
PAGE = ROOT / "docs" / "distributed.md"
COMMANDS = {
    "srun": '"$@"',
    "control-llm": 'echo "$@" > called; exit $CODE',
    "scontrol": 'echo "$@" > requeued',
}


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (143, True), (1, False)])
def test_a_job_of_slurm_is_put_back_only_if_it_was_stopped(code: int, requeued: bool, tmp_path: Path) -> None:
    (script,) = (text for text in blocks(PAGE, "bash") if "#SBATCH" in text)
    for name, body in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    given = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CODE": str(code), "SHARED": "/shared", "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash", "-u", "-c", script], env=given, cwd=tmp_path, check=False)
    assert done.returncode == code
    assert (tmp_path / "requeued").exists() == requeued
    assert not requeued or (tmp_path / "requeued").read_text() == "requeue 17\n"
    args = parser().parse_args((tmp_path / "called").read_text().split())
    assert (args.devices, str(args.root)) == ("auto", "/shared/mlruns")


def test_a_job_of_kubernetes_runs_the_command_until_it_ends_well() -> None:
    (job,) = (found for text in blocks(PAGE, "yaml") if (found := yaml.safe_load(text)).get("kind") == "Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    name, *words = container["command"]
    args = parser().parse_args(words)
    assert (name, args.devices, str(args.config)) == ("control-llm", "auto", "/shared/my-axes.yaml")
    assert [variable["name"] for variable in container["env"]] == ["STUDY_STORAGE"]
    assert pod["restartPolicy"] == "OnFailure"  # exit code 143: the same command goes on
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_config_file_of_fsdp_asks_for_what_is_tested() -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    words = ["--config_file", str(EXAMPLES / "accelerate_fsdp2.yaml"), "-m", "experiments.cli", "run", "mine.yaml"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    env = prepare_multi_gpu_env(args)
    asked = {name: value for name, value in FSDP.items() if name != "ACCELERATE_TORCH_DEVICE"}
    assert {name: env[name] for name in asked} == asked
    assert (args.num_processes, env["ACCELERATE_MIXED_PRECISION"]) == (8, "no")
    assert env["FSDP_STATE_DICT_TYPE"] == "SHARDED_STATE_DICT"


def test_the_config_file_of_deepspeed_is_one_of_accelerate() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(EXAMPLES / "accelerate_zero2.yaml"))
    assert (config.num_processes, config.mixed_precision) == (8, "no")
    assert config.deepspeed_config["zero_stage"] == 2
