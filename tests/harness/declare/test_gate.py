from pathlib import Path

import pytest

from harness.declare.catalog import Catalog
from harness.declare.gate import Gate, compared_metrics, load_gate, own_arms, parse_gate
from harness.errors import LitmusError

ROOT = Path(__file__).resolve().parents[3]


def test_without_a_file_the_defaults_hold(tmp_path):
    gate = load_gate(tmp_path)
    assert gate == Gate()
    assert gate.threshold("a/b", "e", "time") == (0.01, True)
    assert gate.threshold("a/b", "e", "loss") == (0.01, True)
    assert gate.gates("a/b", "e", "arm", "time")


def test_a_file_asked_for_must_exist(tmp_path):
    with pytest.raises(LitmusError, match="cannot read the gate"):
        load_gate(tmp_path, tmp_path / "none.yaml")


def test_the_last_exception_that_matches_and_says_something_holds():
    gate = parse_gate(
        """
        speed: {threshold: 1/50}
        exceptions:
          - {at: softmax/*, metrics: [time], threshold: 0.03, reason: a whole family}
          - {at: softmax/two, threshold: 0.04, relative: false, reason: one suite of it}
          - {at: "softmax/two:rows", metrics: [time], threshold: 0.05, reason: one experiment of it}
          - {at: "two:rows", arms: [torch], gates: false, reason: not our code}
          - {at: "two:rows", arms: [torch], metrics: [error], gates: true, reason: but its error counts}
        """,
        "gate.yaml",
    )
    assert gate.threshold("other/x", "e", "time") == (0.02, True)
    assert gate.threshold("softmax/one", "rows", "time") == (0.03, True)
    assert gate.threshold("softmax/one", "rows", "loss") == (0.01, True)
    assert gate.threshold("softmax/two", "long", "time") == (0.04, False)
    assert gate.threshold("softmax/two", "rows", "time") == (0.05, False)
    assert not gate.gates("softmax/two", "rows", "torch", "time")
    assert gate.gates("softmax/two", "rows", "torch", "error")
    assert gate.gates("softmax/two", "rows", "ours", "time")


@pytest.mark.parametrize(
    ("text", "key", "message", "expected"),
    [
        ("alfa: 0.1", "alfa", "unknown key", "did you mean 'alpha'?"),
        ("alpha: 1", "alpha", "not an allowed value", "less than 1"),
        ("speed: {threshold: -1}", "speed.threshold", "not an allowed value", "greater than or equal to 0"),
        ("speed: {treshold: 1}", "speed.treshold", "unknown key", "did you mean 'threshold'?"),
        ("speed: 3", "speed", "not a mapping", "keys with values below this key"),
        ("exceptions: [{at: a/b, threshold: 1}]", "exceptions[item 1].reason", "without a reason", "a sentence"),
        ("exceptions: [{at: a/b, threshold: 1, reason: ' '}]", "exceptions[item 1].reason", "without a reason", ""),
        ("exceptions: [{at: a/b, reason: no rule}]", "exceptions[item 1]", "changes nothing", "'gates'"),
        ("exceptions: [{at: 'a b', gates: no, reason: a b}]", "exceptions[item 1].at", "not a place", "FAMILY"),
        ("exceptions: [{at: 'a:e[n=1]', gates: no, reason: a b}]", "exceptions[item 1].at", "single points", "SUITE"),
        ("exceptions: [{at: a/b, arms: [x], threshold: 1, reason: a b}]", "exceptions[item 1].arms", "single arms", ""),
        ("- 1", None, "not a mapping", "alpha"),
        ("alpha: 0.1\nalpha: 0.2", None, "not valid YAML", ""),
        ("alpha: {", None, "not valid YAML", ""),
    ],
)  # fmt: skip
def test_a_bad_gate_is_refused_with_its_place(text, key, message, expected):
    with pytest.raises(LitmusError, match=message) as caught:
        parse_gate(text, "gate.yaml")
    assert caught.value.key == key
    assert expected in caught.value.expected
    assert "gate.yaml" in str(caught.value.where)


@pytest.mark.parametrize(
    ("exception", "key", "expected"),
    [
        ("at: softmax/tow_pass_softmax, gates: no", "at", "two_pass_softmax"),
        ("at: 'two_pass_softmax:row', gates: no", "at", "did you mean 'rows'"),
        ("at: two_pass_softmax, arms: [torsh], gates: no", "arms", "'torch'"),
        ("at: galore, metrics: [val_los], threshold: 1", "metrics", "did you mean 'val_loss'"),
    ],
)
def test_names_that_do_not_exist_are_refused(exception, key, expected):
    gate = parse_gate(f"exceptions: [{{{exception}, reason: some reason}}]", "gate.yaml")
    with pytest.raises(LitmusError) as caught:
        gate.check(Catalog(ROOT), "gate.yaml")
    assert caught.value.key == f"exceptions[item 1].{key}"
    assert expected in caught.value.expected


def test_the_projects_gate_is_valid_and_strict_enough():
    gate = load_gate(ROOT)
    assert gate.threshold("softmax/two_pass_softmax", "rows", "time") == (0.01, True)
    assert gate.threshold("projection/galore", "pretraining", "val_loss") == (0.02, False)
    assert gate.threshold("projection/galore", "pretraining", "failed") == (0.0, False)
    assert not gate.gates("projection/galore", "refresh_time", "svd", "time")


def test_peers_do_not_gate_and_series_are_not_compared():
    card = Catalog(ROOT).get("galore").card
    assert own_arms(card.experiments["step_time"]) == ["numba"]
    assert own_arms(card.experiments["state"]) == card.experiments["state"].arms
    assert compared_metrics(card.experiments["step_time"]) == {"time": "lower", "error": "lower"}
    found = compared_metrics(card.experiments["pretraining"])
    assert found["val_loss"] == "lower" and found["trainable"] == "none" and "train_curve" not in found
