"""The mixture law."""
