import textwrap

import pytest
import yaml

CARD = {
    "paper": {"title": "A test", "year": 2024},
    "version": 3,
    "summary": "Nothing real.",
    "experiments": {
        "t": {
            "kind": "speed",
            "arms": ["right", "wrong", "broken", "absent", "stale"],
            "axes": {"n": [8, 64], "threads": [1]},
        },
        "u": {"kind": "trial", "arms": ["a"], "metrics": {"m": {"better": "lower"}}},
    },
    "claims": [
        {"id": "c", "statement": "s", "experiment": "t", "estimate": {"ratio": "time", "of": "right", "to": "stale"},
         "supported_if": "> 1", "refuted_if": "< 1"},
    ],
}
BODY = """
    import numpy as np
    from harness.declare.suite import Arm, Problem, SkipArm, Suite
    suite = Suite(__file__)
    kept = {}

    def double(x, out):
        np.multiply(x, 2.0, out=out)

    def triple(x, out):
        np.multiply(x, 3.0, out=out)

    def broken(x, out):
        raise ValueError("no such thing")

    def stale(x, out):  # remembers a result by the address of its input
        out[...] = kept.setdefault(x.ctypes.data, x * 2.0)

    @suite.speed("t")
    def t(point, rng, device):
        n = point["n"]
        arms = {name: Arm(run, 16.0 * n, n) for name, run in
                {"right": double, "wrong": triple, "broken": broken, "stale": stale}.items()}
        return Problem(inputs=lambda rng: (rng.random(n),), buffers=lambda x: (np.empty_like(x),),
                       truth=lambda x: 2.0 * x, arms={**arms, "absent": SkipArm("peer is not installed")},
                       input_bytes=8 * n, tolerance=1e-12)

    @suite.trial("u")
    def u(arm, point, seed, device):
        return {"m": 0.0}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose suite ``x/y`` has a right arm, and four that are none."""
    folder = tmp_path / "suites" / "x" / "y"
    folder.mkdir(parents=True)
    (folder / "card.yaml").write_text(yaml.safe_dump(CARD))
    (folder / "suite.py").write_text(textwrap.dedent(BODY))
    monkeypatch.setenv("LITMUS_ROOT", str(tmp_path))
    return tmp_path
