"""``python -m harness.run.engine.inside ROOT [MODULE...]``: jobs on standard input, messages on standard output.

What runs in a container. The local engine enforces each job's limits in here; the container's own limits stand behind
it. When standard input ends, whoever asked is gone, and so is everything in here. Beside the protocol's messages:

``hello``    the versions that jobs find here, at once
``ready``    jobs start without delay from now on
``refused``  they cannot, and why; always the last message
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from harness.errors import LitmusError
from harness.plan.machine import software
from harness.run.engine.local import LocalEngine
from harness.run.protocol import Job, encode


class _Out:
    """Standard output, for messages only: what else would write there goes to standard error."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)

    def send(self, kind: str, **values: Any) -> None:
        data = memoryview(encode(kind, **values))
        while data:
            data = data[self._file.write(data) :]

    def pass_on(self, message: dict[str, Any]) -> None:
        self.send(**message)


def main(root: Path, preload: Sequence[str]) -> None:
    """Serve one job after another until standard input ends."""
    out = _Out()
    out.send("hello", software=software())
    with LocalEngine(root, 1, preload) as engine:
        try:
            engine.ready()
        except LitmusError as error:
            out.send("refused", text=f"{error.problem}: {error.value}")
            return
        out.send("ready")
        jobs: SimpleQueue[Job | None] = SimpleQueue()
        serving = threading.Thread(target=_serve, args=(engine, jobs, out))
        serving.start()
        for line in sys.stdin:
            jobs.put(Job.from_json(line))
        engine.cancel()
        jobs.put(None)
        serving.join()


def _serve(engine: LocalEngine, jobs: SimpleQueue[Job | None], out: _Out) -> None:
    while (job := jobs.get()) is not None:
        ending = engine.execute(job, out.pass_on)
        out.send("end", ending=asdict(ending))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
