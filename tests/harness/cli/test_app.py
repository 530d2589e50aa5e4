import subprocess
import sys

import pytest

from harness.cli.app import show_refusal
from harness.errors import LitmusError

COMMANDS = ("ls", "show", "run", "verdicts", "report", "validate", "new", "tune", "doctor", "repro")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(litmus, command):
    code, out, _ = litmus(command, "--help")
    assert code == 0
    assert "Examples:" in out
    assert out.count(f"litmus {command}") >= 2


def test_the_exit_codes_are_in_the_help(litmus):
    out = litmus("--help")[1]
    for code in ("0 ", "2 ", "4 ", "5 ", "130"):
        assert f"\n    {code}" in out
    assert all(f"  {command} " in out for command in COMMANDS)


@pytest.mark.parametrize(
    "words", [("run", "--bogus"), ("bogus",), ("ls", "--json=3"), ("run", "--seeds", "many"), ("new",), ("show",)]
)
def test_a_wrong_command_line_ends_with_2_and_says_why(litmus, words):
    code, _, err = litmus(*words)
    assert code == 2
    assert "Error" in err and "Traceback" not in err


def test_python_m_harness_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "harness", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("litmus 0.")


def test_a_refusal_is_plain_text_where_there_is_no_terminal(capsys):
    show_refusal(
        LitmusError("no [such] thing", where="a/b.yaml", key="k[0]", value="x" * 300, expected="y", next_step="do z")
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "litmus: no [such] thing"
    assert "\x1b" not in err
    assert "  key       k[0]" in err and "x" * 300 in err and "  next      do z" in err


def test_a_refusal_is_red_on_a_terminal(monkeypatch):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    show_refusal(LitmusError("no such thing"))
    assert "\x1b[1;31mlitmus: no such thing" in sys.stderr.getvalue()
