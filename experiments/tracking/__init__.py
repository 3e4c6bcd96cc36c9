"""Track runs in MLflow: write every call to a journal first, deliver it from a thread."""
