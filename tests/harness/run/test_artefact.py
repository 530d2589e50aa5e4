"""The cache of ``suite.prepare``: built once, alike for all, repaired, out of the clock."""

from __future__ import annotations

import importlib.util
import random
import time
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


def test_a_build_inside_a_build_is_counted_once(cache):
    def outer(config):
        cache.get("x/y", "inner", {}, lambda config: time.sleep(0.2))

    begin = time.perf_counter_ns()
    cache.get("x/y", "outer", {}, outer)
    assert 2e8 < cache.prepare_ns <= time.perf_counter_ns() - begin


def loaded(root, name):
    spec = importlib.util.spec_from_file_location(name, root / "reference" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_plain_functions_artefact_depends_on_its_module_alone(tmp_path, notes):
    (tmp_path / "reference").mkdir()
    body = (
        "def build(config):\n    with open(config['log'], 'a') as file:\n        file.write('x')\n\n"
        "def never():\n    from reference import part\n"
    )
    (tmp_path / "reference" / "nets.py").write_text(body)
    (tmp_path / "reference" / "part.py").write_text("A = 1\n")
    log = tmp_path / "log"

    def get(code):
        build = loaded(tmp_path, "nets").build
        Cache(tmp_path, code, notes.append).get("x/y", "net", {"log": str(log)}, build)
        return log.read_text()

    assert get("code-1") == "x"
    assert get("code-2") == "x", "the suite changed elsewhere"
    (tmp_path / "reference" / "part.py").write_text("A = 22\n")
    assert get("code-2") == "xx", "what its module imports has changed"
    (tmp_path / "reference" / "nets.py").write_text(body + "B = 3\n")
    assert get("code-2") == "xxx"


def test_code_changes_no_draw_of_a_build(tmp_path, notes):
    one, two = (Cache(tmp_path, code, notes.append).get("x/y", "model", {"n": 1}, Counted()) for code in ("1", "2"))
    assert one == two


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
