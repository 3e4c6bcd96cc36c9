"""Used by all rooms, and using none: YAML sections, files, paths, commands, errors."""
