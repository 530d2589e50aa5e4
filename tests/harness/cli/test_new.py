import importlib.util
import sys

import numpy as np
import pytest

from harness.cli.skeleton import skeleton
from harness.declare.card import load_card


def test_new_writes_a_suite_that_lists_and_loads(litmus, tmp_path, monkeypatch):
    (tmp_path / "suites").mkdir()
    monkeypatch.setenv("LITMUS_ROOT", str(tmp_path))
    code, out, _ = litmus("new", "softmax/sparsemax")
    assert code == 0
    assert out.count("wrote ") == 7 and "litmus validate sparsemax" in out
    card = load_card(tmp_path / "suites/softmax/sparsemax/card.yaml")
    assert card.claim_ids == ["lower_error", "no_slower"]
    assert "softmax/sparsemax" in litmus("ls")[1]


def test_new_never_overwrites(litmus, project):
    path = project / "suites/demo/pairwise/card.yaml"
    before = path.read_text()
    (project / "suites/demo/pairwise/suite.py").write_text("mine = 1\n")
    code, _, err = litmus("new", "demo/pairwise")
    assert code == 2 and "left as it is" in err
    assert path.read_text() == before
    assert (project / "suites/demo/pairwise/suite.py").read_text() == "mine = 1\n"


def test_new_beside_an_existing_method_keeps_its_package(litmus, project):
    package = project / "reference/methods/demo/__init__.py"
    package.write_text('"""Mine."""\n')
    assert litmus("new", "demo/other")[0] == 0
    assert package.read_text() == '"""Mine."""\n'


@pytest.mark.parametrize(
    "name", ["noslash", "Demo/x", "demo/two-pass", "demo/class", "demo/", "/x", "a/b/c", "../x/y", "demo/1x"]
)
def test_a_name_that_is_no_module_is_refused(litmus, project, name):
    code, _, err = litmus("new", name)
    assert code == 2 and "lower-case Python names" in err and "litmus new" in err


def test_the_placeholder_method_sums_and_beats_its_baseline(tmp_path):
    """The skeleton's claim has a real answer: at these sizes the method's error is lower."""
    path = tmp_path / "method.py"
    path.write_text(next(text for place, text in skeleton("demo", "pairwise").items() if place.parts[0] == "reference"))
    spec = importlib.util.spec_from_file_location("placeholder", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["placeholder"] = module
    spec.loader.exec_module(module)
    errors = {}
    for n in (1, 2, 3, 1000, 65536):
        values = np.random.default_rng(n).random((4, n), dtype=np.float32)
        kept, truth = values.copy(), values.sum(axis=1, dtype=np.float64)
        for name in ("pairwise", "in_order"):
            out = np.empty(4, np.float32)
            getattr(module, name)(values, out)
            errors[name] = np.abs(out / truth - 1).max()
            assert errors[name] < 1e-3
        assert np.array_equal(values, kept), "inputs stay as they are"
    assert errors["pairwise"] < 0.25 * errors["in_order"]
