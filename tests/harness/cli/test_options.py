import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cli.options import at_least_one, parse_budget, parse_devices, parse_profile
from harness.cli.output import seconds
from harness.errors import LitmusError


@pytest.mark.parametrize(
    ("text", "value"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400), ("2 min", 120), ("1H", 3600), (None, None)],
)
def test_a_budget_is_a_duration(text, value):
    assert parse_budget(text) == value


@pytest.mark.parametrize(
    "text", ["10", "", "m", "-5m", "0s", "10x", "ten minutes", "1h-5m", "nan", "inf s", "1e3s", "5m!"]
)
def test_a_bad_budget_is_explained(text):
    with pytest.raises(LitmusError) as caught:
        parse_budget(text)
    refusal = caught.value
    assert (refusal.key, refusal.value, refusal.exit_code) == ("--budget", text, 2)
    assert "10m" in refusal.expected and refusal.next_step


@given(st.text(max_size=12))
def test_any_budget_is_positive_or_refused(text):
    try:
        value = parse_budget(text)
    except LitmusError:
        return
    assert value > 0


def test_profiles_and_devices():
    assert parse_profile("smoke") == "smoke"
    assert parse_devices([]) == ("auto",)
    assert parse_devices(["cpu,cuda:1", "cuda"]) == ("cpu", "cuda:1", "cuda")


@pytest.mark.parametrize(
    ("call", "key", "value", "expected"),
    [
        (lambda: parse_profile("smal"), "--profile", "smal", "'small'"),
        (lambda: parse_devices(["gpu"]), "--device", "gpu", "cuda"),
        (lambda: parse_devices(["cuda:x"]), "--device", "cuda:x", "INDEX"),
        (lambda: parse_devices(["auto", "cpu"]), "--device", "auto,cpu", "auto"),
        (lambda: at_least_one("--seeds", 0), "--seeds", 0, "1 or more"),
        (lambda: at_least_one("--jobs", -2), "--jobs", -2, "1 or more"),
    ],
)
def test_bad_values_are_explained(call, key, value, expected):
    with pytest.raises(LitmusError) as caught:
        call()
    refusal = caught.value
    assert (refusal.key, refusal.value, refusal.exit_code) == (key, value, 2)
    assert expected in refusal.expected and refusal.next_step and refusal.where


@pytest.mark.parametrize(
    ("value", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3700, "1 h 01 min")]
)
def test_durations_for_people(value, text):
    assert seconds(value) == text
