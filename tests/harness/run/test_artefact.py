"""The cache of ``suite.prepare``: built once, alike for all, repaired, out of the clock."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from harness.errors import LitmusError
from harness.run.artefact import Cache
from harness.run.lanes import run_cell


@pytest.fixture
def notes():
    return []


@pytest.fixture
def cache(tmp_path, notes):
    return Cache(tmp_path, "code-1", notes.append)


class Counted:
    """A build function that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, config):
        self.calls += 1
        return {"n": config["n"], "noise": np.random.rand(4).tolist(), "more": random.random()}


def test_it_is_built_once_and_then_read(tmp_path, cache, notes):
    build = Counted()
    first = cache.get("x/y", "model", {"n": 1}, build)
    again = Cache(tmp_path, "code-1", notes.append).get("x/y", "model", {"n": 1}, build)
    assert (build.calls, first) == (1, again)
    assert notes == []
    assert cache.prepare_ns > 0


def test_other_config_name_or_code_is_another_artefact(tmp_path, cache, notes):
    build = Counted()
    cache.get("x/y", "model", {"n": 1}, build)
    cache.get("x/y", "model", {"n": 2}, build)
    cache.get("x/y", "other", {"n": 1}, build)
    Cache(tmp_path, "code-2", notes.append).get("x/y", "model", {"n": 1}, build)
    assert build.calls == 4


def test_callers_do_not_share_the_object(cache):
    build = Counted()
    cache.get("x/y", "model", {"n": 1}, build)["n"] = 99
    assert cache.get("x/y", "model", {"n": 1}, build)["n"] == 1


def test_the_build_does_not_depend_on_the_callers_seed_nor_touch_it(tmp_path, notes):
    results, draws = [], []
    for seed, place in ((1, "one"), (2, "two")):
        np.random.seed(seed)
        results.append(Cache(tmp_path / place, "code", notes.append).get("x/y", "model", {"n": 1}, Counted()))
        draws.append(np.random.rand())
    assert results[0] == results[1]
    np.random.seed(1)
    assert draws[0] == np.random.rand()


def test_a_damaged_file_is_built_again_with_a_note(tmp_path, cache, notes):
    build = Counted()
    first = cache.get("x/y", "model", {"n": 1}, build)
    (path,) = (tmp_path / ".litmus" / "cache").glob("model-*.pkl")
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)
    assert cache.get("x/y", "model", {"n": 1}, build) == first
    assert build.calls == 2
    assert "damaged" in notes[0]
    assert cache.get("x/y", "model", {"n": 1}, build) == first
    assert build.calls == 2


def test_without_a_place_to_write_it_is_built_each_time_with_a_note(tmp_path, notes):
    (tmp_path / ".litmus").write_text("in the way")
    build = Counted()
    cache = Cache(tmp_path, "code", notes.append)
    assert cache.get("x/y", "model", {"n": 1}, build)["n"] == 1
    assert "cannot be kept" in notes[0]


def test_an_error_while_building_goes_to_the_caller_and_leaves_nothing(tmp_path, cache):
    with pytest.raises(ZeroDivisionError):
        cache.get("x/y", "model", {"n": 1}, lambda config: 1 // 0)
    assert not list((tmp_path / ".litmus" / "cache").glob("*.pkl"))


def test_a_config_that_is_not_plain_data_is_refused(cache):
    with pytest.raises(LitmusError, match="not plain data"):
        cache.get("x/y", "model", {"n": object()}, Counted())


BODY = """
    def build(config):
        with (HERE.parents[2] / "builds.txt").open("a") as file:
            file.write("x")
        time.sleep(2.5)
        return torch.rand(3)

    @suite.trial("t")
    def t(arm, point, seed, device):
        begin = time.perf_counter()
        weights = suite.prepare("weights", {"size": 3}, build)
        return {"m": float(weights.sum())}
"""


def test_parallel_cells_build_once_and_the_clock_stands_still(write_suite, engine, cells):
    """Each arm may take 2 s, building takes 2.5 s, and both cells wait for it."""
    root = write_suite(BODY, seeds=2, timeout_s=2)
    records = []
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda cell: run_cell(engine, root, cell, cell.arms, records.append, lambda text: None),
                      cells(root)))
    assert [(record.status, record.reason) for record in records] == [("ok", None)] * 4
    assert len({record.metrics["m"] for record in records}) == 1
    assert (root / "builds.txt").read_text() == "x"
    assert max(record.prepare_ns for record in records) > 2.4e9
    assert all(record.elapsed_ns < 2e9 for record in records)
