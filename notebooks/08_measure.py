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
# # What did this model forget?
#
# A model that was trained elsewhere: by TRL's `SFTTrainer`, in a process of its own, with none of our code in the
# training. Two calls measure what it forgot and write a model that forgot less. On the command line they are
# `control-llm measure` and `control-llm soften`.
#
# The answer, of one model: it lost 22 of 135 kept answers and won 24, so forgetting is not shown over all tasks, though
# two of the four fell to .73. The softened model is nearer to the base (KL 1.0, not 2.3) and gained less (.57, not
# .82). The difference is not significant (p .115): 24 questions of each task are few.
#
# ![Gain, retention and KL between the base and the model](pictures/08.png)

# %% tags=["parameters"]
people = 20  # invented people; the model learns facts about them
steps = 45  # of training
kept_items = 24  # questions of each kept task
replies = 4  # whose probabilities are compared
reply_tokens = 24
text_tokens = 512
alphas = [0.3, 0.6]
condition = "nfr <= .2"  # of the softened model: the upper bound of its share of lost answers
base_model = "smollm2-135m-instruct"
root = None  # where results go; None: the project's mlruns/

# %% [markdown]
# ## Train, in another process
# The [script](../docs/examples/train_elsewhere.py) is plain TRL. A model that is there already is not trained again.

# %%
import shutil
import subprocess
import sys
from pathlib import Path

from IPython.display import display

from experiments import Grid, Picture, measure_models, path_figure, quiet, soften_model

quiet()  # progress bars stay, the libraries' chatter goes
place = Path(root or "../mlruns").resolve() / f"elsewhere-{base_model.replace('/', '-')}-{people}-{steps}"
if not (place / "model").exists():
    script, how = "../docs/examples/train_elsewhere.py", ["--people", str(people), "--steps", str(steps)]
    how += ["--base", base_model] if base_model != "smollm2-135m-instruct" else []
    subprocess.run([sys.executable, script, place, *how], check=True, capture_output=True)
print(*sorted(path.name for path in (place / "model").iterdir()), sep="\n")

# %% [markdown]
# ## Measure
# The first line is the answer. `test.jsonl` asks for the same facts in other words than the training did.

# %%
changes = {
    "kept.items": kept_items,
    "drift.replies": replies,
    "drift.new_replies": replies,
    "drift.reply_tokens": reply_tokens,
    "text.tokens": text_tokens,
}
suites = ["new", "kept", "drift", "text"]
options = {"new": place / "test.jsonl", "suites": suites, "changes": changes, "root": root}
found = measure_models(base_model, [f"trl={place / 'model'}"], **options)
print(*found.report.words, sep="\n")
for table in found.report.all_tables:
    display(Grid(table, above=table.title))

# %% [markdown]
# ## Soften
# Points between base and model, W0 + alpha (W - W0). Of those that lost few enough answers, the one with the highest
# gain is written as a plain model. Half of the questions choose it; the figures are those of the other half.

# %%
softer = place / "softer"
shutil.rmtree(softer, ignore_errors=True)  # of an earlier run of this notebook
soft = soften_model(
    base_model, f"trl={place / 'model'}", softer, alphas=alphas, conditions=[condition] if condition else [], **options
)
print(*soft.report.words, sep="\n")
display(Grid(soft.report.table))

# %% tags=["answer"]
display(Picture(path_figure(soft.report.cards, soft.alpha, soft.report.asked)))

# %% [markdown]
# ## Was it a cure?
# The softened model is a folder as any other: it is measured next to the one that it was made from, with a paired test.

# %%
if soft.alpha is not None:
    both = measure_models(base_model, [f"trl={place / 'model'}", f"softer={softer}"], **options)
    print(*both.report.words, sep="\n")
    for table in both.report.tables[:1] + both.report.tables[-1:]:
        display(Grid(table, above=table.title))
