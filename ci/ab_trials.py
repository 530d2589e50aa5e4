"""How often ``litmus ab`` is wrong on this machine: false alarms on equal code, and planted changes that it misses.

    ci/ab_trials.py equal 20           litmus ab HEAD HEAD --all: false alarms by number and by family
    ci/ab_trials.py slower 5 20        one kernel does 5 % more work, committed in a temporary clone: how often found
    ci/ab_trials.py worse 5            one wrong constant in an optimizer, likewise

Ends with 1 where the rates asked for are missed. Run it on an idle machine: it takes minutes a trial.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cli.app import show_refusal
from harness.errors import LitmusError

CHECKOUT = Path(__file__).resolve().parents[1]
FAMILY_RATE, NUMBER_RATE = 1 / 20, 0.01
# Of 20 trials, a slowdown of 5 % or more must be found in 19, one of 3 % in 10.
NEEDED = {5.0: 19 / 20, 3.0: 10 / 20}
LIMIT_S = 180.0
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Plant:
    """One text in one file replaced, and where it must be noticed."""

    file: str
    old: str
    new: str
    selector: str
    arm: str
    verdict: str


def more_work(percent: float) -> Plant:
    """``two_pass`` does the first rows of its batch twice: the same result for that much more work of the kernel."""
    return Plant(
        file="suites/softmax/two_pass_softmax/arms.py",
        old="        return arm(lambda x, y, _: bound(x, y), cost.ALGORITHMS[name],",
        new=f"""        again = round({percent!r} / 100 * rows) if name == "two_pass" else 0
        more = numba_cpu.bind(name, again, n, threads) if again else None

        def run(x, y, _):
            bound(x, y)
            if more is not None:
                more(x[:again], y[:again])

        return arm(run, cost.ALGORITHMS[name],""",
        selector="two_pass_softmax:rows", arm="two_pass", verdict="slower",
    )


def wrong_constant() -> Plant:
    """Adam has half the epsilon it should, so that second moments that are coded as 0 weigh more."""
    return Plant(
        file="suites/quantization/blockwise_8bit_optimizers/arms.py", old="EPS = 1e-8", new="EPS = 5e-9",
        selector="blockwise_8bit_optimizers:update_error", arm="", verdict="worse",
    )


def compare(root: Path, *words: str) -> Result:
    """The outcome of one ``litmus ab``. Raises LitmusError where it was refused."""
    command = [sys.executable, "-m", "harness", "ab", *words, "--format", "json"]
    environment = {**os.environ, "LITMUS_ROOT": str(root), "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise LitmusError("litmus ab gave no outcome", value=done.stderr.strip().splitlines()[-1:],
                          next_step="run it by hand: litmus ab " + " ".join(words))
    found: Result = json.loads(done.stdout)
    return found


def changed(outcome: Result) -> list[str]:
    """What is said to have changed, one line each."""
    return [f"{item['label']}: {item['verdict']}" + (f" {item['change']:+.2%}" if item["change"] is not None else "")
            for item in outcome["comparisons"] if item["verdict"] in ("slower", "faster", "worse", "better")]


def equal(trials: int) -> int:
    """False alarms of ``litmus ab HEAD HEAD --all``."""
    numbers = said = families = canaries = undecided = 0
    for trial in range(trials):
        outcome = compare(CHECKOUT, "HEAD", "HEAD", "--all")
        decided = [item for item in outcome["comparisons"] if item["verdict"] != "incomparable"]
        wrong = changed(outcome)
        numbers, said = numbers + len(decided), said + len(wrong)
        families += any(item["gates"] and item["verdict"] in ("slower", "worse") for item in decided)
        canaries += outcome["canary_failed"]
        undecided += sum(item["verdict"] == "inconclusive" for item in decided)
        print(f"trial {trial + 1:2d}: {len(decided)} numbers, {len(wrong)} changes, exit {outcome['exit_code']}, "
              f"{outcome['seconds']:.0f} s {'; '.join(wrong)}", flush=True)
    print(f"changes said of equal code: {said} of {numbers} numbers ({said / max(1, numbers):.2%}, at most "
          f"{NUMBER_RATE:.0%}); families with a false alarm: {families} of {trials} (at most {FAMILY_RATE:.0%}); "
          f"canary failed: {canaries}; inconclusive: {undecided}")
    return int(not numbers or said > NUMBER_RATE * numbers or families > FAMILY_RATE * trials)


def planted(plant: Plant, trials: int, needed: float) -> int:
    """How often ``plant`` is noticed in a clone of this checkout's HEAD."""
    with tempfile.TemporaryDirectory(prefix="litmus-ab-") as name:
        clone = Path(name) / "clone"
        _git(CHECKOUT, "clone", "--quiet", "--shared", str(CHECKOUT), str(clone))
        path = clone / plant.file
        text = path.read_text(encoding="utf-8")
        if text.count(plant.old) != 1:
            raise LitmusError("the place to plant the change is not there once", where=plant.file, value=plant.old,
                              expected="the line as this script knows it", next_step="adjust the script")
        path.write_text(text.replace(plant.old, plant.new), encoding="utf-8")
        _git(clone, "-c", "user.name=ci", "-c", "user.email=ci@localhost", "commit", "--quiet", "--all", "-m", "Plant")
        found = [_notices(clone, plant, trial) for trial in range(trials)]
    count = sum(found)
    print(f"found in {count} of {trials} trials (at least {math.ceil(needed * trials)} are needed)")
    return int(count < needed * trials)


def _notices(clone: Path, plant: Plant, trial: int) -> bool:
    begin_s = time.monotonic()
    outcome = compare(clone, "HEAD~1", "HEAD", plant.selector)
    seconds = time.monotonic() - begin_s
    hits = [item for item in outcome["comparisons"]
            if item["verdict"] == plant.verdict and plant.arm in ("", item["arm"])]
    late = "" if seconds <= LIMIT_S else f", longer than {LIMIT_S:.0f} s"
    print(f"trial {trial + 1:2d}: {'found' if hits else 'missed'} in {seconds:.0f} s{late}, "
          f"exit {outcome['exit_code']}; {'; '.join(changed(outcome)) or 'no change said'}", flush=True)
    return bool(hits) and seconds <= LIMIT_S


def _git(place: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(place), *words], check=True, capture_output=True)


def needed_rate(percent: float) -> float:
    """What share of trials must notice a slowdown of ``percent``; none is asked for where it is below 3 %."""
    return max((rate for least, rate in NEEDED.items() if percent >= least), default=0.0)


def main(arguments: Sequence[str]) -> int:
    commands: dict[str, Callable[[list[float]], int]] = {
        "equal": lambda given: equal(int(given[0])),
        "slower": lambda given: planted(more_work(given[0]), int(given[1]), needed_rate(given[0])),
        "worse": lambda given: planted(wrong_constant(), int(given[0]), 1.0),
    }
    counts = {"equal": 1, "slower": 2, "worse": 1}
    try:
        name, numbers = arguments[0], [float(word) for word in arguments[1:]]
        if len(numbers) != counts[name] or min(numbers) <= 0:
            raise ValueError
    except (IndexError, KeyError, ValueError):
        print(__doc__)
        return 2
    try:
        return commands[name](numbers)
    except LitmusError as refusal:
        show_refusal(refusal)
        return refusal.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
