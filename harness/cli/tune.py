"""``litmus tune``: the fair search for every arm's hyperparameters."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.options import at_least_one
from harness.cli.progress import progress_for
from harness.declare.catalog import Catalog, Selector, find_root
from harness.errors import LitmusError, did_you_mean


def tune(
    suite: Annotated[str, typer.Argument(help="SUITE or SUITE:EXPERIMENT.")],
    jobs: Annotated[int | None, typer.Option(help="Trials side by side (default: one per core).")] = None,
) -> None:
    """Search the grids that the card declares and write the winners to the suite's tuned.yaml.

    Every arm gets the same number of trials, on seeds that no reported trial uses. It may be stopped at any time: the
    next call goes on with what is missing.

    \b
    Examples:
      litmus tune galore
      litmus tune blockwise_8bit_optimizers:pretrain --jobs 2
    """
    from harness.run.tune import tune as search

    at_least_one("--jobs", jobs)
    root = find_root()
    selector = Selector.parse(suite)
    entry = Catalog(root).get(selector.suite)
    tunable = [name for name, item in entry.card.experiments.items() if item.tune is not None]
    if selector.experiment is not None and selector.experiment not in tunable:
        raise LitmusError("this experiment declares no grid to search", where=entry.folder / "card.yaml",
                          key="tune", value=selector.experiment, expected=did_you_mean(selector.experiment, tunable),
                          next_step=f"see: litmus show {entry.name}")
    if not tunable:
        raise LitmusError("this suite declares no grid to search", where=entry.folder / "card.yaml", key="tune",
                          expected="an experiment with 'tune:'", next_step="nothing to do, or add it to the card")
    with progress_for() as progress:
        path = search(root, entry.name, selector.experiment, jobs, progress)
    print(f"tuned: {path}")
