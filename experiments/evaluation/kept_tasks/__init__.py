"""The questions of the kept tasks."""
