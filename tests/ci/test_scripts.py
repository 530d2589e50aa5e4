import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_the_pins_are_the_versions_of_an_environment():
    done = subprocess.run(
        [sys.executable, ROOT / "ci" / "freeze.py"], capture_output=True, text=True, timeout=120, check=True
    )
    pins = dict(line.split("==") for line in done.stdout.splitlines() if not line.startswith("#"))
    assert {"numpy", "torch", "typer", "pydantic-core", "pytest"} <= pins.keys(), "what is needed, and what that needs"
    assert "litmus-harness" not in pins
    assert not any("+" in version or "/" in version for version in pins.values())
