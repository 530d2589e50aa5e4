"""The documents' examples are real: the card is valid, the functions give what they promise, links lead somewhere."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.declare.card import parse_card
from harness.declare.suite import Suite

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    text = (ROOT / "docs" / "adding-a-suite.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The worked example's suite, loaded from the document."""
    method, functions = blocks("python")
    card, _ = blocks("yaml")
    files = {
        "suites/numerics/accurate_summation/card.yaml": card,
        "suites/numerics/accurate_summation/suite.py": functions,
        "method.py": method,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, path in (
        ("reference.methods.numerics", None),
        ("reference.methods.numerics.accurate_summation", "method.py"),
        ("documented_suite", "suites/numerics/accurate_summation/suite.py"),
    ):
        spec = importlib.util.spec_from_file_location(name, tmp_path / path) if path else None
        module = importlib.util.module_from_spec(spec) if spec else type(sys)(name)
        monkeypatch.setitem(sys.modules, name, module)
        if spec:
            spec.loader.exec_module(module)
    return sys.modules["documented_suite"].suite


def test_the_documented_search_is_a_valid_experiment():
    card, search = blocks("yaml")
    whole = parse_card(card.replace("experiments:\n", f"experiments:\n{search}", 1), "card.yaml")
    experiment = whole.experiments["pretrain"]
    assert experiment.tune.point == {"steps": 500, "corpus": ["text", "code"]}
    assert experiment.tuned_from == {"method_without_warmup": "pretrain:method"}


def test_the_worked_example_keeps_its_cards_promises(example):
    assert isinstance(example, Suite)
    assert example.trials.keys() | example.speeds.keys() == example.card.experiments.keys()
    for oracle in example.oracles.values():
        oracle()


def test_the_worked_example_gives_the_documented_numbers(example):
    errors = {
        arm: np.array([example.trials["accuracy"](arm, {"n": 256}, seed, "cpu")["error"] for seed in range(8)])
        for arm in ("compensated", "pairwise")
    }
    ratio = np.exp(np.mean(np.log(errors["compensated"] / errors["pairwise"])))
    assert ratio == pytest.approx(0.6831, rel=0.1), "the estimate printed in the document"


def test_the_worked_examples_arms_are_right(example):
    problem = example.speeds["throughput"]({"n": 1024}, np.random.default_rng(0), "cpu")
    inputs = problem.inputs(np.random.default_rng(1))
    for arm in problem.arms.values():
        buffers = problem.buffers(*inputs)
        arm.run(*inputs, *buffers)
        assert np.allclose(buffers[0], problem.truth(*inputs), rtol=problem.tolerance)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_inside_the_project_lead_somewhere(path):
    prose = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", prose)
    broken = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not broken


def test_every_command_in_the_documents_exists():
    from harness.cli.app import app

    known = {command.name for command in (*app.registered_commands, *app.registered_groups)}
    used = {word for path in DOCUMENTS for word in re.findall(r"^\$ litmus ([a-z]+)", path.read_text(), re.MULTILINE)}
    assert used <= known and used
