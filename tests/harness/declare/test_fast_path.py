from __future__ import annotations

import pytest

from harness.declare.card import parse_card
from harness.errors import LitmusError
from harness.plan.code import code_hash
from harness.plan.machine import this_machine
from harness.plan.plan import Request, make_plan

PACE = "    axes: {n: [2**10], threads: [1, all]}\n"
QUALITY = "    axes: {n: [2**4, 2**6], mode: [fast, slow]}\n"


def with_fast_path(card_text: str, text: str, after: str = PACE) -> str:
    assert after in card_text
    return card_text.replace(after, f"{after}    fast_path: {text}\n")


def test_a_speed_experiment_says_whom_its_arms_are_held_against(card_text):
    card = parse_card(with_fast_path(card_text, "{op: softmax, peers: [baseline]}"), "card.yaml")
    fast_path = card.experiments["pace"].fast_path
    assert (fast_path.op, fast_path.peers) == ("softmax", ["baseline"])
    assert card.experiments["pace"].in_profile("full").fast_path == fast_path
    assert parse_card(card_text, "card.yaml").experiments["pace"].fast_path is None


# what is written wrong -> (text, experiment's line, key, value, a word of what was expected)
MISTAKES = {
    "a peer that is no arm": ("{op: sum, peers: [baselin]}", PACE, "pace.fast_path.peers", "baselin", "'baseline'"),
    "a peer given twice": ("{op: sum, peers: [baseline, baseline]}", PACE, "pace", "baseline", "once"),
    "no arm of ours": (
        "{op: sum, peers: [method, baseline]}", PACE, "pace.fast_path.peers", "method, baseline", "ours",
    ),
    "no peer at all": ("{op: sum, peers: []}", PACE, "pace.fast_path.peers", None, "at least 1"),
    "an op that is no name": ('{op: "so ft", peers: [baseline]}', PACE, "pace.fast_path.op", "so ft", "name"),
    "no op": ("{peers: [baseline]}", PACE, "pace.fast_path.op", None, "this key"),
    "an unknown key": ("{op: sum, peer: [baseline]}", PACE, "pace.fast_path.peer", "peer", "'peers'"),
    "a word": ("softmax", PACE, "pace.fast_path", "softmax", "keys"),
    "a trial": ("{op: sum, peers: [baseline]}", QUALITY, "quality.fast_path", "sum", "kind: speed"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_explained(card_text, mistake):
    text, line, key, value, expected = MISTAKES[mistake]
    with pytest.raises(LitmusError) as caught:
        parse_card(with_fast_path(card_text, text, line), "card.yaml")
    assert caught.value.key == f"experiments.{key}"
    assert caught.value.value == value and expected in caught.value.expected and caught.value.next_step


def test_it_changes_no_cell_and_no_code(card_text, tmp_path):
    """Records made before the card had the line still answer the card's questions."""
    folder = tmp_path / "suites/sums/fast"
    folder.mkdir(parents=True)
    (folder / "suite.py").write_text("X = 1\n")
    found = []
    for text in (card_text, with_fast_path(card_text, "{op: sum, peers: [baseline]}")):
        (folder / "card.yaml").write_text(text)
        plan = make_plan(tmp_path, Request(selectors=("fast:pace",), devices=("cpu",)), this_machine())
        found.append(([cell.id for cell in plan.cells], code_hash(tmp_path, folder)))
    assert found[0] == found[1] and len(found[0][0]) == 2
