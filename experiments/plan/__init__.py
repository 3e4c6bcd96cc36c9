"""What a run costs before it starts: memory, disk, FLOPs and time, from the config and tensors without data."""
