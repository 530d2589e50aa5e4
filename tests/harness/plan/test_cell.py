from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.declare.card import Measure
from harness.plan.cell import Cell


def a_cell(**changes):
    values = {
        "suite": "alpha/one",
        "experiment": "quality",
        "kind": "trial",
        "point": {"n": 16, "mode": "fast"},
        "seed": 1,
        "device": "cpu",
        "profile": "small",
        "arms": ("method", "baseline"),
        "card_version": 3,
        "code": "ab12",
        "tuned": {"method": {"lr": 0.1}},
        "measure": Measure(),
        "timeout_s": 60.0,
        "memory_gib": 2.0,
    }
    return Cell(**{**values, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"suite": "alpha/two"},
        {"experiment": "other"},
        {"point": {"n": 64, "mode": "fast"}},
        {"point": {"n": "16", "mode": "fast"}},
        {"seed": 2},
        {"device": "cuda:0"},
        {"arms": ("method",)},
        {"arms": ("baseline", "method")},
        {"card_version": 4},
        {"code": "cd34"},
        {"tuned": {"method": {"lr": 0.2}}},
        {"tuned": {}},
    ],
)
def test_another_question_has_another_id(change):
    assert a_cell(**change).id != a_cell().id


@pytest.mark.parametrize(
    "change",
    [
        {"profile": "full"},
        {"timeout_s": 1.0},
        {"memory_gib": 64.0},
        {"measure": Measure(rounds=99)},
        {"point": {"mode": "fast", "n": 16}},
    ],
)
def test_limits_names_and_order_of_axes_are_no_other_question(change):
    assert a_cell(**change).id == a_cell().id


def test_how_a_speed_cell_is_measured_is_part_of_its_question():
    assert a_cell(kind="speed").id != a_cell(kind="speed", measure=Measure(rounds=99)).id


def test_the_label_is_a_selector_for_the_point():
    assert a_cell().label == "alpha/one:quality[n=16,mode=fast]"
    assert a_cell(point={}).label == "alpha/one:quality"


axis_values = st.one_of(
    st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text(max_size=10)
)


@given(st.dictionaries(st.text(min_size=1, max_size=8), axis_values, max_size=4), st.integers(0, 10**6))
def test_a_cell_survives_the_workers_protocol(point, seed):
    cell = a_cell(point=point, seed=seed)
    back = Cell.from_json(cell.to_json())
    assert back == cell
    assert back.id == cell.id
    assert "\n" not in cell.to_json()


def test_the_id_is_stable_between_releases():
    assert a_cell().id == replace(a_cell()).id == "c689ef61638a604a"


def test_the_cache_state_is_part_of_the_question_on_cuda_only():
    warm, cold = Measure(cache="warm"), Measure()
    assert a_cell(kind="speed", measure=warm).id == a_cell(kind="speed", measure=cold).id
    on_gpu = {"kind": "speed", "device": "cuda:0"}
    assert a_cell(**on_gpu, measure=warm).id != a_cell(**on_gpu, measure=cold).id
    assert Cell.from_json(a_cell(**on_gpu, measure=warm).to_json()).measure.cache == "warm"


def test_a_speed_cells_id_on_a_cpu_has_not_changed_with_cuda():
    """Stored runs are resumed and reproduced by it."""
    assert a_cell(kind="speed").id == "bcab393f98b01404"
