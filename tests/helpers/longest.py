"""The test files that take minutes, longest first: they start first, so that no process waits for the last one."""

LONGEST = (
    "notebooks/test_notebooks.py",
    "desk_browser/test_lab.py",
    "experiments/models/test_real_model.py",
    "experiments/runs/test_arm.py",
    "experiments/studies/test_trial.py",
    "experiments/runs/test_kills.py",
    "experiments/runs/test_run.py",
    "experiments/training/test_processes.py",
    "ctrl/whole/test_distributed.py",
    "experiments/posthoc/test_run.py",
    "experiments/posthoc/test_operations.py",
    "experiments/runs/test_data.py",
    "ctrl/whole/test_architectures.py",
)
