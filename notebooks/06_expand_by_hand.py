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
# # Control LLM by hand
#
# The whole idea in 60 lines of plain PyTorch: no Trainer, no YAML, no bench. A pretrained model learns two-digit sums;
# its own weights stay frozen.
#
# The answer, of one seed: after 24 steps 13 of 32 held-out sums are right at the alpha of the training, and 21 of 32 if
# half as much of the copies is mixed in. At alpha 0 the base model is still there, with its 0 of 32.
#
# ![LM loss and divergence over the steps](pictures/06.png)
#
# Next to some pretrained layers $F_l$ we put a trainable copy $E_l$. Both read the same input $h$, and their outputs
# $a = F_l(h)$ and $b = E_l(h)$ are mixed:
#
# $$h' = (1 - \alpha)\, a + \alpha\, b \qquad\qquad
# \text{loss} = \text{LM loss} + w \cdot \frac{1}{n}\sum_{l=1}^{n} d(a_l, b_l)$$
#
# $\alpha$ is the share of the copy. The *divergence* $d$ (here the mean squared difference) keeps the two branches
# aligned. At the start each copy equals its layer, so the model computes exactly what the base model computes.
# A test compares this loop with the bench's own: the loss curves are the same.

# %% tags=["parameters"]
steps = 24
batch_size = 8
warmup = 4
layers = 8  # how many layers get a copy, spread evenly
learning_rate = 1e-3
base_model = "smollm2-135m-instruct"  # the small model that comes with the project; a folder or a Hub name works too
held_out = 32  # sums that are never trained on

# %%
import random

import matplotlib.pyplot as plt
import torch

import ctrl
from experiments import load_base, quiet

quiet()
model, tokenizer = load_base(base_model, system="")  # AutoModelForCausalLM and AutoTokenizer, on the best device

# %% [markdown]
# ## Data
# A sum is a chat of two turns. The loss is on the answer only: the label of every other token is -100.

# %%
pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
pairs = random.Random(0).sample(pairs, held_out + steps * batch_size)
chats = [[{"role": "user", "content": f"{a} + {b} ="}] for a, b in pairs]
asked = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
texts = [f"{question}{a + b}{tokenizer.eos_token}" for question, (a, b) in zip(asked, pairs, strict=True)]
how = {"return_tensors": "pt", "padding": True, "add_special_tokens": False}
rows = tokenizer(texts, padding_side="right", **how)
first = tokenizer(asked, padding_side="right", **how)["attention_mask"].sum(1, keepdim=True)  # token of the answer
answer = rows["attention_mask"].bool() & (torch.arange(rows["input_ids"].shape[1]) >= first)
rows["labels"] = rows["input_ids"].where(answer, -100)
data = {name: values[held_out:].to(model.device) for name, values in rows.items()}
print(texts[0])

# %% [markdown]
# ## Expand, and check the start
# `expand` places the copies and freezes everything else. The logits are those of the base model, bit for bit.

# %%
batch = {name: values[:batch_size] for name, values in data.items()}
with torch.no_grad():
    before = model(**batch).logits
    ctrl.expand(model, ctrl.ControlConfig(layers=layers, interpolation="lerp", divergence="mse"))
    assert torch.equal(model(**batch).logits, before)
print(ctrl.describe(model))

# %% [markdown]
# ## Train
# A plain loop: warm-up, AdamW on what `expand` left trainable, clipped gradients. `out.loss` contains the divergence.

# %%
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
curve = []
model.train()
for step in range(steps):
    batch = {name: values[step * batch_size : (step + 1) * batch_size] for name, values in data.items()}
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * (min(1.0, step / warmup) if warmup else 1.0)
    out = model(**batch, num_items_in_batch=(batch["labels"] != -100).sum())
    out.loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    curve.append((out.loss.item(), out.lm_loss.item(), out.divergence.item()))

# %% tags=["answer"]
figure, panels = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
for axes, i, name in zip(panels, (1, 2), ("LM loss, nats per token", "divergence, mean square"), strict=True):
    axes.plot([values[i] for values in curve])
    axes.set(xlabel="step", ylabel=name)
figure.supxlabel(f"n: batches of {batch_size} sums; 1 seed; no intervals", x=0.01, ha="left", fontsize=9)
plt.show()

# %% [markdown]
# ## What was learned, and the base is still there
# `at_alpha` is a dial: 0 is the base model, 0.5 is what was trained, 1 is the copies alone. The base model answers in
# a sentence, which six tokens cut off, so none of its replies counts as right here. The bench's own scorecard reads
# whole replies, and measures what was forgotten as well.

# %%
model.eval()
shown = tokenizer(asked[:held_out], padding_side="left", **how).to(model.device)
for alpha in (0.0, 0.25, 0.5, 1.0):
    with torch.no_grad(), ctrl.at_alpha(model, alpha):
        made = model.generate(**shown, max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    replies = tokenizer.batch_decode(made[:, shown["input_ids"].shape[1] :], skip_special_tokens=True)
    right = sum(reply.strip() == str(a + b) for reply, (a, b) in zip(replies, pairs, strict=False))
    print(f"alpha {alpha:.2f}: {right} of {held_out} held-out sums right; {pairs[0]}: {replies[0]!r}")
