"""The classes that asv finds, run as asv runs them; and the configuration that goes with them."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from harness.declare.suite import Arm, Problem, SkipArm

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def benchmarks():
    spec = importlib.util.spec_from_file_location("asv_bench_speed", ROOT / "suites" / "asv_bench" / "speed.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def classes(module):
    return {name: item for name, item in vars(module).items() if isinstance(item, type) and hasattr(item, "params")}


def test_every_speed_experiment_with_a_smoke_point_has_a_class(benchmarks):
    found = classes(benchmarks)
    assert {"two_pass_softmax__throughput", "galore__step_time", "svd_free_dct_projection__transform"} <= found.keys()
    for name, item in found.items():
        points, arms = item.params
        assert points and arms, name
        assert item.version.isdigit() and item.__name__ == item.__qualname__ == name
        assert set(points) == set(item.points)


def test_discovery_does_not_load_a_suite(benchmarks):
    loaded = [name for name in vars(benchmarks) if name in ("torch", "numba", "load_suite", "run_speed")]
    assert not loaded


def test_a_benchmark_is_proved_and_measured(benchmarks):
    benchmark = classes(benchmarks)["svd_free_dct_projection__transform"]()
    point, arm = benchmark.params[0][0], benchmark.params[1][0]
    benchmark.setup(point, arm)
    before = benchmark.timer()
    benchmark.time_call(point, arm)
    one = benchmark.timer() - before
    benchmark.time_call(point, arm)
    two = benchmark.timer() - before - one
    assert 1e-6 < one < 0.1 and 1e-6 < two < 0.1 and benchmark.taken == 2 * 7 * benchmark.calls
    assert 0 <= benchmark.track_error(point, arm) <= benchmark.record.tolerance
    assert benchmark.track_peak_bytes(point, arm) >= 0
    assert (benchmark.track_error.unit, benchmark.track_peak_bytes.unit) == ("error", "bytes")


class _Declared:
    """A suite whose arms are absent, broken or wrong."""

    def __init__(self, arm):
        self.data = {}
        self.speeds = {"transform": lambda point, rng, device: Problem(
            inputs=lambda rng: (rng.random(4),), buffers=lambda x: (np.empty_like(x),), truth=lambda x: x,
            arms={"matmul": arm}, input_bytes=32, tolerance=1e-9)}


def _raise(x, out):
    raise ValueError("no such thing")


def _off_by_one(x, out):
    np.add(x, 1.0, out=out)


def test_a_commit_whose_harness_is_older_is_skipped(benchmarks, monkeypatch):
    monkeypatch.setitem(sys.modules, "harness.adapters.in_process", None)
    monkeypatch.setattr(benchmarks, "_PROVED", {})
    benchmark = classes(benchmarks)["svd_free_dct_projection__transform"]()
    with pytest.raises(NotImplementedError, match="this commit's harness"):
        benchmark.setup(benchmark.params[0][0], "matmul")


@pytest.mark.parametrize(
    ("arm", "error", "words"),
    [
        (SkipArm("peer is not installed"), NotImplementedError, "peer is not installed"),
        (Arm(_raise, 1, 1), RuntimeError, "crashed: ValueError: no such thing"),
        (Arm(_off_by_one, 1, 1), RuntimeError, "wrong: before being timed"),
    ],
    ids=["absent", "broken", "wrong"],
)
def test_an_absent_arm_is_skipped_and_a_bad_one_fails(benchmarks, monkeypatch, arm, error, words):
    monkeypatch.setattr("harness.run.worker.load_suite", lambda root, name: _Declared(arm))
    monkeypatch.setattr(benchmarks, "_PROVED", {})
    benchmark = classes(benchmarks)["svd_free_dct_projection__transform"]()
    with pytest.raises(error, match=words):
        benchmark.setup(benchmark.params[0][0], "matmul")


def test_discovery_imports_nothing_heavy():
    code = ("import sys; sys.path.insert(0, '.'); import suites.asv_bench.speed; "
            "print([n for n in ('torch', 'numba', 'numpy', 'pandas', 'scipy') if n in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_installed_reference_code_is_measured_not_the_working_trees(tmp_path):
    installed = tmp_path / "reference" / "__init__.py"
    installed.parent.mkdir()
    installed.write_text(f"__path__.append({str(ROOT / 'reference')!r})\n")
    code = ("import importlib.util, sys\n"
            f"spec = importlib.util.spec_from_file_location('speed', {str(ROOT / 'suites/asv_bench/speed.py')!r})\n"
            "speed = importlib.util.module_from_spec(spec); spec.loader.exec_module(speed)\n"
            "benchmark = speed.svd_free_dct_projection__transform()\n"
            "benchmark.setup(benchmark.params[0][0], 'matmul')\n"
            "print(sys.modules['reference'].__file__, sys.modules['reference.kernels.project'].__name__)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          check=True)
    assert done.stdout.split() == [str(installed), "reference.kernels.project"]


def test_the_configuration_agrees_with_the_project():
    text = re.sub(r"^\s*//.*$", "", (ROOT / "asv.conf.json").read_text(), flags=re.MULTILINE)
    config = json.loads(text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    needed = config["matrix"]["req"]
    assert config["project"] == project["name"]
    assert (ROOT / config["benchmark_dir"] / "__init__.py").exists()
    assert not config["html_dir"].startswith(config["results_dir"])
    assert needed["pip+asv_runner"] == [pins["asv-runner"]]
    assert needed["torch"] == [pins["torch"]]
    assert needed.keys() - {"pip+asv_runner"} <= {re.split(r"[<>=\[]", item)[0] for item in project["dependencies"]}
