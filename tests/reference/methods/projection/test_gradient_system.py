"""The linear gradient system against plain stepping, and the lemma's bound."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.methods.projection.gradient_system import System, Trajectory


def stable_rank(G):
    spectrum = np.linalg.svd(G, compute_uv=False) ** 2
    return spectrum.sum() / spectrum[0]


@given(rows=st.integers(2, 5), columns=st.integers(2, 5), terms=st.integers(1, 3), seed=st.integers(0, 500))
@settings(max_examples=20, deadline=None)
def test_the_operator_is_the_linear_part_of_the_gradient(rows, columns, terms, seed):
    system = System.random(rows, columns, terms, seed)
    random = np.random.default_rng(seed)
    W, D = random.standard_normal((2, rows, columns))
    change = system.gradient(W) - system.gradient(W + D)
    assert np.allclose(system.operator() @ D.flatten("F"), change.flatten("F"))


def test_first_step_and_later_ones_equal_gradient_descent():
    system = System.random(4, 6, 2, 3)
    W = np.random.default_rng(0).standard_normal((4, 6))
    path = system.trajectory(W, points=30, until=1e-1)
    assert path.stable_rank[0] == pytest.approx(stable_rank(system.gradient(W)))
    eta, seen = 1.0 / np.linalg.eigvalsh(system.operator())[-1], []
    for _ in range(int(path.times[-1]) + 1):
        seen.append(stable_rank(system.gradient(W)))
        W = W + eta * system.gradient(W)
    later = path.times > 30
    assert np.allclose(np.interp(path.times[later], np.arange(len(seen)), seen), path.stable_rank[later], atol=5e-3)


@given(terms=st.integers(1, 6), seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_bound_holds_but_for_its_known_small_excess(terms, seed):
    system = System.random(5, 5, terms, seed)
    path = system.trajectory(np.random.default_rng(seed + 1).standard_normal((5, 5)))
    assert path.worst_ratio() <= 1.02


def test_a_broken_bound_and_a_rise_would_show():
    path = Trajectory(np.arange(4.0), np.array([3.0, 2.0, 1.0, 1.5]), np.array([4.0, 2.0, 0.5, 2.0]), settled=1)
    assert path.worst_ratio() == 2.0
    assert path.worst_rise() == pytest.approx(0.5)


def test_a_singular_system_is_refused():
    system = System(np.ones((1, 3, 3)), np.diag([0.0, 1.0, 2.0])[None], np.eye(3)[None])
    with pytest.raises(ValueError, match="singular"):
        system.trajectory(np.ones((3, 3)))
