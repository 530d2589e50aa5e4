"""The estimate behind prompt generalisation: in what share of the seeds one arm was far ahead of another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.declare.suite import Estimate
from harness.judge.stats.intervals import wilson

if TYPE_CHECKING:
    import pandas as pd


def prompt_share(records: pd.DataFrame, level: float, of: str, baseline: str, times: float) -> Estimate:
    """Share of seeds in which ``of`` generalised and ``baseline`` had not after ``times`` as many epochs.

    Where the budget ended before that many epochs, and ``baseline`` had not generalised, nobody knows: unbounded.
    """
    table = records.pivot(index=["cell", "epochs"], columns="arm", values=["epochs_to_95", "reached"]).reset_index()
    when, slow = table["epochs_to_95"][of], table["epochs_to_95"][baseline]
    reached, slow_reached = table["reached"][of] == 1, table["reached"][baseline] == 1
    prompt = reached & ~(slow_reached & (slow <= times * when))
    unknown = prompt & ~slow_reached & (times * when > table["epochs"])
    low, high = wilson(int(prompt.sum()), len(prompt), level)
    method = f"Wilson interval over {len(prompt)} seeds"
    if unknown.any():
        low, high, method = -math.inf, math.inf, f"the budget ended too early in {int(unknown.sum())} seeds"
    return Estimate(float(prompt.mean()), low, high, len(prompt), level, "seed", method)
