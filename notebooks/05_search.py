# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: -jupytext.text_representation
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Search instead of guessing
#
# A study tries many settings and keeps all of them: which interpolation, how many layers, which learning rate give the
# best trade of gain for retention? This one is small, four trials of a few steps, to show the tools. The shipped study
# `axes` asks the same with 16 trials: `control-llm study axes --workers 2`.
#
# The answer: with so few trials and questions nothing is decided. Three of the four trials are on the front, from a
# gain of .12 at retention 1.00 to one of .25 at .97, and their intervals in the table overlap. What the tools give is
# there: each trial leads to its run and to its answers.
#
# ![The front: gain and retention of the trials](pictures/05.png)

# %% tags=["parameters"]
trials = 4
steps = 8
batch_size = 8
new_items = 32
kept_items = 16
replies = 4  # texts of the base on which the KL is measured
text_tokens = 512  # of a story, for the perplexity
layers = [4, 8]  # to choose from
live = True  # False: in this process, without a picture
base_model = "smollm2-135m-instruct"
root = None  # where results go; None: the project's mlruns/

# %%
from pathlib import Path

from IPython.display import display

from experiments import StudyView, parse_study, quiet, run_study, start, watch_async

quiet()
study = parse_study(
    {
        "name": "notebook-05",
        "question": "Which interpolation, how many layers and which learning rate give the best trade?",
        "base": "sums",
        "overrides": {
            "base_model": base_model,
            "training.steps": steps,
            "training.batch_size": batch_size,
            "evaluation.every": steps,
            "evaluation.new_items": new_items,
            "evaluation.kept_items": kept_items,
            "evaluation.replies": replies,
            "evaluation.perplexity_tokens": text_tokens,
            "arms": [{"name": "control", "method": "control", "learning_rates": [1e-3], "control": {"layers": 4}}],
        },
        "search": {
            "interpolation": {"kind": "choice", "path": "arms.0.control.interpolation", "values": ["lerp", "dlerp"]},
            "layers": {"kind": "choice", "path": "arms.0.control.layers", "values": layers},
            "rate": {"kind": "float", "path": "arms.0.learning_rates.0", "low": 2e-4, "high": 2e-3, "log": True},
        },
        "objectives": [
            {"figure": "gain", "direction": "maximize"},
            {"figure": "retention", "direction": "maximize"},
        ],
        "budget": {"trials": trials},
    }
)

# %% [markdown]
# ## Start it, or join it
# It trains in a process of its own, so this notebook stays free, and the same call joins a study that runs. Interrupt
# the cell and it goes on; the button stops it. Run the cells below again while it runs: they show the trials so far.

# %%
if live:
    await watch_async(start(study, root), root)

# %%
if not live:
    run_study(study, root and Path(root))

# %%
view = StudyView(study.name, root)
display(view)

# %% [markdown]
# ## The front, and each trial's run and answers
# Each point is a trial; under the mouse, what it picked and gave. Up and right is better. The staircase joins the
# trials that no other trial beats in both. Click on a trial: below the picture are its run, and the answers that it
# lost and won, the clearest ones first. It needs no running kernel. `view.answers(NUMBER)` has all of them.

# %% tags=["answer"]
display(view.clicked())

# %% [markdown]
# ## What matters
# The share of an objective's variance over the trials that a dimension explains alone (fANOVA). With few trials it is a
# hint at most.

# %%
display(view.importances() or "too few trials are complete, or all are alike: nothing can be said yet")

# %% [markdown]
# ## Where to look next
# `control-llm add-trials notebook-05 8` raises the budget, and the first cells go on from there. `control-llm report
# notebook-05` writes the study's report, and `control-llm ui --optuna` opens it in optuna-dashboard.
