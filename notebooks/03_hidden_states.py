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
# # What moved inside
#
# Two arms learn the same sums: **full** trains all weights, **control** trains copies of a few layers next to the
# frozen ones. Accuracy shows the result. This notebook looks inside: how far did the hidden states move, in which
# layers, and are the states of related words still close to each other?
#
# The answer, of one seed: with full tuning all layers moved, the last ones most, and sentences got other neighbours
# (mean CKA 0.889). With control the states stayed close to the base model's (0.992). The first forgot (retention 0.61),
# the second did not (1.01).
#
# ![How far the hidden states moved, by layer and arm](pictures/03.png)
#
# The sentences are the paper's: 30 analogies such as *king is to queen* or *Paris is to France*, each also the other
# way round. The state of each sentence's last token is compared, layer by layer.

# %% tags=["parameters"]
steps = 20
batch_size = 8
layers = 8  # how many layers control expands
learning_rate = 1e-3
new_items = 32
kept_items = 16
shown = [7, 15, 22, 29]  # layers of the projections
base_model = "smollm2-135m-instruct"
root = None  # where results go; None: the project's mlruns/

# %%
import torch
from IPython.display import display

import ctrl
from experiments import (
    Grid,
    Picture,
    alignment_figure,
    branch_table,
    hidden_states,
    layer_table,
    load_base,
    load_config,
    load_trained,
    projection_figure,
    quiet,
    run_experiment,
    sentences,
    update_sizes,
)

quiet()  # progress bars stay, the libraries' chatter goes
config = load_config(
    "sums",
    {
        "name": "notebook-03",
        "base_model": base_model,
        "training.steps": steps,
        "training.batch_size": batch_size,
        "evaluation.every": steps,
        "evaluation.suites": ["new", "kept", "alignment"],
        "evaluation.new_items": new_items,
        "evaluation.kept_items": kept_items,
        "arms": [
            {"name": "full", "method": "full", "learning_rates": [learning_rate]},
            {"name": "control", "method": "control", "learning_rates": [learning_rate], "control": {"layers": layers}},
        ],
    },
)

# %% [markdown]
# ## Train
# Arms that an earlier run of this notebook finished are read, not trained again. With suite `alignment` in the config
# the figures below are also recorded at every evaluation (`alignment_cka` and others in the arm's scorecard).

# %%
outcome = run_experiment(config, root)

# %%
base, tokenizer = load_base(config.base_model, config.data.system)
models = {arm: load_trained(outcome.folder, arm, learning_rate) for arm in ("full", "control")}
before = hidden_states(base.eval(), tokenizer)
after = {arm: hidden_states(model.eval(), tokenizer) for arm, model in models.items()}

# %% [markdown]
# ## How far from the base, layer by layer
# - **mean cosine** and **relative L2**: of a sentence's state after training with its state before. 1 and 0: not moved.
# - **linear CKA**: the same after any rotation and rescaling; below 1 the sentences' mutual distances have changed.
# - **shared nearest neighbours**: the share of the five sentences nearest to a sentence that still are. Chance is 5/59.
# - **|dW| / |W|**: how far the weights moved; in an expanded layer, the copy's.
#
# Dark: far from the base model.

# %% tags=["answer"]
tables = {}
for arm in models:
    tables[arm] = layer_table(before, after[arm])
    tables[arm]["update"] = update_sizes(base, models[arm])
display(Picture(alignment_figure(tables, "Hidden states of the probe sentences against the base")))

# %%
for arm, table in tables.items():
    display(Grid.of(table.loc[[i for i in shown if i in table.index]], above=arm))

# %% [markdown]
# ## Do analogies stay together?
# The 30 sentences on the two principal axes of the base's states. Hollow: base; filled: trained, joined by a line.

# %%
visible = [i for i in shown if i < len(before.layers)]
display(Picture(projection_figure(before, after, visible, "Probe sentences, base to tuned")))

# %% [markdown]
# ## Inside the expanded layers
# The two branches of each expanded layer on the same sentences: the frozen layer against its trained copy, and alpha,
# the copy's share in the mix. The divergence is that of the loss, here over all tokens of the sentences.

# %%
control = models["control"]
inside = branch_table(after["control"])
with ctrl.diagnostics(control) as log, torch.no_grad():
    for _, sentence in sentences():
        ids = tokenizer(sentence, return_tensors="pt")["input_ids"].to(control.device)
        control(input_ids=ids, labels=ids)
inside["divergence"] = log.mean("divergence")
display(Grid.of(inside, places=4))

# %%
branches = inside[["cosine", "relative_l2", "divergence", "alpha"]]
display(Picture(alignment_figure({"control": branches}, "Expanded against pretrained branch")))

# %% [markdown]
# ## Where to look next
# Raise `steps`, or give control another `divergence` or `interpolation` in the config above, and run again. The same
# comparison holds for any two models of one shape: `hidden_states` takes a model and its tokenizer.

# %%
for result in outcome.results:
    print(
        f"{result.label}: gain {result.scorecard['gain'].value:+.2f}, "
        f"retention {result.scorecard['retention'].value:.2f}, CKA {result.scorecard['alignment_cka'].value:.3f}"
    )
