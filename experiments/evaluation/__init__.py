"""What a model can do and how far it has moved: item records of the new task, the kept tasks, drift and text."""
