"""Whether ``asv continuous`` finds a planted 1.5x slowdown (exit 1) and lets no change pass (exit 0).

In a temporary clone of HEAD it commits a change that changes nothing and then a slowdown of one kernel, and runs asv on
each. asv makes an environment with torch in it: some minutes and a gigabyte of disk. Prints what asv said and
ends with 1 where that was something else. ``ci/asv_trial.py FOLDER`` keeps clone and environment in FOLDER.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK = "svd_free_dct_projection__transform.time_call"
# More processes than usual: asv asks for p < 0.002, and a process can have a slow stretch from end to end. Its test
# takes samples of one process for independent, so on a machine where others work it may say anything.
ROUNDS = "rounds=4"
SLOWED = "reference/kernels/project/__init__.py"
# Half of the time that the call took, once more: 1.5x whatever the machine does.
SLOWDOWN = '''

def _slowed(work):
    import time

    def run(*words, **named):
        begin_ns = time.perf_counter_ns()
        result = work(*words, **named)
        end_ns = time.perf_counter_ns()
        while time.perf_counter_ns() < end_ns + (end_ns - begin_ns) // 2:
            pass
        return result

    return run


dct_project = _slowed(dct_project)
'''
LIMIT_S = 1800


def git(clone: Path, *words: str) -> None:
    who = ["-c", "user.name=trial", "-c", "user.email=trial@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(clone), *who, *words], check=True, stdout=subprocess.DEVNULL)


def plant(clone: Path) -> None:
    """HEAD~2 is the project, HEAD~1 differs in a document, HEAD is slower."""
    with (clone / "README.md").open("a", encoding="utf-8") as readme:
        readme.write("\n")
    git(clone, "commit", "-q", "-a", "-m", "Change nothing")
    with (clone / SLOWED).open("a", encoding="utf-8") as kernel:
        kernel.write(SLOWDOWN)
    git(clone, "commit", "-q", "-a", "-m", "Slow down a kernel")


def asv(clone: Path, *words: str) -> int:
    """asv's exit code; what it says goes to standard output."""
    return subprocess.run([sys.executable, "-m", "asv", *words], cwd=clone, check=False, timeout=LIMIT_S).returncode


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="asv-trial-") as temporary:
        clone = Path(sys.argv[1] if len(sys.argv) > 1 else temporary) / "clone"
        if not clone.exists():
            git(ROOT, "clone", "-q", str(ROOT), str(clone))
        git(clone, "fetch", "-q", str(ROOT), "HEAD")
        git(clone, "reset", "-q", "--hard", "FETCH_HEAD")
        plant(clone)
        asv(clone, "machine", "--yes")
        found = {}
        for what, base, head, expected in (("no change", "HEAD~2", "HEAD~1", 0), ("1.5x slower", "HEAD~1", "HEAD", 1)):
            begin = time.monotonic()
            code = asv(clone, "continuous", base, head, "--bench", BENCHMARK, "--attribute", ROUNDS)
            found[what] = (code, expected)
            print(f"{what}: asv continuous ended with {code}, expected {expected}, "
                  f"after {time.monotonic() - begin:.0f} s", flush=True)
    return 0 if all(code == expected for code, expected in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
