"""Train a model on its own replies with TRL: GRPO (arXiv 2402.03300) or SDFT (arXiv 2601.19897), on sums.

    python docs/examples/train_on_policy.py grpo FOLDER               # rewards: the verifier of the sums
    python docs/examples/train_on_policy.py sdft FOLDER --copies 8    # Control LLM: eight copies, frozen originals

GRPO samples several replies to a question and makes those likelier whose reward is above the mean of their group.
SDFT samples a reply too, and learns from the base's own probabilities of its tokens when the base sees the answer in
the prompt. It writes FOLDER/test.jsonl (questions that are not trained on) and FOLDER/model, for `control-llm measure`.
Both need trl, and for more than a trial a GPU: each step samples replies.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

import ctrl
from experiments.data.items import Item, Scorer
from experiments.data.procedural import ReasoningGym
from experiments.models.base import shipped_folder

SUMS = ReasoningGym(name="chain_sum", params={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2})
TESTED, SAMPLED = 100, 4  # questions that are held out; replies to each question, and rows of a step


def rewards(items: list[Item], scorer: Scorer) -> Any:
    """Return TRL's reward function: what the verifier gives each reply, from 0 to 1."""

    def reward(completions: list[Any], number: list[int], **_: Any) -> list[float]:
        replies = [completion[0]["content"].strip() for completion in completions]
        return [float(scorer(reply, items[n].entry)) for reply, n in zip(replies, number, strict=True)]

    return reward


def rows(items: list[Item]) -> Dataset:
    """Return the questions as chats. privileged_context: what SDFT's teacher sees after the question."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": item.question}],
                "number": number,
                "privileged_context": f"The answer is {item.answer}. Write the answer alone.",
            }
            for number, item in enumerate(items)
        ]
    )


def trainer_of(kind: str, model: Any, tokenizer: Any, items: list[Item], scorer: Scorer, **settings: Any) -> Any:
    settings |= {"max_completion_length": 16, "num_generations": SAMPLED, "per_device_train_batch_size": SAMPLED}
    settings |= {"save_strategy": "no", "report_to": "none", "bf16": False, "gradient_checkpointing": False}
    given = {"train_dataset": rows(items), "processing_class": tokenizer}
    if kind == "grpo":
        return GRPOTrainer(model, rewards(items, scorer), GRPOConfig(**settings), **given)
    return SDFTTrainer(model, SDFTConfig(**settings), **given)


def main(kind: str, folder: Path, steps: int, copies: int, base: Path, use_cpu: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    task = SUMS.held_out(TESTED, 0)
    test = [json.dumps({"question": item.question, "answer": item.answer}) for item in task.test]
    (folder / "test.jsonl").write_text("\n".join(test) + "\n", encoding="utf-8")
    items = [item for item in itertools.islice(SUMS.epoch(0, 0, task.ids), steps) if isinstance(item, Item)]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if copies:
        ctrl.expand(model, ctrl.ControlConfig(layers=copies))
    settings = {"output_dir": str(folder / "training"), "max_steps": steps, "use_cpu": use_cpu, "seed": 0}
    rate = 1e-4 if copies else 1e-5
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = trainer_of(kind, model, tokenizer, items, task.scorer, learning_rate=rate, **settings)
    if copies:
        ctrl.attach(trainer)  # TRL computes the loss without the model, so the divergence has to be added
    trainer.train()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("grpo", "sdft"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--copies", type=int, default=0, help="expanded layers; 0: train all weights")
    parser.add_argument("--base", type=Path, help="default: SmolLM2-135M-Instruct")
    args = parser.parse_args()
    cpu = not torch.cuda.is_available()
    main(args.kind, args.folder, args.steps, args.copies, args.base or shipped_folder(), cpu)
