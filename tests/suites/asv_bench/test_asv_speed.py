"""The classes that asv finds, run as asv runs them; and the configuration that goes with them."""

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

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
    assert benchmark.track_time(point, arm) > 0
    assert 0 <= benchmark.track_error(point, arm) <= benchmark.record.tolerance
    assert benchmark.track_time.unit == "ns"


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
