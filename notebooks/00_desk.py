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
# # The desk
#
# What was run, how far is it, and what did it give? The answer is one table of all runs, studies and measurements of
# this machine, with status, best arm and report, and the way to MLflow and Optuna. Open any of them here. Everything is
# read from files, so it works while a run goes on, whoever started it.
#
# ![The run or study that ended last: retention against gain](pictures/00.png)
#
# The next notebooks make what is listed here: 01 a first run and its lost answers, 02 an ablation with arms that you
# pick, 03 and 04 what moved inside, 05 a search, 06 the method by hand, 07 your own model and data, 08 models that were
# trained elsewhere.

# %% tags=["parameters"]
shown = None  # the name of a run, a study or a measurement, or the beginning of one; None: the run that ended last
root = None  # where results are; None: the project's mlruns/

# %%
from IPython.display import display

from experiments import Results, open_result, quiet

quiet()
results = Results(root)
display(results)

# %% [markdown]
# ## One of them
# The arms with their intervals, the picture, and links. Under the mouse a point has its step and its numbers. The line
# above the table says how far it is.

# %% tags=["answer"]
ended = [one.folder.name for one in results.found if one.status == "finished" and one.kind in ("run", "study")]
chosen = shown or next(iter(ended), None)
display(open_result(chosen, root) if chosen else "nothing has ended yet")

# %% [markdown]
# Choose another (in a running notebook). Each choice shows the line of Python that it equals.

# %%
if len(results.names) > 1:
    results.choose()

# %% [markdown]
# ## Where to look next
# `watch("NAME")` follows what runs. `frame("NAME")` gives all figures as one pandas table, and `answers("NAME")` the
# answers that were lost and won. In a terminal: `make ui` for MLflow, `control-llm ui --optuna` for the studies too.
