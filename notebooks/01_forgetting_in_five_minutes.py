# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Forgetting in five minutes
#
# A small pretrained LLM learns arithmetic in two ways, on the same data in the same order:
#
# - **full**: all weights train;
# - **control**: Control LLM. The pretrained layers are frozen. Copies of eight of them train next to them, and the two
#   outputs are mixed half and half. The *divergence*, their distance, is added to the loss.
#
# What does each learn, and what does each forget? This notebook runs the same pipeline as `make quickstart`, with few
# steps and items, so its intervals are wide. Change a number and run it again: finished arms are not run twice.

# %% tags=["parameters"]
steps = 32
batch_size = 8
new_items = 48
kept_items = 30
replies_measured = 8  # texts of the base on which the KL is measured
text_tokens = 2048  # of a story, for the perplexity
learning_rate = 1e-3
reply_tokens = 48  # of the replies shown
root = None  # where results go; None: the project's mlruns/

# %%
from os.path import relpath

import pandas as pd
from IPython.display import HTML, Image, display

from experiments import format_table, load_config, quiet, replies, run_experiment

quiet()  # progress bars stay, the libraries' chatter goes
config = load_config(
    "quickstart",
    {
        "name": "notebook-01",
        "training.steps": steps,
        "training.batch_size": batch_size,
        "evaluation.every": steps // 2,
        "evaluation.new_items": new_items,
        "evaluation.kept_items": kept_items,
        "evaluation.replies": replies_measured,
        "evaluation.perplexity_tokens": text_tokens,
        "arms": [
            {"name": "full", "method": "full", "learning_rates": [learning_rate]},
            {"name": "control", "method": "control", "learning_rates": [learning_rate], "control": {"layers": 8}},
        ],
    },
)

# %% [markdown]
# ## Train and measure
# The base model and both arms answer the same questions. All figures are in MLflow while the run goes on.

# %%
outcome = run_experiment(config, root)

# %% [markdown]
# ## What each learned and forgot
# *Gain* is the rise in accuracy on sums that were never trained on. *Retention* is the accuracy on kept tasks after
# training divided by before: 1 means that nothing was lost. Brackets are 95 % intervals over questions.

# %%
print(format_table(outcome.results))

# %%
display(Image(outcome.folder / "forgetting.png", width=900))

# %% [markdown]
# ## Replies side by side
# Sums first, then two questions that have nothing to do with sums.

# %%
arms = [("full", learning_rate), ("control", learning_rate)]
prompts = ["38 - 5 =", "What is 12 + 7?"]
prompts += ["What is the capital of France?", "Write one sentence about the sea."]
with pd.option_context("display.max_colwidth", None):
    display(HTML(replies(outcome.folder, arms, prompts, reply_tokens).to_html()))

# %% [markdown]
# ## Where to look next
# The HTML report has the figures of each task, MLflow those of every step.

# %%
print("report:", relpath(outcome.report))
print("to start the MLflow UI, in a terminal: make ui")
display(HTML(f'then open <a href="{outcome.run_url}">this run in MLflow</a>'))
