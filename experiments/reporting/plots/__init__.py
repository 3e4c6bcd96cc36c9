"""Figures for reports and notebooks: retention against gain, alignment, comparisons, the mixture law, studies."""
