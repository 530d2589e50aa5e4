from __future__ import annotations

import pytest

from harness.declare.card import parse_card
from harness.report.words import question_of, requirement_text

HEAD = """
paper: {title: T, year: 2020}
version: 1
summary: s
experiments:
  fast: {kind: speed, arms: [a, b, c], axes: {n: [2**12, 2**20], threads: [1, all]}}
  tried: {kind: trial, arms: [a, b, c], axes: {lr: [0.1, 0.2]}, metrics: {loss: {unit: nats}, size: {unit: B}}}
claims:
  - id: one
    statement: s
"""


def words(text):
    card = parse_card(HEAD + text, "card")
    return question_of(card.claims[0].resolved_parts()[0], card)


RULE = '    supported_if: "> 0.6"\n    refuted_if: "< 0.4"\n'


@pytest.mark.parametrize(
    ("claim", "estimate", "unit"),
    [
        (
            "    experiment: fast\n    estimate: {ratio: time, of: 'best(a, b)', to: c}\n" + RULE,
            "time per call of best(a, b) ÷ time per call of c, paired by process and round",
            "×",
        ),
        (
            "    experiment: tried\n    estimate: {difference: loss, of: a, minus: b}\n" + RULE,
            "loss of a − b, paired by seed",
            "nats",
        ),
        (
            "    experiment: tried\n    estimate: {difference: loss, of: a, minus: b, relative: true}\n" + RULE,
            "loss of a − b, relative to b, paired by seed",
            "",
        ),
        (
            "    experiment: tried\n    estimate: {equivalence: loss, of: a, to: b, within: 0.05}\n",
            "loss of a − b, paired by seed, the same within ±0.05 (two one-sided tests)",
            "nats",
        ),
        (
            "    experiment: fast\n    estimate: {mean: bandwidth, of: a}\n" + RULE,
            "bandwidth of a, median over rounds",
            "B/s",
        ),
        (
            "    experiment: tried\n    estimate: {fraction: loss, of: a, holds_if: '< 3'}\n" + RULE,
            "share of cells of a whose loss is < 3",
            "",
        ),
        (
            "    experiment: fast\n    estimate: {slope: time, against: n, of: a}\n" + RULE,
            "slope of log time per call on log n for a",
            "",
        ),
        (
            "    experiment: tried\n    estimate: {rank_correlation: [loss, size]}\n" + RULE,
            "rank correlation of loss with size over all arms",
            "",
        ),
        (
            "    experiment: tried\n    estimate: {ordering: loss, rising: [a, b, c]}\n" + RULE,
            "loss rises along a < b < c: the smallest gap between neighbours",
            "nats",
        ),
        (
            "    experiment: tried\n    estimate: {exact: size, of: a}\n" + RULE,
            "size of a, the same in every cell",
            "B",
        ),
        (
            "    experiment: tried\n    estimate: {custom: mine, params: {k: 3}}\n" + RULE,
            "the suite's own estimate mine (k = 3)",
            "",
        ),
    ],
)
def test_each_estimate_is_a_phrase_with_a_unit(claim, estimate, unit):
    found = words(claim)
    assert (found.estimate, found.unit) == (estimate, unit)


def test_where_and_the_rule_are_words():
    found = words(
        "    experiment: fast\n    where: {n: '>= 4*llc', threads: [1, all], input_bytes: 2**20}\n    points: any\n"
        "    estimate: {mean: time, of: a}\n" + RULE
    )
    assert (
        found.where == "in experiment fast where n >= 4*llc and threads is one of 1, all and input_bytes = 2²⁰, "
        "at any one point"
    )
    assert (found.supported_if, found.refuted_if) == ("> 0.6", "< 0.4")


def test_an_equivalence_states_its_band():
    found = words("    experiment: tried\n    estimate: {equivalence: loss, of: a, to: b, within: 0.05}\n")
    assert (found.supported_if, found.refuted_if) == ("inside [-0.05, 0.05]", "outside [-0.05, 0.05]")


def test_a_requirement_is_a_sentence():
    card = parse_card(
        HEAD + "    experiment: fast\n    estimate: {mean: time, of: a}\n" + RULE + "    requires:\n"
        "      - {estimate: {mean: bandwidth, of: b}, holds_if: '> 1e9', otherwise: compute bound here}\n",
        "card",
    )
    assert requirement_text(card.claims[0].requires[0], card, "fast") == (
        "bandwidth of b, median over rounds, in experiment fast, at every point, must be > 1e9; "
        "otherwise: compute bound here"
    )
