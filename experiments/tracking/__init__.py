"""MLflow runs that survive their store: a journal first, delivered by a thread."""
