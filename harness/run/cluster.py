"""A dask cluster on this machine alone: a scheduler on loopback and some worker processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import LitmusError
from harness.plan.machine import this_machine

# What dask's workers would do beside a job that is timed, many times a second.
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
}


@contextmanager
def local_cluster(workers: int, port: int) -> Iterator[str]:
    """The scheduler's address, while ``workers`` processes share this machine's cores; at the end all are gone.

    Raises LitmusError where dask.distributed is not installed, or the port is taken.
    """
    try:
        import dask
        from distributed import LocalCluster
    except ImportError as error:
        raise LitmusError("a cluster needs dask.distributed", next_step='pip install "litmus-harness[dask]"') from error
    threads = max(1, this_machine().cores // workers)
    with dask.config.set(QUIET):
        try:
            cluster = LocalCluster(
                n_workers=workers, threads_per_worker=threads, host="127.0.0.1", scheduler_port=port, memory_limit=None,
                dashboard_address=None, silence_logs=logging.ERROR)
        except (OSError, RuntimeError) as error:
            raise LitmusError("the cluster cannot start", where=f"127.0.0.1:{port}", key="--port",
                              value=str(error.__cause__ or error)[:200], expected="a free port",
                              next_step="choose another one with --port, or 0 for any") from error
        with cluster:
            yield str(cluster.scheduler_address)
