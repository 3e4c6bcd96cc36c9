"""The command `plan`: what a config costs, before a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli.console import Commands, quiet, show
from experiments.cli.run import overrides
from experiments.common.errors import ConfigError

MOST_DEVICES = 4096


def add(commands: Commands) -> None:
    one = commands.add_parser("plan", help="say what a config costs: memory, disk, FLOPs and time, and what fits")
    one.add_argument("config", type=Path, help="a YAML file, or the name of a shipped one: quickstart")
    one.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one field: training.micro_batch=4"
    )
    one.add_argument("--gpu", help="on this GPU: h100-80gb, a100-40gb, ... (default: this machine)")
    one.add_argument("--memory", help="on a device of this memory: 24gb")
    one.add_argument(
        "--devices", type=_devices, default=1, help="how many of them train together (default: %(default)s)"
    )
    one.add_argument(
        "--sharding", choices=("none", "zero2", "fsdp"), default="none",
        help="what they hold in parts: gradients and optimizer, or the weights too (default: %(default)s)",
    )  # fmt: skip
    one.add_argument("--length", type=_length, help="tokens of a row (default: data.length, the longest)")
    one.add_argument(
        "--utilisation",
        type=_share,
        default=0.4,
        help="share of the GPU's FLOPs that steps reach (default: %(default)s)",
    )
    one.set_defaults(command=plan_command)


def plan_command(args: argparse.Namespace) -> int:
    from experiments.config import load_config
    from experiments.plan.accelerators import chosen
    from experiments.plan.plan import plan_run
    from experiments.plan.report import plan_text

    if args.sharding != "none" and args.devices == 1:
        raise ConfigError(f"--sharding {args.sharding} has no effect on one device: give --devices 8, or leave it out")
    quiet()
    config, device = load_config(args.config, overrides(args.set)), chosen(args.gpu, args.memory)
    plan = plan_run(config, device, args.devices, args.sharding, args.length)
    show(plan_text(plan, args.utilisation))
    return 1 if plan.too_large or not plan.arms else 0


def _devices(text: str) -> int:
    return _whole(text, MOST_DEVICES)


def _length(text: str) -> int:
    return _whole(text, 10**7)


def _whole(text: str, most: int) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {most}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: give a number above 0, up to 1")
    return value
