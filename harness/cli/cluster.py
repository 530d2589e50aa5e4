"""``litmus cluster``: a small dask cluster, to try the dask engine on one machine."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from harness.cli.options import at_least_one

cluster = typer.Typer(help="A small dask cluster on this machine; for larger ones see docs/clusters.md.",
                      no_args_is_help=True, rich_markup_mode=None)


@cluster.callback()
def _root() -> None:
    pass


@cluster.command("up")
def up(
    local: Annotated[int, typer.Option(help="Worker processes, which share this machine's cores.")],
    port: Annotated[int, typer.Option(help="The scheduler's port on 127.0.0.1; 0 takes any free one.")] = 8786,
) -> None:
    """Start a scheduler and workers on this machine, and stay until Ctrl-C.

    \b
    Examples:
      litmus cluster up --local 2
      litmus run --engine dask --scheduler tcp://127.0.0.1:8786
    """
    from harness.run.cluster import local_cluster
    from harness.run.interrupt import until_interrupted

    at_least_one("--local", local)
    over = threading.Event()
    with until_interrupted(over.set), local_cluster(local, port) as address:
        print(f"scheduler: {address}, {local} worker{'s' if local != 1 else ''}")
        print(f"run:       litmus run --engine dask --scheduler {address}", flush=True)
        over.wait()
    print("the cluster is gone")
