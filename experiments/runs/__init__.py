"""Run an experiment: prepare its data and base model, train and measure its arms, write its report."""
