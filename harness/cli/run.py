"""``litmus run``: plan the cells, run them, judge the claims."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from harness.cli.dry_run import print_plan
from harness.cli.options import at_least_one, parse_budget, parse_devices, parse_engine, parse_profile
from harness.cli.output import console, shown
from harness.cli.progress import PlainProgress, print_failures, progress_for
from harness.cli.verdicts import print_verdicts
from harness.declare.catalog import find_root
from harness.errors import CANARY_FAILED, WRONG_OR_CRASHED, LitmusError
from harness.plan.machine import this_machine
from harness.plan.plan import Request, make_plan

if TYPE_CHECKING:
    from harness.run.engine.choice import EngineChoice
    from harness.run.session import RunOptions, RunResult

INTERRUPTED = 130
_FAILED = ("wrong", "crashed", "timeout", "oom")


def run(
    selectors: Annotated[list[str] | None, typer.Argument(
        help="SUITE[:EXPERIMENT[AXIS=VALUE,...]], patterns allowed; everything by default.")] = None,
    profile: Annotated[str, typer.Option(help="smoke, small or full.")] = "small",
    device: Annotated[list[str] | None, typer.Option(help="auto, cpu, cuda or cuda:INDEX; may be repeated.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds of each trial (default: the card's).")] = None,
    budget: Annotated[str | None, typer.Option(help="Fit the plan into this time, such as 10m.")] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this run: path, id or 'latest'.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder (default: results/MACHINE/TIME-PROFILE).")] = None,
    jobs: Annotated[int | None, typer.Option(help="Trial cells side by side (default: one per core).")] = None,
    engine: Annotated[str | None, typer.Option(
        help="local (this machine, the default), dask or docker; a resumed run takes what it had.")] = None,
    scheduler: Annotated[str | None, typer.Option(
        help="With --engine dask: the scheduler's address, such as tls://head:8786.")] = None,
    insecure: Annotated[bool, typer.Option(
        "--insecure", help="Accept a scheduler on another machine without TLS.")] = False,
    image: Annotated[str | None, typer.Option(help="With --engine docker: the image (default: litmus:cpu).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and run nothing.")] = False,
) -> None:
    """Run suites and judge their claims. Every finished cell is kept, whatever happens to the others.

    Ends with 4 when a cell was wrong, crashed, ran out of time or memory, with 5 when the canary alarmed, with 130
    when interrupted. A refuted claim is a result, not an error.

    \b
    Examples:
      litmus run --profile smoke
      litmus run 'softmax/*' --budget 10m
      litmus run 'two_pass_softmax:throughput[n=4096,threads=1]'
      litmus run galore --seeds 10 --jobs 2
      litmus run --resume latest
      litmus run galore --dry-run
      litmus run --engine dask --scheduler tcp://127.0.0.1:8786
    """
    root = find_root()
    request = Request(tuple(selectors or ()), parse_profile(profile), parse_devices(device or ()),
                      at_least_one("--seeds", seeds))
    budget_s = parse_budget(budget)
    at_least_one("--jobs", jobs)
    choice = parse_engine(engine, scheduler, insecure, image)
    if dry_run:
        print_plan(console(), make_plan(root, request, this_machine()))
        return

    from harness.records.store import resolve_run
    from harness.run.session import RunOptions

    if resume is not None and (out is not None or request != Request()):
        raise LitmusError("a resumed run continues as it was asked for", where="the command line", key="--resume",
                          value=resume, expected="no selectors, --profile, --device, --seeds or --out beside it",
                          next_step=f"try: litmus run --resume {resume}")
    folder = resolve_run(root, resume).folder if resume is not None else None
    command = "" if folder else command_line(request, budget, choice)
    options = RunOptions(out=out, resume=folder, jobs=jobs, budget_s=budget_s, command=command, engine=choice)
    _finish(_run(root, request, options))


def command_line(request: Request, budget: str | None = None, engine: EngineChoice | None = None) -> str:
    """The command that asks for ``request`` again, stored with the run."""
    words = ["litmus", "run", *request.selectors, "--profile", request.profile]
    for name in request.devices if request.devices != ("auto",) else ():
        words += ["--device", name]
    if request.seeds is not None:
        words += ["--seeds", str(request.seeds)]
    if budget is not None:
        words += ["--budget", budget]
    return shlex.join([*words, *(engine.words() if engine else ())])


def _run(root: Path, request: Request, options: RunOptions) -> tuple[RunResult, PlainProgress]:
    from harness.run.session import run as run_session

    try:
        with progress_for() as progress:
            return run_session(root, request, options, progress), progress
    except KeyboardInterrupt:
        console().print("\ninterrupted; go on with: litmus run --resume latest")
        raise typer.Exit(INTERRUPTED) from None


def _finish(ended: tuple[RunResult, PlainProgress]) -> None:
    """The summary and the exit code."""
    result, progress = ended
    out = console()
    _print_summary(out, result, progress)
    if result.interrupted:
        out.print(f"interrupted; go on with: litmus run --resume {shown(result.folder)}", soft_wrap=True)
        raise typer.Exit(INTERRUPTED)
    alarm = _canary_alarm(result.folder)
    if alarm:
        out.print(f"the A/A canary alarmed: {alarm}, so no claim on time was judged; see: litmus doctor",
                  style="yellow", soft_wrap=True)
    if any(result.counts.get(status) for status in _FAILED):
        raise typer.Exit(WRONG_OR_CRASHED)
    if alarm:
        raise typer.Exit(CANARY_FAILED)


def _print_summary(out: Console, result: RunResult, progress: PlainProgress) -> None:
    out.print()
    print_failures(out, progress.tally.failures)
    if result.verdicts:
        print_verdicts(list(result.verdicts))
    counts = ", ".join(f"{count} {status}" for status, count in sorted(result.counts.items()) if count)
    out.print(f"records:  {counts or 'none'}")
    out.print(f"run:      {shown(result.folder)}", soft_wrap=True)
    if not result.interrupted:
        out.print(f"pages:    litmus report --run {shown(result.folder)}", soft_wrap=True)


def _canary_alarm(folder: Path) -> str | None:
    """What the run's canary saw when it alarmed, None otherwise."""
    from harness.records.store import read_run_info

    canary = read_run_info(folder).canary
    if not canary or not canary.get("alarm"):
        return None
    floor = canary.get("floor")
    return f"equal code differed by up to {floor:.1%}" if isinstance(floor, int | float) else "equal code differed"
