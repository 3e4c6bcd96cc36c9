"""Errors that a user can act on."""

from __future__ import annotations


class ConfigError(ValueError):
    """A YAML file that cannot be run; the message lists every fault with its place in the file."""
