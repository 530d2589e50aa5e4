"""The workflows against GitHub's schema, and against what a schema does not see."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def steps(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def scripts(path):
    return [step["run"] for step in steps(path) if "run" in step]


def schema_faults(path):
    pytest.importorskip("check_jsonschema")
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr if done.returncode else ""


def test_the_three_workflows_are_there():
    assert [path.stem for path in FILES] == ["nightly", "pull-request", "tests"]


@each
def test_it_is_a_workflow(path):
    assert schema_faults(path) == ""


def test_what_is_no_workflow_is_found(tmp_path):
    path = tmp_path / "broken.yml"
    path.write_text(FILES[0].read_text().replace("runs-on:", "run-on:"))
    assert "jobs" in schema_faults(path)


@each
def test_every_make_target_is_there(path):
    used = [word for script in scripts(path) for word in re.findall(r"\bmake ([a-z-]+)", script)]
    assert used and set(used) <= TARGETS


@each
def test_the_scripts_are_bash_without_anything_pasted_in(path):
    for script in scripts(path):
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "${{" not in script, "a branch may be called $(anything): hand it over in env"


@each
def test_actions_are_pinned_to_a_major_version_at_least(path):
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[a-z-]+@(v\d+(\.\d+)*|[0-9a-f]{40})", name) for name in used)


@each
def test_permissions_are_minimal_and_no_credentials_stay(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in workflow["jobs"].values())
    assert "pull_request_target" not in path.read_text() and "secrets." not in path.read_text()
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@each
def test_no_job_runs_without_end(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    assert all(job["timeout-minutes"] <= 360 for job in jobs.values())


def test_the_pull_request_compares_with_the_branch_it_goes_to():
    path = ROOT / ".github" / "workflows" / "pull-request.yml"
    (compare,) = (script for script in scripts(path) if script.startswith("make ab"))
    assert 'BASE="origin/$BASE_REF" HEAD=HEAD' in compare and "OUT=ab.md" in compare
    checkout = next(step for step in steps(path) if step.get("uses", "").startswith("actions/checkout@"))
    assert checkout["with"]["fetch-depth"] == 0


@pytest.mark.parametrize(
    ("exit_code", "strict", "expected"), [(0, "", 0), (1, "", 2), (3, "", 0), (3, "1", 2), (4, "", 2)]
)
def test_make_ab_lets_an_empty_comparison_pass_and_nothing_else(tmp_path, exit_code, strict, expected):
    (tmp_path / "litmus").write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/said\nexit {exit_code}\n")
    (tmp_path / "litmus").chmod(0o755)
    words = ["make", "--no-print-directory", "-o", "venv", "ab", f"LITMUS={tmp_path}/litmus", "BASE=origin/main",
             "HEAD=HEAD", f"STRICT={strict}", "SUITES=galore", "BUDGET=3m"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == expected
    said = (tmp_path / "said").read_text()
    assert said == "ab origin/main HEAD galore --budget 3m --format markdown --out ab.md\n"
