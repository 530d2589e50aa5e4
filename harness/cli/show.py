"""``litmus show``: one suite in full: paper, experiments, claims, verdicts."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from harness.cli.ls import verdict_words
from harness.cli.output import console, verdict_text
from harness.declare.card import PROFILES, Card, Claim, Experiment, Part, Requirement
from harness.declare.catalog import Catalog, find_root


def show(suite: Annotated[str, typer.Argument(help="A suite: FAMILY/SLUG or SLUG.")]) -> None:
    """Show one suite: what the paper claims, how it is tested here, and what came out.

    \b
    Examples:
      litmus show two_pass_softmax
      litmus show softmax/two_pass_softmax
    """
    root = find_root()
    entry = Catalog(root).get(suite)
    card = entry.card
    words = verdict_words(root, [])
    out = console()
    out.print(card.paper.title, style="bold")
    source = [f"arXiv {card.paper.arxiv}" if card.paper.arxiv else None, card.paper.venue, str(card.paper.year)]
    out.print(f"{entry.name}, card version {card.version}, " + ", ".join(item for item in source if item))
    out.print(f"\n{card.summary.strip()}\n")
    _print_experiments(out, card)
    for claim in card.claims:
        _print_claim(out, claim, words.get((entry.name, claim.id)))
    out.print(f"run it:    litmus run {entry.name}\ncheck it:  litmus validate {entry.name}", style="dim")


def _print_experiments(out: Console, card: Card) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("experiment", "kind", "arms", "axes", "seeds", "cells"):
        table.add_column(column, overflow="fold")
    for name, item in card.experiments.items():
        axes = " ".join(f"{axis}={','.join(map(str, values))}" for axis, values in item.axes.items())
        table.add_row(name, item.kind, ", ".join(item.arms), axes or "-", str(item.seeds), _cells(item))
    out.print(table)
    out.print()


def _cells(experiment: Experiment) -> str:
    counts = []
    for profile in PROFILES:
        item = experiment.in_profile(profile)
        cells = 0 if item is None else item.seeds
        for values in item.axes.values() if item else ():
            cells *= len(values)
        counts.append(f"{profile} {cells}")
    return ", ".join(counts)


def _print_claim(out: Console, claim: Claim, verdict: str | None) -> None:
    out.print(verdict_text(verdict or "no verdict yet"), f" {claim.id}", sep="", style="bold")
    out.print(f"  {claim.statement.strip()}")
    for name, text in claim.paper.items():
        out.print(f"  paper {name}: {text}", style="dim")
    for part in claim.resolved_parts():
        out.print(f"  test: {_rule(part)}", style="dim")
    for need in claim.requires:
        out.print(f"  only if: {estimate_words(need)} is {need.holds_if}; otherwise: {need.otherwise}", style="dim")
    if claim.note:
        out.print(f"  note: {claim.note.strip()}")
    out.print()


def _rule(part: Part) -> str:
    supported, refuted = part.rule()
    return f"{estimate_words(part)}; supported if {supported}, refuted if {refuted}"


def estimate_words(need: Part | Requirement) -> str:
    """The ``estimate:`` block on one line, as in the card, with experiment and conditions."""
    fields = need.estimate.model_dump(exclude_defaults=True)
    words = ", ".join(f"{name}: {value}" for name, value in fields.items())
    where = ", ".join(_condition(name, value) for name, value in need.where.items())
    return f"{{{words}}}" + (f" in {need.experiment}" if need.experiment else "") + (f" where {where}" if where else "")


def _condition(name: str, value: object) -> str:
    """``n = 4096`` or, where the card has a comparison, ``input_bytes >= 4*llc``."""
    return f"{name} {value}" if isinstance(value, str) and value[:1] in "<>=" else f"{name} = {value}"
