"""Whole comparisons of two revisions, with planted differences; the clock is the suite's own."""

import pytest

import harness.run.ab.session as session

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_equal_code_is_the_same(repository, compare, words):
    outcome = compare(repository, "HEAD", "HEAD", everything=True)
    assert words(outcome) == {
        "x/y:s a time": ("same", "inside_zone"), "x/y:s b time": ("same", "inside_zone"),
        "x/y:s a error": ("same", "identical"), "x/y:s b error": ("same", "identical"),
        "x/y:t x m": ("same", "identical"),
    }
    assert outcome.exit_code == 0
    times = [item for item in outcome.comparisons if item.metric == "time"]
    assert [(item.n, item.unit, item.base, item.head) for item in times] == [(4, "process", 1e-4, 1e-4)] * 2


def test_nothing_changed_is_nothing_comparable(repository, compare):
    outcome = compare(repository, "HEAD", ".")
    assert (outcome.comparisons, outcome.exit_code) == ((), 3)
    assert "4 equal" in repository.said[0] or "2 equal" in repository.said[0]


def test_the_sides_import_their_own_code_and_a_slowdown_is_found(repository, compare, words):
    """COST comes from ``reference`` of each side: were it the other's, both would take equal time."""
    repository.change("'a': 1e5", "'a': 2e5", "reference/numbers.py")
    outcome = compare(repository, "HEAD", ".", "y:s")
    found = words(outcome)
    assert found["x/y:s a time"] == ("slower", "beyond_zone")
    assert found["x/y:s b time"] == ("same", "inside_zone")
    slower = next(item for item in outcome.comparisons if item.verdict == "slower")
    assert slower.change == pytest.approx(1.0)
    assert (slower.base, slower.head) == (1e-4, 2e-4)
    assert outcome.exit_code == 1
    back = compare(repository, ".", "HEAD", "y:s")
    assert words(back)["x/y:s a time"] == ("faster", "beyond_zone")
    assert back.exit_code == 0


def test_a_wrong_constant_in_a_trial_is_worse(repository, compare, words):
    repository.change(", 1.0", ", 1.5", "reference/numbers.py")
    outcome = compare(repository, "HEAD", ".", "y:t")
    assert words(outcome) == {"x/y:t x m": ("worse", "beyond_zone")}
    assert outcome.comparisons[0].change == pytest.approx(0.5)
    assert outcome.exit_code == 1
    assert words(compare(repository, ".", "HEAD", "y:t")) == {"x/y:t x m": ("better", "beyond_zone")}


def test_a_larger_error_that_the_tolerance_allows_is_worse(repository, compare, words):
    repository.change("2.0,", "2.001,", "reference/numbers.py")
    outcome = compare(repository, "HEAD", ".", "y:s")
    assert words(outcome)["x/y:s a error"] == ("worse", "beyond_zone")
    assert {item.unit for item in outcome.comparisons if item.metric == "error"} == {"process"}
    assert outcome.exit_code == 1


def test_seeds_are_paired_at_small(repository, compare):
    repository.change(", 1.0", ", 1.5", "reference/numbers.py")
    outcome = compare(repository, "HEAD", ".", "y:t", profile="small")
    assert [(item.verdict, item.n, item.unit) for item in outcome.comparisons] == [("worse", 3, "seed")]


BROKEN = {
    "raises": ("raise RuntimeError('no such instruction')", "crashed: RuntimeError: no such instruction"),
    "segfaults": ("ctypes.string_at(0)", "crashed: killed by SIGSEGV"),
    "hangs": ("time.sleep(600)", "timeout: took longer than 2 s"),
    "is wrong": ("out[:] = 0", "wrong: before being timed"),
    "is skipped": ("raise SkipArm('peer not installed')", "skipped: peer not installed"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_arm_that_only_the_head_cannot_run_is_a_regression(repository, compare, words, how):
    repository.change("timeout_s: 5", "timeout_s: 1", "suites/x/y/card.yaml")
    base = repository.commit()
    body, said = BROKEN[how]
    repository.change("np.multiply(x, FACTOR, out=out)", body)
    outcome = compare(repository, base, ".", "y:s")
    assert words(outcome) == {
        "x/y:s a time": ("incomparable", "head_status"),
        "x/y:s b time": ("same", "inside_zone"), "x/y:s b error": ("same", "identical"),
    }
    detail = next(item.detail for item in outcome.comparisons if item.arm == "a")
    assert detail.startswith(f"head {said}")
    assert outcome.exit_code == 4
    back = compare(repository, ".", base, "y:s")
    assert words(back)["x/y:s a time"] == ("incomparable", "base_status")
    assert back.exit_code == 0


def test_an_arm_that_breaks_while_it_is_sampled(repository, compare, words):
    """It is right when proven, and fails later: the proofs make two calls, rounds more than ten."""
    repository.change("def double(x, out):", "calls = []\n\n\ndef double(x, out):\n    calls.append(0)\n"
                      "    if len(calls) > 10:\n        raise RuntimeError('worn out')")
    repository.change("HostTimer.sample = lambda self, bench, calls, start, state: round",
                      "HostTimer.sample = lambda self, bench, calls, start, state: bench.bound[0]() or round")
    outcome = compare(repository, "HEAD", ".", "y:s")
    found = words(outcome)
    assert found["x/y:s a time"] == ("incomparable", "head_status")
    assert found["x/y:s b time"] == ("same", "inside_zone")
    assert "worn out" in next(item.detail for item in outcome.comparisons if item.arm == "a")
    assert outcome.exit_code == 4


def test_an_arm_that_neither_can_run_is_no_regression(repository, compare, words):
    repository.change("np.multiply(x, FACTOR, out=out)", "ctypes.string_at(0)")
    repository.commit()
    outcome = compare(repository, "HEAD", "HEAD", "y:s", everything=True)
    assert words(outcome)["x/y:s a time"] == ("incomparable", "base_status")
    assert outcome.exit_code == 0


def test_a_trial_that_only_the_head_cannot_run(repository, compare, words):
    repository.change('return {"m"', 'raise ValueError("no")\n    return {"m"')
    outcome = compare(repository, "HEAD", ".", "y:t")
    assert words(outcome) == {"x/y:t x *": ("incomparable", "head_status")}
    assert outcome.exit_code == 4


def test_a_file_that_the_base_cannot_load(repository, compare, words):
    good = (repository.root / "suites/x/y/suite.py").read_text()
    repository.change("import ctypes", "import no_such_module, ctypes")
    repository.commit()
    repository.write("suites/x/y/suite.py", good)
    outcome = compare(repository, "HEAD", ".")
    assert set(words(outcome).values()) == {("incomparable", "no_load")}
    assert outcome.exit_code == 3
    back = compare(repository, ".", "HEAD")
    assert set(words(back).values()) == {("incomparable", "head_status")}
    assert back.exit_code == 4


def test_a_file_that_neither_can_load(repository, compare, words):
    repository.change("import ctypes", "import no_such_module, ctypes")
    repository.commit()
    outcome = compare(repository, "HEAD", "HEAD", everything=True)
    assert set(words(outcome).values()) == {("incomparable", "no_load")}
    assert outcome.exit_code == 3


def test_a_suite_on_one_side_does_not_hide_the_others(repository, compare, words):
    repository.write_suite("x/new")
    repository.change(", 1.0", ", 1.5", "reference/numbers.py")
    found = words(compare(repository, "HEAD", ".", "*:t"))
    assert found == {"x/new:t * *": ("incomparable", "only_head"), "x/y:t x m": ("worse", "beyond_zone")}


def test_other_data_are_not_compared(repository, compare, words):
    repository.change('return {"m"', 'suite.uses_data("d", str(VALUE))\n    return {"m"')
    repository.commit()
    repository.change(", 1.0", ", 1.5", "reference/numbers.py")
    assert words(compare(repository, "HEAD", ".", "y:t")) == {"x/y:t x *": ("incomparable", "data")}
    repository.change("    arms = {", '    suite.uses_data("d", str(VALUE))\n    arms = {')
    base = repository.commit()
    repository.change(", 1.5", ", 1.0", "reference/numbers.py")
    assert words(compare(repository, base, ".", "y:s"))["x/y:s a time"] == ("incomparable", "data")


def test_a_suite_whose_oracle_disagrees_is_not_measured(repository, compare, words):
    repository.write("suites/x/y/suite.py", (repository.root / "suites/x/y/suite.py").read_text()
                     + "\n\n@suite.oracle\ndef right():\n    assert FACTOR == 2.0, 'not two'\n")
    base = repository.commit()
    repository.change("2.0,", "2.5,", "reference/numbers.py")
    outcome = compare(repository, base, ".")
    assert words(outcome) == {"x/y:* * *": ("incomparable", "head_status")}
    assert "oracle right: AssertionError: not two" in outcome.comparisons[0].detail
    assert outcome.exit_code == 4
    assert words(compare(repository, ".", base)) == {"x/y:* * *": ("incomparable", "base_status")}


def test_a_problem_that_cannot_be_posed_here(repository, compare, words):
    repository.change("    arms = {", "    raise SkipArm('not here')\n    arms = {")
    repository.commit()
    outcome = compare(repository, "HEAD", "HEAD", "y:s", everything=True)
    assert {reason for _, reason in words(outcome).values()} == {"base_status"}


def test_no_time_is_no_word(repository, compare, words):
    outcome = compare(repository, "HEAD", "HEAD", "y:s", everything=True, budget_s=0.001)
    times = {word for name, word in words(outcome).items() if name.endswith("time")}
    assert times == {("inconclusive", "budget_spent")}
    assert outcome.exit_code == 0


def test_code_borrowed_from_elsewhere_is_refused(repository, compare, tmp_path, words):
    (tmp_path / "elsewhere" / "suites").mkdir(parents=True)
    (tmp_path / "elsewhere" / "suites" / "lent.py").write_text("")
    place = str(tmp_path / "elsewhere" / "suites")
    lines = f"import suites\nsuites.__path__.append({place!r})\nimport suites.lent\n"
    repository.change("import ctypes", lines + "import ctypes")
    repository.commit()
    outcome = compare(repository, "HEAD", "HEAD", "y:s", everything=True)
    assert {reason for _, reason in words(outcome).values()} == {"no_load"}
    assert "lent.py from outside its revision" in outcome.comparisons[0].detail


def test_the_gate_says_what_gates(repository, compare):
    gate = session.Gate.model_validate({"exceptions": [
        {"at": "x/y:t", "gates": False, "reason": "not yet stable"},
        {"at": "x/y:s", "metrics": ["time"], "threshold": 2.0, "reason": "a toy clock"}]})
    repository.change("'a': 1e5", "'a': 2e5", "reference/numbers.py")
    repository.change(", 1.0", ", 1.5", "reference/numbers.py")
    outcome = compare(repository, "HEAD", ".", gate=gate)
    found = {(item.arm, item.metric): (item.verdict, item.gates, item.threshold) for item in outcome.comparisons}
    assert found["x", "m"] == ("worse", False, 0.01)
    assert found["a", "time"] == ("same", True, 2.0)
    assert outcome.exit_code == 0


def test_one_direction_is_an_alarm(repository, compare):
    names = [f"a{index}" for index in range(11)]
    repository.write_suite(experiments={"s": {"kind": "speed", "arms": names}}, claims=[
        {"id": "c", "statement": "s", "experiment": "s", "supported_if": "> 0", "refuted_if": "< 0",
         "estimate": {"mean": "time", "of": "a0"}}])
    repository.change("    return Problem", "    arms = dict.fromkeys(suite.card.experiments['s'].arms, arms['b'])\n"
                      "    return Problem")
    text = (repository.root / "suites/x/y/suite.py").read_text()
    repository.write("suites/x/y/suite.py", text[: text.index("@suite.trial")])
    base = repository.commit()
    repository.write("reference/numbers.py", f"COST, FACTOR, VALUE = dict.fromkeys({names}, 1.2e5), 2.0, 1.0\n")
    outcome = compare(repository, base, ".")
    assert any("11 of the 11 times that moved got slower" in alarm for alarm in outcome.alarms)


def test_a_failed_canary_is_said(repository, compare, monkeypatch):
    monkeypatch.setattr("harness.run.ab.canary.Canary.alarm", lambda self: "equal code did not take equal time")
    outcome = compare(repository, "HEAD", "HEAD", "y:s", everything=True)
    assert outcome.canary_failed
    assert outcome.exit_code == 5
    assert outcome.alarms == ("equal code did not take equal time",)


def test_the_user_is_told(repository, compare):
    compare(repository, "HEAD", "HEAD", "y:s", everything=True)
    assert repository.said[0] == "1 speed cells and 0 trial cells to compare"
    assert repository.said[-1] == "[1/1] x/y:s[n=1] pair 4: a same, b same"
