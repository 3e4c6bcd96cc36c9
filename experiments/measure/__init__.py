"""Measure what any model forgot of its base, wherever it was trained: `control-llm measure`."""
