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
# # Which part does it?
#
# Control LLM has three parts: copies next to frozen layers, a mix of the two outputs, and the divergence, their
# distance in the loss. This notebook takes parts away and compares what is left, on the same data and the same
# questions. Then it turns a dial: after training, how much of the copies should be mixed in?
#
# The answer, of one seed: what protects is that the pretrained layers stay frozen. The four arms with frozen layers and
# copies keep what the model knew (retention 1.00 to 1.04). The same layers trained in place keep .72 of it, all weights
# .53, both significantly less than `control`. Without mixing or without the penalty the KL to the base is significantly
# higher; with an alpha for each token the gain is.
#
# ![A row for each arm, a panel for each figure](pictures/02.png)
#
# It is a small experiment, with few steps and few questions. The study `table5` asks the same of all variants in the
# paper: `control-llm study table5`.

# %% tags=["parameters"]
steps = 24
batch_size = 8
layers = 8  # how many layers are expanded
learning_rate = 1e-3
new_items = 48
kept_items = 24
replies = 8  # texts of the base on which the KL is measured
text_tokens = 1024  # of a story, for the perplexity
alphas = [0.0, 0.25, 0.5, 0.75, 1.0]  # of the dial
reply_tokens = 24  # of the replies shown
base_model = "smollm2-135m-instruct"
root = None  # where results go; None: the project's mlruns/

# %%
from IPython.display import display

from experiments import (
    Buttons,
    Dial,
    Grid,
    Picker,
    Picture,
    answers,
    asked_in,
    compare,
    comparison_figure,
    comparison_hover,
    dial_figure,
    figures_table,
    load_base,
    load_config,
    load_trained,
    quiet,
    read_runs,
    replies_at,
    run_experiment,
    run_posthoc,
)

quiet()  # progress bars stay, the libraries' chatter goes

# %% [markdown]
# ## The arms
# One run holds all arms. Add one, and run the cells again: the arms that are finished are read, not trained again. Each
# call checks the whole config and prints the YAML of its arm, so a typo is found before anything trains.

# %%
changes = {
    "name": "notebook-02",
    "base_model": base_model,
    "training.steps": steps,
    "training.batch_size": batch_size,
    "evaluation.every": steps,
    "evaluation.new_items": new_items,
    "evaluation.kept_items": kept_items,
    "evaluation.replies": replies,
    "evaluation.perplexity_tokens": text_tokens,
}
picker = Picker(load_config("sums", changes), root, own_arms=False)
if "control" not in picker.arms:
    picker.add("control", rate=learning_rate, layers=layers, interpolation="lerp", divergence="mse")
    picker.clone("control", "no-penalty", divergence="none")
    picker.clone("control", "alpha-per-token", interpolation="dlerp")
    picker.add("no-mixing", rate=learning_rate, layers=layers, structure="stack")
    picker.add("no-copies", method="partial", rate=learning_rate, layers=layers)
    picker.add("all-weights", method="full", rate=learning_rate)
else:
    print("arms of an earlier Run All, with its layers and learning_rate: give changes another name to begin anew")
display(picker)

# %% [markdown]
# The same with menus, whose choices are those of the config. Each click shows the line of Python that it equals, and
# nothing trains before *Run*, which starts a process of its own; `await watch_async(picker.folder)` follows it.

# %%
display(Buttons(picker))

# %%
outcome = run_experiment(picker.config, root)

# %% [markdown]
# ## Side by side
# All arms answered the same questions, so differences are taken question by question. Filled: the difference from
# `control` is significant (p below .05 after Holm's correction over the arms). Hollow: it is not. Under the mouse: the
# numbers.

# %% tags=["answer"]
runs = read_runs([f"{outcome.folder}:{r.arm}-{r.learning_rate:g}" for r in outcome.results])  # not what the dial made
comparison = compare(runs, "control-" + f"{learning_rate:g}", draws=2_000)
title = "What each part is worth"
display(Picture(comparison_figure(comparison, title), comparison_hover(comparison, title)))

# %%
display(Grid(figures_table(comparison)))

# %% [markdown]
# ## The dial
# After training, alpha, the share of the copies, can still be changed. 0 is the base model; the arm was trained at .5.
# Nothing is trained here, and hidden states are mixed, not weights (for that: `--op merge`).

# %%
asked = asked_in(picker.config.to_dict())
results = run_posthoc(outcome.folder, "control", learning_rate, "dial", alphas)
display(Picture(dial_figure(results, "control: share of the trained copies", asked, trained=0.5)))

# %% [markdown]
# A rule chooses the prompts: the first two held-out questions, and the clearest lost, won and kept answer of `control`.

# %%
model = load_trained(outcome.folder, "control", learning_rate)
tokenizer = load_base(base_model, picker.config.data.system)[1]
prompts = [item.question for item in picker.config.data.new[0].held_out(new_items, picker.config.seed).test[:2]]
prompts += answers(outcome.folder).sample(f"control-{learning_rate:g}")
precision = picker.config.precision
made = replies_at(model, tokenizer, prompts, [0.0, 0.5, 1.0], reply_tokens, precision)
display(Grid.of(made, prose=True))

# %% [markdown]
# Turn it by hand (in a running notebook). The base model's replies stay next to it, and the line above the table is the
# same in Python.

# %%
display(Dial(model, tokenizer, prompts, alpha=0.5, tokens=reply_tokens, precision=precision))

# %% [markdown]
# ## Where to look next
# One seed and few questions decide little. `"seed": 1` in the changes above makes a run of its own with another seed.
# The study `axes` searches interpolation, layers and replay together.

# %%
for result in outcome.results:
    print(f"{result.label}: {result.cost['trainable_parameters'] / 1e6:.1f} M trained, {result.cost['seconds']:.0f} s")
