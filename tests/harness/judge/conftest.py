"""Cards and records small enough to read: what an arm measured is given as numbers."""

import itertools
import json

import numpy as np
import pytest
import yaml

from harness.declare.card import parse_card
from harness.judge.tidy import tidy
from harness.judge.verdict import judge_suite
from harness.records.record import Record, Samples
from harness.records.store import COLUMNS, load_records, write_records

SUITE = "fam/slug"
CONSTANTS = {"l1": 32 * 2**10, "l2": 512 * 2**10, "llc": 32 * 2**20, "cores": 2, "memory": 8 * 2**30}
QUIET = {"floor": 0.0, "alarm": False}


def trial_record(arm, metrics, *, seed=0, point=None, experiment="trials", **changes):
    point = point or {}
    cell = f"{experiment}/{json.dumps(point, sort_keys=True)}/{seed}/{changes.get('device', 'cpu')}"
    values = {
        "cell": cell, "suite": SUITE, "experiment": experiment, "kind": "trial", "arm": arm, "point": point,
        "seed": seed, "device": "cpu", "profile": "small", "status": "ok", "card_version": 1, "code": "k",
        "started_at": 1.0, "metrics": metrics, **changes,
    }
    return Record(**values)


def speed_record(arm, times_ns, *, point=None, processes=3, experiment="timing", calls=2, **changes):
    """One sample forward and one backward per round; ``times_ns`` are per call, one per (process, round) in order."""
    rounds = len(times_ns) // processes
    samples = Samples()
    for unit, time in enumerate(times_ns):
        for position in (0, 1):
            samples.process.append(unit // rounds)
            samples.round.append(unit % rounds)
            samples.position.append(position)
            samples.calls.append(calls)
            samples.elapsed_ns.append(round(time * calls))
    return trial_record(arm, {}, point=point, experiment=experiment, samples=samples,
                        **{"kind": "speed", "input_bytes": 2**20, "bytes_moved": 1e6, "flops": 1e6, **changes})


@pytest.fixture
def trial():
    return trial_record


@pytest.fixture
def speed():
    return speed_record


@pytest.fixture(scope="session")
def frame(tmp_path_factory):
    """Records as the table that judging reads, through a real parquet file."""
    numbers = itertools.count()

    def make(records):
        folder = tmp_path_factory.mktemp("records") / str(next(numbers))
        write_records(folder, records)
        return load_records(folder, COLUMNS)

    return make


@pytest.fixture(scope="session")
def rows(frame):
    """(records, experiment card) -> tidy rows."""

    def make(records, card, experiment=None):
        name = experiment or next(iter(card.experiments))
        return tidy(frame(records), name, card.experiments[name]), card.experiments[name]

    return make


@pytest.fixture(scope="session")
def make_card():
    """A card from its experiments and claims; the trial experiment has metrics loss (lower), acc (higher), curve."""

    def make(claims=(), **experiments):
        defaults = {
            "trials": {"kind": "trial", "arms": ["a", "b", "c"], "seeds": 5,
                       "metrics": {"loss": {"better": "lower"}, "acc": {"better": "higher"}, "curve": {"series": True},
                                   "plain": {}}},
            "timing": {"kind": "speed", "arms": ["a", "b", "c"]},
        }
        chosen = {name: {**defaults.get("timing" if item.get("kind") == "speed" else "trials", {}), **item}
                  for name, item in experiments.items()} or defaults
        anything = {"id": "any", "statement": "s", "experiment": next(iter(chosen)), "estimate":
                    {"custom": "nothing"}, "supported_if": "> 1", "refuted_if": "< 1"}
        data = {"paper": {"title": "T", "year": 2020}, "version": 1, "summary": "s", "experiments": chosen,
                "claims": [{"statement": "s", **claim} for claim in claims] or [anything]}
        return parse_card(yaml.safe_dump(data), "card")

    return make


@pytest.fixture(scope="session")
def judge(frame):
    """(card, records) -> the verdicts."""

    def make(card, records, *, canary=QUIET, custom=None, constants=CONSTANTS):
        def lookup(name):
            return (custom or {})[name]

        return judge_suite(SUITE, card, frame(records), constants, canary, lookup)

    return make


@pytest.fixture(scope="session")
def noisy():
    """(center in ms, relative noise, rounds) -> times in ns with noise from round to round and none from processes."""

    def make(center, noise=0.01, rounds=24, seed=0):
        wobble = np.random.default_rng(seed).normal(0, noise, rounds)
        return [float(value) for value in center * 1e6 * np.exp(wobble)]

    return make
