"""The kept tasks and their questions."""
