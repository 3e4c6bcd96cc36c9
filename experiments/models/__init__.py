"""The base model, its tokens, its arithmetic, and replies from it."""
