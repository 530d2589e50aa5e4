"""ci/venv with a stand-in for Python that notes what it is asked to do: what it installs, when, in which order."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = """\
#!/bin/bash
case "$1 $2" in
  "-m venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp version .venv/bin/version
    echo "venv" >>log;;
  "-m pip") shift 2; echo "pip $*" >>log
    [ ! -e fail ] || exit 1
    case "$*" in
      *"[peers]"*) [ ! -e no-peers ] || exit 1;;
      *"-e"*) touch .venv/bin/litmus; chmod +x .venv/bin/litmus;;
    esac;;
  "-c "*hashlib*) sha256sum | cut -d' ' -f1;;
  "-c "*triton*) [ -e has-triton ];;
  "-c "*python_version*) echo "CPython $(cat "$(dirname "$0")/version")";;
  "-c "*version_info*) exit "$(cat too-old 2>/dev/null || echo 0)";;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "ci").mkdir()
    shutil.copy(ROOT / "ci" / "venv", tmp_path / "ci" / "venv")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("numpy==2.4.6\ntorch==2.13.0\n")
    (tmp_path / "version").write_text("3.11.7\n")
    stand_in = tmp_path / "stand-in"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    return tmp_path


def setup(checkout):
    (checkout / "log").write_text("")
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(checkout / "stand-in")}
    done = subprocess.run(
        [checkout / "ci" / "venv"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done, (checkout / "log").read_text().splitlines()


def test_torch_is_installed_first_and_everything_is_pinned(checkout):
    done, log = setup(checkout)
    assert done.returncode == 0, done.stderr
    installs = [line for line in log if line.startswith("pip")]
    assert log[0] == "venv"
    assert installs[0].endswith("-c constraints.txt torch==2.13.0")
    assert "-e .[dev,asv,dask,docker]" in installs[1] and "-e .[peers]" in installs[2]
    assert "triton==" in installs[3] and installs[4].endswith("nvidia-ml-py")
    assert all("-c constraints.txt" in line for line in installs)
    assert (checkout / ".venv/.stamp").read_text().strip()


def test_a_current_environment_is_left_alone(checkout):
    setup(checkout)
    done, log = setup(checkout)
    assert (done.returncode, log) == (0, [])


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_installs_again_into_the_same_environment(checkout, name):
    setup(checkout)
    (checkout / name).write_text((checkout / name).read_text() + "# more\n")
    _, log = setup(checkout)
    assert len(log) == 5 and "venv" not in log


def test_another_python_starts_afresh(checkout):
    setup(checkout)
    (checkout / "version").write_text("3.12.1\n")
    _, log = setup(checkout)
    assert log[0] == "venv" and len(log) == 6


def test_an_environment_of_an_older_state_is_brought_up_to_date(checkout):
    setup(checkout)
    (checkout / ".venv/.stamp").unlink()
    (checkout / ".venv/bin/litmus").unlink()
    done, log = setup(checkout)
    assert done.returncode == 0 and len(log) == 5
    assert (checkout / ".venv/bin/litmus").exists()


def test_a_broken_environment_is_made_anew(checkout):
    setup(checkout)
    (checkout / ".venv/bin/python").write_text("#!/nowhere\n")
    (checkout / ".venv/.stamp").write_text("old\n")
    done, log = setup(checkout)
    assert done.returncode == 0 and log[0] == "venv"


def test_a_failed_install_leaves_no_stamp(checkout):
    (checkout / "fail").touch()
    done, _ = setup(checkout)
    assert done.returncode != 0
    assert not (checkout / ".venv/.stamp").exists()
    (checkout / "fail").unlink()
    assert setup(checkout)[0].returncode == 0


def test_missing_peers_are_said_and_stop_nothing(checkout):
    (checkout / "no-peers").touch()
    done, _ = setup(checkout)
    assert done.returncode == 0
    assert "their arms will be recorded as skipped" in done.stderr
    assert (checkout / ".venv/.stamp").exists()


def test_a_python_that_is_too_old_is_refused_by_name(checkout):
    (checkout / "too-old").write_text("1")
    done, log = setup(checkout)
    assert done.returncode != 0
    assert "is not a Python >= 3.11" in done.stderr
    assert log == []


def test_the_triton_that_torch_brought_stays(checkout):
    (checkout / "has-triton").touch()
    done, log = setup(checkout)
    assert done.returncode == 0, done.stderr
    assert not [line for line in log if "triton" in line]
