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
# # Forgetting in five minutes
#
# A small pretrained LLM learns 80 facts about 20 people that do not exist, in two ways, on the same data in the same
# order:
#
# - **full**: all weights train;
# - **control**: Control LLM. The pretrained layers are frozen. Copies of eight of them train next to them, and the two
#   outputs are mixed half and half. The *divergence*, their distance, is added to the loss.
#
# The answer, of one seed: both know more than nine of ten facts afterwards (gain .99 and .93). Full tuning lost a tenth
# of its accuracy on tasks that the model knew (retention .90, interval .84 to .97), Control LLM nothing that can be
# seen (.97, interval .91 to 1.03).
#
# ![Retention against gain of both arms, from the base model on](pictures/01.png)
#
# This notebook runs the same pipeline as `make quickstart`. Change a number and run it again: finished arms are not run
# twice.

# %% tags=["parameters"]
base_model = "smollm2-135m-instruct"
steps = 45  # three times through the 240 questions, 16 at a time
batch_size = 16
new_items = 80  # the 80 facts, each asked in a way that is not trained on
kept_items = 32  # of each of four kept tasks, in two forms
replies_measured = 8  # texts of the base on which the KL is measured
text_tokens = 1024  # of a story, for the perplexity
layers = 8  # of which the control arm has copies
rates = {"full": 1e-4, "control": 1e-3}  # learning rates
reply_tokens = 48  # of the replies shown
live = True  # False: in this process, without a picture; to interrupt the kernel then stops the run
root = None  # where results go; None: the project's mlruns/

# %%
from os.path import relpath

from IPython.display import HTML, Image, display

from experiments import Grid, answers, arms_table, load_config, quiet, replies, run_experiment, start, watch_async

quiet()  # progress bars stay, the libraries' chatter goes
config = load_config(
    "quickstart",
    {
        "name": "notebook-01",
        "base_model": base_model,
        "training.steps": steps,
        "training.batch_size": batch_size,
        "evaluation.every": max(1, steps // 3),
        "evaluation.new_items": new_items,
        "evaluation.kept_items": kept_items,
        "evaluation.replies": replies_measured,
        "evaluation.perplexity_tokens": text_tokens,
        "arms": [
            {"name": "full", "method": "full", "learning_rates": [rates["full"]]},
            {
                "name": "control",
                "method": "control",
                "learning_rates": [rates["control"]],
                "control": {"layers": layers},
            },
        ],
    },
)

# %% [markdown]
# ## Train and measure
# The base model and both arms answer the same questions. The run is a process of its own, and the picture follows it:
# what was gained and kept at each evaluation, the loss, how long it still takes. Interrupt the cell and it goes on; the
# button stops it with a checkpoint, and the same cell continues. All figures are in MLflow meanwhile.

# %%
if live:
    await watch_async(start(config, root), root)

# %%
outcome = run_experiment(config, root)  # live: what has ended is read

# %% [markdown]
# ## What each learned and forgot
# *Gain* is the rise in accuracy on the facts, asked in a way that was not trained on. *Retention* is the accuracy on
# kept tasks after training divided by before: 1 means that nothing was lost. Brackets: 95 % intervals over questions. A
# click on a head sorts the table, the field filters it.

# %%
display(Grid(arms_table(outcome.results)))

# %% tags=["answer"]
display(Image(outcome.folder / "forgetting.png", width=900))

# %% [markdown]
# ## Replies side by side
# A rule chooses the questions: the first two held-out ones, and of `full` the clearest lost, won and kept answer, those
# whose right option changed most in its lead over the best wrong one.

# %%
asked = config.data.new[0].held_out(new_items, config.seed).test[:2]
print("to learn:", *(f"{item.question} {item.answer}." for item in asked), sep="\n")
turned = answers(outcome.folder, count=3)
prompts = [item.question for item in asked] + turned.sample()
display(Grid.of(replies(outcome.folder, list(rates.items()), prompts, reply_tokens), prose=True))

# %% [markdown]
# ## Which answers turned
# Of each arm the answers that were lost, won and kept, of the new task and the kept ones, by the same rule. The menus
# filter the table; `turned.frame` has all of them.

# %%
display(turned)

# %% [markdown]
# ## Where to look next
# The HTML report has the figures of each task, MLflow those of every step.

# %%
print("report:", relpath(outcome.report))
print("to start the MLflow UI, in a terminal: make ui")
display(HTML(f'then open <a href="{outcome.run_url}">this run in MLflow</a>'))
