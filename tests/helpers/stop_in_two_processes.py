"""Train in two processes until a limit breaks: torchrun calls it with the folder of what is left."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments, default_data_collator

from experiments.measure.callback import ForgettingCallback
from tests.helpers.byte_level import byte_tokenizer
from tests.helpers.measured import tiny_model
from tests.helpers.token_rows import rows_of


def main(folder: Path) -> None:
    changes = {"kept.items": 4, "drift.replies": 2, "drift.reply_tokens": 4, "bootstrap": 100}
    hook = ForgettingCallback(
        every=2, budget=1.0, folder=folder / "measured", changes=changes, limits=["kl <= 1e-9"], stop=True
    )
    args = TrainingArguments(str(folder / "out"), max_steps=8, use_cpu=True, save_strategy="no", report_to=[],
                             learning_rate=3e-2, per_device_train_batch_size=1)  # fmt: skip
    parts: Any = {"train_dataset": rows_of(16), "processing_class": byte_tokenizer(), "callbacks": [hook]}
    trainer = Trainer(tiny_model(), args, data_collator=default_data_collator, **parts)
    trainer.train()
    (folder / f"rank-{args.process_index}").write_text(str(trainer.state.global_step))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
