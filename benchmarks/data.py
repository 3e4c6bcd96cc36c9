"""How fast large data starts: `python -m benchmarks.data --write` makes data.md next to it.

Conversations of two to six turns in a JSONL file. A first process reads them, holds some out and makes the first rows;
a second one finds all that in the cache. Start: seconds from the config to the first row, without imports. Drawn: rows
of training per second after that. Resume: seconds from the config to the row after those. Memory: peak of the process,
above what it has before it reads data; worker processes are copies of it and do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.common.spread import cores
from experiments.reporting.table import Table

SIZES, ROWS, HELD_OUT = (10_000,), 2000, 100
WORDS = 5000  # different ones


def write(path: Path, conversations: int) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioulnrst", k=draw.randint(2, 8))) for _ in range(WORDS)]
    with path.open("w") as file:
        for i in range(conversations):
            turns = []
            for _ in range(draw.randint(1, 3)):
                asked, reply = (" ".join(draw.choices(words, k=draw.randint(3, 25))) for _ in range(2))
                turns += [{"role": "user", "content": f"{asked} {i}"}, {"role": "assistant", "content": reply}]
            file.write(json.dumps({"messages": turns}) + "\n")


def start(path: Path, cache: Path) -> dict[str, float]:
    """Measure one start in this process."""
    from experiments.config import parse_config
    from experiments.runs.data import ExperimentData

    values = {
        "name": "benchmark",
        "data": {"new": {"source": "file", "path": str(path)}},
        "training": {"steps": 2 * ROWS // 16, "batch_size": 16},
        "evaluation": {"new_items": HELD_OUT},
        "arms": [{"name": "full", "method": "full", "learning_rates": [1e-3]}],
    }
    config = parse_config(values)
    tokenizer = config.load_tokenizer()
    os.environ["CONTROL_LLM_CACHE"] = str(cache)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, begun, used = memory("VmRSS"), time.perf_counter(), sum(os.times()[:4])
    data = ExperimentData(config, tokenizer)
    rows = data.rows(config.arms[0])
    _ = rows[0]
    started, cpu = time.perf_counter(), sum(os.times()[:4]) - used
    _ = data.describe(), rows[ROWS - 1]
    drawn = time.perf_counter()
    peak = memory("VmHWM") - before
    speed, all_seconds = ROWS / (drawn - started), drawn - begun
    return {"start": started - begun, "cpu": cpu, "drawn": speed, "resume": all_seconds, "memory": peak}


def memory(name: str) -> float:
    """Return a line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3


def measure(conversations: int, folder: Path) -> tuple[str, ...]:
    path, cache = folder / "chats.jsonl", folder / "cache"
    write(path, conversations)
    found = []
    for _ in range(2):
        command = [sys.executable, "-m", "benchmarks.data", "--start", str(path), str(cache)]
        found.append(
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        )
    first, second = found
    on_disk = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    figures = [path.stat().st_size / 1e6, first["start"], first["cpu"], second["start"], first["drawn"]]
    figures += [second["drawn"], second["resume"], first["memory"], second["memory"], on_disk / 1e6]
    return f"{conversations:,}", *(f"{one:.1f}" if one < 10 else f"{one:,.0f}" for one in figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, nargs="+", default=SIZES)
    parser.add_argument("--write", action="store_true", help="write data.md")
    parser.add_argument("--start", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        print(json.dumps(start(*args.start)))
        return
    starts = ("first start, s", "its CPU, s", "second start, s")
    head: tuple[str, ...] = ("conversations", "MB", *starts, "drawn/s at first", "then", "resume, s")
    head += ("memory at first, MB", "then", "cache, MB")
    rows = []
    for conversations in args.conversations:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(conversations, Path(folder)))
    sizes = " ".join(map(str, args.conversations))
    lines = [
        "# Start of large data",
        "",
        f"By `python -m benchmarks.data --conversations {sizes} --write`, on {cores()} cores,",
        f"{HELD_OUT} questions held out, {ROWS:,} rows drawn. Resume: to row {ROWS:,} in a new process. Memory: peak",
        "above what the process had before it read the data. The CPU seconds are those of all cores together.",
        "",
    ]
    text = "\n".join([*lines, Table("", head, tuple(rows)).markdown()]) + "\n"
    print(text)
    if args.write:
        Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
