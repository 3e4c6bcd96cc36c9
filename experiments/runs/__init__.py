"""A run: its data, its arms, what it leaves."""
