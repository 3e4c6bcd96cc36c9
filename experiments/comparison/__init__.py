"""Compare any runs on their common items; the gate passes only a run without forgetting."""
