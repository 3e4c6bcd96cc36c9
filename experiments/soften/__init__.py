"""Soften a model: go part of the way from its base to it, without training, where it forgets less."""
