"""The examples for Slurm and Kubernetes in docs/distributed.md, with a stand-in for the cluster's commands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from experiments.cli.main import parser
from tests.helpers.pages import ROOT, blocks

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
