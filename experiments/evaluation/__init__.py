"""Evaluation of a model: suites of measurements, which give one record per item."""
