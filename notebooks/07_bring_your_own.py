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
# # Bring your own conversations
#
# Twenty conversations in a file, a model, and one question: what does it learn of them, and what does it forget?
#
# The answer, after ten steps of two conversations: each token of the held-out replies became e^1.22, more than three
# times, as likely, and what the model knew before shows no loss (retention 1.06, interval .88 to 1.28). That is one
# seed and few questions: it shows how, not how much.
#
# ![Retention against gain, from the base model on](pictures/07.png)
#
# On the command line this is `control-llm preview own-chats --set data.new.path=chats.jsonl`, and then the same with
# `run`. Put your own file in place of the one that is written here: other
# [shapes](../docs/data.md#shapes-of-tables) are recognised too.

# %% tags=["parameters"]
base_model = "smollm2-135m-instruct"  # a name of the Hub, or a folder
steps = 10  # of training
batch_size = 2
held_out = 4  # conversations that are measured, and not trained on
kept_items = 6  # of each of four kept tasks, in two forms
replies = 2  # whose probabilities are compared
reply_tokens = 16
text_tokens = 256  # of a story, for the perplexity
learning_rate = 1e-4
root = None  # where results go; None: the project's mlruns/

# %% [markdown]
# ## The file
# One conversation on each line. A shop sells lamps: each colour and kind has a number and a price.

# %%
import json
from os.path import relpath
from pathlib import Path

from IPython.display import Image, display

from experiments import Grid, arms_table, load_config, plan_run, plan_text, preview, quiet, run_experiment

quiet()  # progress bars stay, the libraries' chatter goes
file = Path(root or "../mlruns") / "chats.jsonl"
file.parent.mkdir(exist_ok=True)
lines = []
for i, kind in enumerate(["desk lamp", "floor lamp", "ceiling lamp", "bedside lamp"]):
    for j, colour in enumerate(["green", "red", "blue", "white", "black"]):
        said = [
            ("user", f"Do you have a {colour} {kind}?"),
            ("assistant", f"Yes, {2 + (i + j) % 5} of them."),
            ("user", f"How much is a {colour} one?"),
            ("assistant", f"A {colour} {kind} is {19 + 10 * i + j} euros."),
        ]
        lines.append(json.dumps({"messages": [{"role": role, "content": text} for role, text in said]}))
file.write_text("\n".join(lines))
print(lines[0])

# %% [markdown]
# ## What will be trained on
# The shape of the table, what is too long, and the first conversation token by token. On green: the tokens that are
# learned. These should be each reply and the token that ends it, and nothing else.

# %%
config = load_config(
    "own-chats",
    {
        "name": "notebook-07",
        "base_model": base_model,
        "data.new.path": str(file),
        "training.steps": steps,
        "training.batch_size": batch_size,
        "evaluation.every": steps,
        "evaluation.new_items": held_out,
        "evaluation.suites": {
            "new": {},
            "kept": {"items": kept_items},
            "drift": {"replies": replies, "new_replies": min(replies, held_out), "reply_tokens": reply_tokens},
            "text": {"tokens": text_tokens},
        },
        "arms": [{"name": "full", "method": "full", "learning_rates": [learning_rate]}],
    },
)
preview(config)

# %% [markdown]
# ## What it will cost
# Memory, disk and operations, before anything trains. `control-llm plan` says the same for other machines.

# %%
print(plan_text(plan_run(config)))

# %% [markdown]
# ## Train and measure
# All weights train. The base model and the trained one are asked the same questions. More arms, such as LoRA, are more
# entries under `arms`.

# %%
outcome = run_experiment(config, root)

# %% [markdown]
# ## What it learned and forgot
# *Gain*: how much likelier the held-out replies became, in nats per token. *Retention*: accuracy on kept tasks after
# training divided by before. Brackets: 95 % intervals. With four conversations held out they are wide: for a conclusion
# take some hundreds, and a larger `held_out`.

# %% tags=["answer"]
display(Grid(arms_table(outcome.results)))
display(Image(outcome.folder / "forgetting.png", width=900))
print("report:", relpath(outcome.report))
