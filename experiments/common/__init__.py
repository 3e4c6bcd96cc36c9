"""What every room uses, and what knows of none: YAML sections, files."""
