"""The parameters with which each notebook runs in seconds, on a tiny base."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, dict[str, Any]] = {
    "00_desk": {},
    "01_forgetting_in_five_minutes": {
        "steps": 2,
        "batch_size": 2,
        "new_items": 4,
        "kept_items": 4,
        "replies_measured": 2,
        "text_tokens": 256,
        "reply_tokens": 2,
        "layers": 2,
    },
    "02_ablation": {
        "steps": 2,
        "batch_size": 2,
        "layers": 2,
        "new_items": 4,
        "kept_items": 4,
        "replies": 2,
        "text_tokens": 256,
        "alphas": [0.0, 1.0],
        "reply_tokens": 2,
    },
    "03_hidden_states": {"steps": 2, "batch_size": 2, "layers": 2, "new_items": 4, "kept_items": 4, "shown": [0, 2]},
    "04_inside": {"steps": 2, "batch_size": 2, "layers": 2, "new_items": 4, "kept_items": 4, "shown": 2},
    "05_search": {
        "trials": 2,
        "steps": 2,
        "batch_size": 2,
        "new_items": 4,
        "kept_items": 4,
        "replies": 2,
        "text_tokens": 256,
        "layers": [1, 2],
        "live": False,  # test_watch.py starts a process and watches it
    },
    "06_expand_by_hand": {"steps": 2, "batch_size": 2, "layers": 2, "held_out": 2},
    "07_bring_your_own": {
        "steps": 2,
        "batch_size": 2,
        "held_out": 2,
        "kept_items": 4,
        "replies": 2,
        "reply_tokens": 2,
        "text_tokens": 256,
    },
    "08_measure": {
        "people": 3,
        "steps": 2,
        "kept_items": 4,
        "replies": 2,
        "reply_tokens": 2,
        "text_tokens": 256,
        "alphas": [0.5],
        "condition": "retention >= .01",
    },
}
