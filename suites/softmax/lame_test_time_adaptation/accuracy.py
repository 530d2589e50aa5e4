"""Accuracy on streams: each method on each scenario of a point, and the estimate of who loses most, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from harness.declare.seeds import seed_for
from harness.declare.suite import Estimate, Point, Suite
from harness.judge.stats.holm import first_step_level
from harness.judge.stats.intervals import t_interval
from reference.methods.adaptation.label_spreading import LabelSpreading
from reference.methods.adaptation.online import ADAPTERS, accuracy_on
from reference.methods.softmax import lame_test_time_adaptation_streams as streams_of
from reference.methods.softmax.lame_test_time_adaptation import LAME

if TYPE_CHECKING:
    import pandas as pd

SIDE = 32
WIDTH = 16
METHODS: dict[str, Callable[..., Callable[[torch.Tensor], torch.Tensor]]] = {
    **ADAPTERS, "lame": LAME, "label_spreading": LabelSpreading,
}  # fmt: skip


def classifier(suite: Suite, steps: int, seed: int, width: int = WIDTH) -> torch.nn.Module:
    """The source model of a seed, trained once."""
    config = {"steps": steps, "width": width, "side": SIDE, "seed": seed_for("init", seed)}
    return suite.prepare("classifier", config, streams_of.classifier)


def accuracies(
    suite: Suite, arm: str, point: Point, seed: int, configurations: list[Mapping[str, Any]]
) -> list[float]:
    """Mean accuracy of each configuration of a method over the scenarios of a point; each stream begins anew."""
    model, data_seed = classifier(suite, point["steps"], seed), seed_for("data", seed)
    sums = [0.0] * len(configurations)
    scenarios = streams_of.scenarios(point["corruption"], point["order"], point["prior"])
    for scenario in scenarios:
        config = {"images": point["images"], "prior": scenario.prior, "side": SIDE, "seed": data_seed}
        x, y, digest = suite.prepare("pool", config, streams_of.pool)
        suite.uses_data(f"glyphs_{scenario.prior}", digest)
        x, y = streams_of.stream(x, y, scenario, data_seed)
        for index, values in enumerate(configurations):
            sums[index] += accuracy_on(METHODS[arm](model, **values), x, y, streams_of.BATCH)
    return [total / len(scenarios) for total in sums]


def largest_loss(records: pd.DataFrame, level: float, of: list[str], to: str) -> Estimate:
    """The lowest mean difference to arm `to`, over arms and scenarios; every interval at the simultaneous level."""
    differences = {}
    for place, rows in records.groupby(["corruption", "order", "prior"]):
        table = rows.pivot(index="seed", columns="arm", values="accuracy")
        differences |= {(arm, *place): (table[arm] - table[to]).to_numpy() for arm in of}
    each = first_step_level(len(differences), 1 - level)
    bounds = [t_interval(values, each) for values in differences.values()]
    worst = min(differences, key=lambda name: differences[name].mean())
    return Estimate(
        differences[worst].mean(), min(low for low, _ in bounds), min(high for _, high in bounds),
        n=records["seed"].nunique(), level=level,
        method=f"t intervals over seeds, simultaneous over {len(bounds)}; lowest is {' '.join(worst)}",
    )
