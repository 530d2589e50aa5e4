"""``litmus compare`` on small runs written by the project's own writer: one row for each reason code and exit code."""

import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from harness.judge.comparison import REASONS
from harness.records.record import Record, Samples
from harness.records.store import RunInfo, write_records, write_run_info

SUITE = "demo/tiny"
CARD = """
paper: {title: Two small experiments, year: 2020}
version: 1
summary: Nothing is run here.
experiments:
  pace:
    kind: speed
    arms: [ours, peer]
    fast_path: {op: tiny, peers: [peer]}
    axes: {n: [1, 2]}
  alone:
    kind: speed
    arms: [ours]
  fit:
    kind: trial
    arms: [a, b]
    axes: {n: [1, 2]}
    seeds: 5
    metrics:
      loss: {better: lower}
      score: {better: higher}
      size: {better: none}
      curve: {better: lower, series: true}
claims:
  - id: fits
    statement: It fits.
    experiment: fit
    estimate: {difference: loss, of: a, minus: b}
    supported_if: "< 0"
    refuted_if: "> 0"
"""
WOBBLE = (1.00, 1.01, 0.99, 1.002, 0.998)


def trial(arm="a", seed=0, n=1, **changes):
    metrics = {"loss": 2.0 * WOBBLE[seed], "score": 0.9 * WOBBLE[seed], "size": 8.0, "curve": [3.0, 2.0]}
    values = {
        "cell": f"t{n}{seed}", "suite": SUITE, "experiment": "fit", "kind": "trial", "arm": arm, "point": {"n": n},
        "seed": seed, "device": "cpu", "profile": "small", "status": "ok", "card_version": 1, "code": "k",
        "metrics": metrics, "data": "d1",
    }  # fmt: skip
    return Record(**{**values, **changes})


def samples(ns=1e6, processes=8, wobble=0.001):
    """Rounds in step; ``wobble`` sets processes apart by parts of it."""
    place = [(process, index) for process in range(processes) for index in range(4)]
    times = [round(100 * ns * (1 + wobble * (process % 3 - 1))) for process, _ in place]
    return Samples([p for p, _ in place], [i for _, i in place], [0] * len(place), [100] * len(place), times)


def speed(arm="ours", ns=1e6, n=1, experiment="pace", processes=8, wobble=0.001, **changes):
    values = {
        "cell": f"{experiment}{n}", "suite": SUITE, "experiment": experiment, "kind": "speed", "arm": arm,
        "point": {"n": n} if experiment == "pace" else {}, "seed": 0, "device": "cpu", "profile": "small",
        "status": "ok", "card_version": 1, "code": "k", "error": 1e-7, "samples": samples(ns, processes, wobble),
    }  # fmt: skip
    return Record(**{**values, **changes})


def canary(ns=5e5):
    return [
        replace(speed(arm, ns, experiment="aa"), suite="litmus/canary", point={"load": "compute"}, error=0.0)
        for arm in ("a", "b")
    ]


TRIALS = [trial(arm, seed) for arm in "ab" for seed in range(5)]
SPEEDS = [speed(), speed("peer", 2e6), speed(experiment="alone"), *canary()]


def shifted(records, arm="a", **factors):
    """``records`` with metrics of the trials of one arm multiplied."""
    return [
        replace(item, metrics={**item.metrics, **{name: item.metrics[name] * by for name, by in factors.items()}})
        if item.arm == arm and item.kind == "trial"
        else item
        for item in records
    ]


def with_loss(records, loss):
    """``records`` with ``loss`` (a function of the record) as their loss."""
    return [replace(item, metrics={**item.metrics, "loss": loss(item)}) for item in records]


def slower(by, wobble=0.001):
    return [speed(ns=1e6 * by, wobble=wobble), *SPEEDS[1:]]


def ended(records, status, seed=0, arm="a", reason="why"):
    return [
        replace(item, status=status, reason=reason, metrics={}) if (item.arm, item.seed) == (arm, seed) else item
        for item in records
    ]


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "suites" / "demo" / "tiny"
    folder.mkdir(parents=True)
    (folder / "card.yaml").write_text(CARD)
    monkeypatch.setenv("LITMUS_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def store(project):
    def write(name, records, started_at=1.0, machine="box-1", canary=None, folder="box-1", **info):
        path = project / "results" / folder / name
        write_run_info(
            path,
            RunInfo(
                run=name, started_at=started_at, litmus="0.1.0", machine={"key": machine} if machine else {},
                canary=canary or {"floor": 0.005, "alarm": False}, **{"profile": "small", **info},
            ),
        )  # fmt: skip
        write_records(path, records)
        return path

    return write


@pytest.fixture
def compare(litmus, store):
    """Compare two lists of records as JSON; gives (exit code, outcome, comparisons by arm, metric and experiment)."""

    def call(base, head, *words, base_info=None, head_info=None):
        store("base", base, 1.0, **(base_info or {}))
        store("head", head, 2.0, **(head_info or {}))
        code, out, err = litmus("compare", "base", "head", "--format", "json", *words)
        assert not err, err
        outcome = json.loads(out)
        return code, outcome, {(x["experiment"], x["arm"], x["metric"]): x for x in outcome["comparisons"]}

    return call


LOSS, TIME = ("fit", "a", "loss"), ("pace", "ours", "time")
NAN = float("nan")
MANY = [trial(n=n, seed=seed) for n in range(40) for seed in range(5)]


def moved(item):
    """The last of 40 moved by 2.6 %, beyond 1 % by itself but not among 40; the rest in the last digits."""
    ups = (1.02, 1.03, 1.015, 1.035, 1.03) if item.point == {"n": 39} else [1 + 1e-9 * seed for seed in range(5)]
    return item.metrics["loss"] * ups[item.seed]


# name: (base, head, options, infos, which comparison, word, reason, exit code)
CASES = {
    "identical": (TRIALS, TRIALS, (), {}, LOSS, "same", "identical", 0),
    "inside": (TRIALS, shifted(TRIALS, loss=1.001), (), {}, LOSS, "same", "inside_zone", 0),
    "worse": (TRIALS, shifted(TRIALS, loss=1.1), (), {}, LOSS, "worse", "beyond_zone", 1),
    "better": (TRIALS, shifted(TRIALS, loss=0.9), (), {}, LOSS, "better", "beyond_zone", 0),
    "higher is better": (
        TRIALS, shifted(TRIALS, score=0.9), (), {}, ("fit", "a", "score"), "worse", "beyond_zone", 1),
    "straddles": (
        TRIALS, with_loss(TRIALS, lambda x: 2.0 * WOBBLE[-x.seed]), (), {}, LOSS, "inconclusive", "straddles_zone", 0),
    "holm": (MANY, with_loss(MANY, moved), (), {}, LOSS, "inconclusive", "not_after_holm", 0),
    "one seed": (
        [trial()], shifted([trial()], loss=1.1), (), {}, LOSS, "inconclusive", "few_units", 0),
    "no common seed": ([trial(seed=0)], [trial(seed=1)], (), {}, ("fit", "a", "all"), "inconclusive", "few_units", 0),
    "undefined": (
        with_loss(TRIALS, lambda x: math.inf), with_loss(TRIALS, lambda x: math.inf if x.seed else 1.0), (), {}, LOSS,
        "inconclusive", "undefined", 0),
    "lost": (TRIALS, shifted(TRIALS, loss=NAN), (), {}, LOSS, "worse", "beyond_zone", 1),
    "no direction": (
        TRIALS, shifted(TRIALS, size=2), (), {}, ("fit", "a", "size"), "inconclusive", "one_direction", 0),
    "machine": (TRIALS, TRIALS, (), {"head_info": {"machine": "box-2"}}, ("fit", "a", "all"), "incomparable",
                "machine", 3),
    "unknown machine": (
        TRIALS, TRIALS, (), {"base_info": {"machine": None}, "head_info": {"machine": None}}, ("fit", "a", "all"),
        "incomparable", "machine", 3),
    "device": (TRIALS, [replace(x, device="cuda:0") for x in TRIALS], (), {}, ("fit", "a", "all"), "incomparable",
               "device", 3),
    "card version": (TRIALS, [replace(x, card_version=2) for x in TRIALS], (), {}, ("fit", "a", "all"), "incomparable",
                     "card_version", 3),
    "data": (TRIALS, [replace(x, data="d2") for x in TRIALS], (), {}, ("fit", "a", "all"), "incomparable", "data", 3),
    "point": (TRIALS, [replace(x, point={"n": 2}, cell=x.cell + "x") for x in TRIALS], (), {}, ("fit", "a", "all"),
              "incomparable", "point", 3),
    "only base": (TRIALS, [x for x in TRIALS if x.arm == "b"], (), {}, ("fit", "a", "all"), "incomparable",
                  "only_base", 0),
    "only head": ([x for x in TRIALS if x.arm == "b"], TRIALS, (), {}, ("fit", "a", "all"), "incomparable",
                  "only_head", 0),
    "skipped now": (TRIALS, [replace(x, status="skipped", metrics={}) if x.arm == "a" else x for x in TRIALS], (), {},
                    ("fit", "a", "all"), "incomparable", "only_base", 0),
    "base failed": ([replace(x, status="oom", metrics={}) if x.arm == "a" else x for x in TRIALS], TRIALS, (), {},
                    ("fit", "a", "all"), "incomparable", "base_status", 0),
    "head crashed": (TRIALS, ended(TRIALS, "crashed"), (), {}, ("fit", "a", "all"), "incomparable", "head_status", 4),
    "head wrong": (SPEEDS, [replace(SPEEDS[0], status="wrong"), *SPEEDS[1:]], (), {}, ("pace", "ours", "all"),
                   "incomparable", "head_status", 4),
    "peer crashed": (SPEEDS, [SPEEDS[0], replace(SPEEDS[1], status="crashed"), *SPEEDS[2:]], (), {},
                     ("pace", "peer", "all"), "incomparable", "head_status", 0),
    "nothing": ([], [], (), {}, None, None, None, 3),
    "same speed": (SPEEDS, SPEEDS, (), {}, TIME, "same", "inside_zone", 0),
    "slower": (SPEEDS, slower(1.1), ("--gate-stored",), {}, TIME, "slower", "beyond_zone", 1),
    "slower, only told": (SPEEDS, slower(1.1), (), {}, TIME, "slower", "beyond_zone", 0),
    "faster": (SPEEDS, slower(0.9), ("--gate-stored",), {}, TIME, "faster", "beyond_zone", 0),
    "unsteady": (SPEEDS, slower(1.01, wobble=0.05), ("--gate-stored",), {}, TIME, "inconclusive", "straddles_zone", 0),
    "one process": ([replace(x, samples=samples(processes=1)) for x in SPEEDS], SPEEDS, (), {}, TIME, "inconclusive",
                    "few_units", 0),
    "canary alarm": (SPEEDS, SPEEDS, (), {"head_info": {"canary": {"floor": 0.04, "alarm": True}}}, TIME,
                     "inconclusive", "canary", 5),
    "no noise floor": (SPEEDS, SPEEDS, (), {"base_info": {"canary": {"alarm": False}}}, TIME, "inconclusive", "canary",
                       0),
    "error doubled": (SPEEDS, [replace(SPEEDS[0], error=3e-7), *SPEEDS[1:]], (), {}, ("pace", "ours", "error"), "worse",
                      "beyond_zone", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_reason_and_exit_code(compare, name):
    base, head, words, infos, which, word, reason, expected = CASES[name]
    code, outcome, found = compare(base, head, *words, **infos)
    assert code == outcome["exit_code"] == expected, outcome
    if which is None:
        assert not found
    else:
        assert (found[which]["verdict"], found[which]["reason"]) == (word, reason), found[which]


def test_every_reason_that_stored_runs_can_give_is_in_the_table():
    assert {case[6] for case in CASES.values()} | {"budget_spent", "no_load", None} == {*REASONS, None}


def test_an_alarm_is_first_and_does_not_hide_a_crash(compare):
    alarmed = {"head_info": {"canary": {"floor": 0.04, "alarm": True, "reason": "no quiet moment"}}}
    code, outcome, _ = compare(SPEEDS, SPEEDS, **alarmed)
    assert code == 5 and "no quiet moment" in outcome["alarms"][0]
    code, _, _ = compare([*TRIALS, *SPEEDS], [*ended(TRIALS, "timeout"), *SPEEDS], **alarmed)
    assert code == 4
    code, outcome, _ = compare(TRIALS, TRIALS, **alarmed)
    assert code == 0 and not outcome["alarms"], "without times the canary says nothing"


def test_times_relative_to_a_peer_cancel_the_machines_speed(compare):
    """The whole machine is 1.5x slower: arms beside a peer are the same, others have a zone as wide as the canary's."""
    head = [
        replace(x, samples=replace(x.samples, elapsed_ns=[value * 3 // 2 for value in x.samples.elapsed_ns]))
        for x in SPEEDS
    ]
    _, _, found = compare(SPEEDS, head)
    assert found[TIME]["verdict"] == "same" and "relative to peers" in found[TIME]["detail"]
    alone = found["alone", "ours", "time"]
    assert alone["verdict"] == "inconclusive" and alone["threshold"] == pytest.approx(0.5, rel=1e-3)
    assert "the canary moved by 50.0" in alone["detail"]
    assert found["pace", "peer", "time"]["gates"] is False
    _, _, found = compare(SPEEDS, head, head_info={"software": {"torch": "9"}})
    assert "absolute" in found[TIME]["detail"], "another library is another peer"


def test_many_times_that_go_one_way_are_suspect(compare):
    def run(by):
        cells = [speed(ns=1e6 * by, n=n, cell=f"c{n}") for n in range(12)]
        return [*cells, *(speed("peer", n=n, cell=f"c{n}") for n in range(12)), *canary()]

    _, outcome, _ = compare(run(1.0), run(1.1))
    assert any("12 of the 12 times that moved got slower" in alarm for alarm in outcome["alarms"])


def test_a_gate_may_be_given(compare, project):
    gate = project / "gate.yaml"
    gate.write_text("exceptions: [{at: demo/tiny, metrics: [loss], threshold: 0.2, reason: it wobbles that much}]")
    code, _, found = compare(TRIALS, shifted(TRIALS, loss=1.1), "--gate", str(gate))
    assert code == 0 and found[LOSS]["reason"] == "inside_zone" and found[LOSS]["threshold"] == 0.2
    gate.write_text("exceptions: [{at: demo/tiny, arms: [a], gates: no, reason: it wobbles that much}]")
    code, _, found = compare(TRIALS, shifted(TRIALS, loss=1.1), "--gate", str(gate))
    assert code == 0 and found[LOSS]["verdict"] == "worse" and not found[LOSS]["gates"]


def test_a_suite_without_a_card_is_told_and_does_not_gate(compare):
    base = [replace(x, suite="demo/gone") for x in TRIALS]
    code, _, found = compare(base, shifted(base, loss=2))
    assert code == 0 and found[LOSS]["reason"] == "one_direction" and not found[LOSS]["gates"]
    assert ("fit", "a", "curve") not in found


def test_the_newest_cell_of_a_resumed_run_counts(compare):
    old = [replace(x, cell="old" + x.cell, started_at=1.0) for x in shifted(TRIALS, loss=5)]
    _, _, found = compare(TRIALS, [replace(x, started_at=2.0) for x in TRIALS] + old)
    assert found[LOSS]["reason"] == "identical"


def test_baseline_is_the_run_before_of_the_same_machine_and_profile_or_what_the_pointer_names(litmus, store, project):
    store("a", TRIALS, 1.0)
    store("b", TRIALS, 2.0)
    store("smoke", TRIALS, 3.0, profile="smoke")
    store("elsewhere", TRIALS, 3.5, machine="box-2", folder="box-2")
    store("c", TRIALS, 4.0)
    code, out, _ = litmus("compare", "baseline", "latest")
    assert code == 0 and out.startswith("box-1/b → box-1/c")
    (project / "results" / "baseline").write_text("box-1/a\n")
    assert litmus("compare", "baseline", "latest")[1].startswith("box-1/a → box-1/c")
    (project / "results" / "baseline").write_text("../../etc\n")
    code, _, err = litmus("compare", "baseline", "latest")
    assert code == 2 and "the baseline is no stored run" in err
    (project / "results" / "baseline").unlink()
    code, _, err = litmus("compare", "baseline", "a")
    assert code == 2 and "there is no baseline" in err
    assert litmus("compare", "baseline", "baseline")[0] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("base", "nothing"), "no such run"),
        (("base", "base", "--format", "html"), "no such format"),
        (("base", "base", "--gate", "none.yaml"), "cannot read the gate"),
        (("base", "base", "--out", "/dev/null/x"), "cannot write the file"),
    ],
)
def test_what_cannot_be_done_ends_with_2(litmus, store, words, message):
    store("base", TRIALS)
    code, _, err = litmus("compare", *words)
    assert code == 2 and message in err and "Traceback" not in err


def test_a_file_gets_the_format_and_the_log_a_table(litmus, store, project):
    store("base", TRIALS)
    store("head", shifted(TRIALS, loss=1.1), 2.0)
    code, out, _ = litmus("compare", "base", "head", "--format", "junit", "--out", "out/compare.xml")
    assert code == 1 and "Regression: 1 worse of" in out
    suite = ElementTree.parse(project / "out" / "compare.xml").getroot()
    assert suite.get("failures") == "1"
    code, out, _ = litmus("compare", "base", "head", "--format", "markdown")
    assert code == 1 and out.startswith("### ❌ Regression")
