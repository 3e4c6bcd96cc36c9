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
# # Inside the expanded layers
#
# An expanded layer has two branches: the frozen layer and its trained copy. This notebook asks where they part: in
# which layers, and for which sentences. Under the mouse each point names its sentence.
#
# The answer, of one small run: the copies part from the frozen layers only a little, and most in the early ones. Over
# all layers the states of `control` are at a mean distance of 0.113 from the base model's, those of `full` at 0.528.
#
# ![Distance of the two branches, by layer](pictures/04.png)
#
# It reads the run of notebook 03 if it is there, and trains it if not.

# %% tags=["parameters"]
steps = 20
batch_size = 8
layers = 8  # how many layers control expands
learning_rate = 1e-3
new_items = 32
kept_items = 16
shown = 29  # the layer of the projection
base_model = "smollm2-135m-instruct"
root = None  # where results go; None: the project's mlruns/

# %%
import pandas as pd
from IPython.display import display

from experiments import (
    Grid,
    Picture,
    alignment_figure,
    branch_table,
    branches_hover,
    hidden_states,
    layer_table,
    load_base,
    load_config,
    load_trained,
    projection_figure,
    projection_hover,
    quiet,
    run_experiment,
    sentences,
)

quiet()
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
outcome = run_experiment(config, root)

# %%
base, tokenizer = load_base(config.base_model, config.data.system)
before = hidden_states(base.eval(), tokenizer)
arms = [result.arm for result in outcome.results]
after = {arm: hidden_states(load_trained(outcome.folder, arm, learning_rate).eval(), tokenizer) for arm in arms}

# %% [markdown]
# ## Where the branches part
# The distance of the copy's output from the frozen layer's, relative to its length, for each of 60 sentences in each
# expanded layer. 0: the copy does what the frozen layer does. One model, so points are sentences, not seeds.

# %% tags=["answer"]
inside = branch_table(after["control"])
still = alignment_figure({"control": inside[["relative_l2", "cosine", "alpha"]]}, "Trained copy against frozen layer")
display(Picture(still, branches_hover(after["control"])))

# %% [markdown]
# ## The sentences in one layer
# On the two principal axes of the base's states. Hollow: base; filled: trained.

# %%
layer = min(shown, len(before.layers) - 1)
still = projection_figure(before, after, [layer], "Probe sentences, base to tuned")
display(Picture(still, projection_hover(before, after, layer)))

# %% [markdown]
# ## Which sentences moved most
# The relative distance of a sentence's state from the base's in that layer, by arm.

# %%
moved = {
    arm: ((states.layers[layer] - before.layers[layer]) ** 2).sum(1) ** 0.5 / (before.layers[layer] ** 2).sum(1) ** 0.5
    for arm, states in after.items()
}
table = pd.DataFrame(moved, index=pd.Index([text for _, text in sentences()], name="sentence"))
display(Grid.of(table.sort_values("control", ascending=False).head(8)))

# %% [markdown]
# ## Where to look next
# Raise `steps`, or give `control` another `divergence` or `interpolation`: the distances follow. Notebook 03 has the
# same states as heat maps over all layers. With suite `alignment` they are measured at every evaluation of a run.

# %%
for result in outcome.results:
    far = layer_table(before, after[result.arm])["relative_l2"].mean()
    retention = result.scorecard["retention"].value
    print(f"{result.label}: mean distance over layers {far:.3f}, retention {retention:.2f}")
