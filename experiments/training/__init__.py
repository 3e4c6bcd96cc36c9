"""One arm's training on transformers' Trainer: its loss, schedules, checkpoints and meters."""
