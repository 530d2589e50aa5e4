import pytest

CARD = """\
paper: {title: A paper, year: 2024, arxiv: "2001.04438"}
version: 1
summary: What it does.
experiments:
  quality:
    kind: trial
    arms: [method, baseline]
    axes: {n: [2**4, 2**6], mode: [fast, slow]}
    seeds: 5
    metrics:
      loss: {better: lower}
      curve: {series: true}
    tune:
      metric: loss
      grid: {method: {lr: [0.1, 0.2]}, baseline: {lr: [0.1, 0.2]}}
    profiles:
      smoke: {axes: {n: [2**4]}, seeds: 1}
      full: {axes: {n: [2**4, 2**6, 2**8]}}
  pace:
    kind: speed
    arms: [method, baseline]
    axes: {n: [2**10], threads: [1, all]}
    profiles: {smoke: skip}
claims:
  - id: better
    statement: It is better.
    experiment: quality
    where: {mode: fast}
    estimate: {ratio: loss, of: method, to: baseline}
    supported_if: "< 0.9"
    refuted_if: "> 1.0"
  - id: parts
    statement: It is no worse and no slower.
    parts:
      - {experiment: quality, estimate: {equivalence: loss, of: method, to: baseline, within: 0.1}}
      - experiment: pace
        where: {threads: 1}
        estimate: {ratio: time, of: method, to: "best(method, baseline)"}
        supported_if: "< 1.1"
        refuted_if: "> 1.1"
"""


@pytest.fixture
def card_text():
    return CARD
