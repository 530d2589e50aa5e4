"""The ``litmus`` command: registers the commands and turns refusals into messages and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from harness.cli import (
    ab,
    asv_export,
    cluster,
    compare,
    doctor,
    history,
    ls,
    merge,
    new,
    report,
    repro,
    run,
    show,
    tune,
    validate,
    verdicts,
)
from harness.cli.output import error_console, harmless
from harness.errors import LitmusError

_HELP = """Puts machine-learning papers to the test: accuracy and speed in one record, verdicts computed.

\b
Exit codes:
  0    done
  1    a comparison found that something that gates got worse
  2    the request cannot be carried out: the message says what to change
  3    a comparison found nothing that can be compared
  4    a cell ended wrong, crashed, timeout or oom, or a suite failed its validation
  5    the A/A canary alarmed: this machine was too unsteady to judge speed
  130  interrupted; the finished cells are kept

\b
Examples:
  litmus ls
  litmus run two_pass_softmax --profile smoke
  litmus verdicts
"""

app = typer.Typer(
    name="litmus", help=_HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "ls": ls.ls, "show": show.show, "run": run.run, "verdicts": verdicts.verdicts, "report": report.report,
    "validate": validate.validate, "new": new.new, "tune": tune.tune, "doctor": doctor.doctor, "repro": repro.repro,
    "compare": compare.compare, "merge": merge.merge,
    "asv-export": asv_export.asv_export,
    "history": history.history,
    "ab": ab.ab,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(cluster.cluster, name="cluster")


def _version(wanted: bool) -> None:
    if wanted:
        from harness import __version__

        print(f"litmus {__version__}")
        raise typer.Exit


@app.callback(help=_HELP)
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Run the command line. A LitmusError becomes its lines on stderr and its exit code, never a traceback."""
    try:
        app(prog_name="litmus")
    except LitmusError as refusal:
        show_refusal(refusal)
        sys.exit(refusal.exit_code)


def show_refusal(refusal: LitmusError) -> None:
    """Print a refusal on stderr; its first line is red on a terminal, plain elsewhere."""
    first, *rest = refusal.lines()
    console = error_console()
    console.print(f"litmus: {harmless(first)}", style="bold red", soft_wrap=True)
    for line in rest:
        console.print(harmless(line), soft_wrap=True)
