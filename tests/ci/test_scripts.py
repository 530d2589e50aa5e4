import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from harness.records.store import RunInfo, write_run_info, write_verdicts

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / "ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_table_goes_between_the_markers_and_only_there():
    tables = load("readme_table")
    readme = f"# Title\n\n{tables.BEGIN}\nold\n{tables.END}\n\nafter\n"
    once = tables.filled(readme, "| a |\n")
    assert once == f"# Title\n\n{tables.BEGIN}\n\n| a |\n\n{tables.END}\n\nafter\n"
    assert tables.filled(once, "| a |\n") == once


@pytest.mark.parametrize(
    "readme",
    [
        "no markers",
        "<!-- verdicts: end --><!-- verdicts: begin -->",
        "<!-- verdicts: begin -->" * 2 + "<!-- verdicts: end -->",
    ],
)
def test_a_readme_without_its_markers_is_refused(readme):
    with pytest.raises(ValueError, match="each once"):
        load("readme_table").filled(readme, "| a |")


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
    (tmp_path / "suites").mkdir()
    monkeypatch.setenv("LITMUS_ROOT", str(tmp_path))

    def write(name, words):
        folder = tmp_path / "results" / "m" / name
        write_run_info(folder, RunInfo(run=name, started_at=1.0, profile="small", litmus="0.1.0"))
        write_verdicts(
            folder,
            [
                {"suite": "a/b", "claim": claim, "verdict": word, "reason": "", "parts": []}
                for claim, word in words.items()
            ],
        )

    return write


def test_a_claim_that_is_no_longer_supported_ends_with_1(two_runs, capsys):
    two_runs("one", {"x": "supported", "y": "refuted", "z": "supported"})
    two_runs("two", {"x": "inconclusive", "y": "supported", "z": "supported"})
    main = load("verdict_changes").main
    assert main(["one", "two"]) == 1
    out = capsys.readouterr().out
    assert "a/b x: supported -> inconclusive" in out and "2 of 3 claims changed" in out
    assert main(["one", "one"]) == 0


def test_runs_without_a_common_claim_are_not_comparable(two_runs, capsys):
    two_runs("one", {"x": "supported"})
    two_runs("two", {"y": "supported"})
    main = load("verdict_changes").main
    assert main(["one", "two"]) == 3
    assert main(["one", "nothing"]) == 2
    assert main(["one"]) == 2


def test_the_pins_are_the_versions_of_an_environment():
    done = subprocess.run(
        [sys.executable, ROOT / "ci" / "freeze.py"], capture_output=True, text=True, timeout=120, check=True
    )
    pins = dict(line.split("==") for line in done.stdout.splitlines() if not line.startswith("#"))
    assert {"numpy", "torch", "typer", "pydantic-core", "pytest"} <= pins.keys(), "what is needed, and what that needs"
    assert "litmus-harness" not in pins
    assert not any("+" in version or "/" in version for version in pins.values())
