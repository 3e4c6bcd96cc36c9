"""Train a model with TRL alone, on facts about invented people: what `control-llm measure` and `soften` are for.

    python docs/examples/train_elsewhere.py FOLDER        # 5 minutes on two CPU cores

It writes FOLDER/train.jsonl, FOLDER/test.jsonl (the same facts, asked in other words) and FOLDER/model. `--people`,
`--steps` and `--base` (a folder or a name) make it shorter.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from experiments.data.facts import Facts
from experiments.models.base import shipped_folder


def write_data(folder: Path, people: int) -> None:
    """Write questions to learn and questions to measure. Of the bench this script uses only its invented people."""
    source = Facts(number=people)
    rows = [{"prompt": item.question, "completion": item.answer} for item in source.epoch(0, 0, frozenset())]
    test = [{"question": item.question, "answer": item.answer} for item in source.held_out(4 * people, 0).test]
    for name, found in (("train", rows), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


def as_chat(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """Return TRL's conversational form."""
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }


def main(folder: Path, people: int, steps: int, base: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder, people)
    rows = load_dataset("json", data_files=str(folder / "train.jsonl"), split="train").map(as_chat)
    config = SFTConfig(
        output_dir=str(folder / "training"),
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=1e-4,
        warmup_steps=6,
        lr_scheduler_type="cosine",
        max_length=128,
        completion_only_loss=True,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32"},
    )
    trainer = SFTTrainer(model=str(base), args=config, train_dataset=rows)
    trainer.train()
    trainer.save_model(str(folder / "model"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--base", type=Path, help="default: SmolLM2-135M-Instruct")
    args = parser.parse_args()
    main(args.folder, args.people, args.steps, args.base or shipped_folder())
