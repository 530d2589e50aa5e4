"""Compiled kernels come from the disk without the compiler, and still compile what is new."""

import subprocess
import sys

import pytest

SOURCE = """
import numpy as np
from numba import prange
from reference.kernels.jit import kernel

@kernel(fastmath={"contract"})
def scaled(x, factor):
    out = np.empty_like(x)
    for i in range(x.size):
        out[i] = x[i] * factor
    return out

@kernel(parallel=True)
def total(x):
    found = 0.0
    for i in prange(x.size):
        found += x[i]
    return found

@kernel()
def refuse(x):
    if x < 0:
        raise ValueError("negative")
    return x
"""
SCRIPT = """
import sys
import numpy as np
import kernels

x = np.arange(5.0)
assert kernels.scaled(x, 2.0).tolist() == [0, 2, 4, 6, 8]
assert kernels.total(x) == 10.0
try:
    kernels.refuse(-1)
except ValueError as error:
    assert str(error) == "negative"
else:
    raise AssertionError("it did not raise")
print("compiler" if "numba.np.arraymath" in sys.modules else "no compiler")
{more}
"""
# A type that the first process never asked for.
NEW_TYPE = "assert kernels.scaled(x.astype(np.float32), np.float32(3)).tolist() == [0, 3, 6, 9, 12]"


@pytest.fixture
def project(tmp_path):
    (tmp_path / "kernels.py").write_text(SOURCE)
    return tmp_path


def run(project, root, more=""):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(more=more)], cwd=project, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": f"{project}:{root}", "PATH": "/usr/bin:/bin", "NUMBA_CACHE_DIR": str(project / "cache")},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[0]


def test_a_second_process_starts_without_the_compiler(project, request):
    root = request.config.rootpath
    assert run(project, root) == "compiler"
    assert run(project, root) == "no compiler"


def test_a_new_type_is_still_compiled(project, request):
    root = request.config.rootpath
    run(project, root)
    assert run(project, root, NEW_TYPE) == "no compiler"


def test_changed_code_is_compiled_anew(project, request):
    root = request.config.rootpath
    run(project, root)
    changed = SOURCE.replace("x[i] * factor", "factor * x[i]")
    (project / "kernels.py").write_text(changed + "\n# another size\n")
    assert run(project, root) == "compiler"


HELPER = "import numba\n\n@numba.njit\ndef factor():\n    return {}\n"
CALLER = """
from pathlib import Path
import helper
from reference.kernels.jit import kernel

@kernel(sources=[Path(helper.__file__)])
def twice(x):
    return helper.factor() * x
"""


def test_a_change_in_a_named_source_is_compiled_anew(tmp_path, request):
    root = request.config.rootpath
    (tmp_path / "caller.py").write_text(CALLER)
    environment = {"PYTHONPATH": f"{tmp_path}:{root}", "PATH": "/usr/bin:/bin",
                   "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    for factor in ("2", "10"):
        (tmp_path / "helper.py").write_text(HELPER.format(factor))
        done = subprocess.run([sys.executable, "-c", "import caller; print(caller.twice(3))"], cwd=tmp_path,
                              capture_output=True, text=True, check=True, env=environment)
        assert done.stdout == f"{3 * int(factor)}\n"
