"""The estimate behind the byte model of decoding: how well the bytes of a step's experts explain its time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.declare.suite import Estimate
from reference.methods.softmax.moe_dispatch import expected_distinct
from suites.softmax.moe_inference_survey.speed import DECODED_EXPERTS, STEPS, TOP_K

if TYPE_CHECKING:
    import pandas as pd


def byte_model_r2(records: pd.DataFrame, level: float) -> Estimate:
    """R^2 of a line through latency per token over modelled bytes per token, round by round; negative if it falls."""
    from harness.judge.sample import Sample  # its scipy.stats would delay every timing process

    times = records.pivot(index=["cell", "process", "unit"], columns="arm", values="time")
    per_token = [expected_distinct(step, TOP_K, DECODED_EXPERTS) / step for step in STEPS]
    rows = times[[f"b{step}" for step in STEPS]].to_numpy()
    r = np.array([np.corrcoef(row, per_token)[0, 1] for row in rows])
    sample = Sample(r * np.abs(r), times.index.get_level_values("process").to_numpy().astype(str), "rounds", "round")
    low, high = sample.bounds(level)
    return Estimate(sample.center, low, high, sample.n, level, "round", f"R^2 over 5 steps; {sample.method}")
