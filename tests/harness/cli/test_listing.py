import json
import subprocess
import sys

from harness.cli.skeleton import skeleton


def test_ls_names_suites_and_counts_verdicts(litmus, stored_run):
    stored_run("old", "refuted", started_at=1.0)
    stored_run("new", "supported", started_at=2.0)
    code, out, _ = litmus("ls")
    assert code == 0
    assert "demo/pairwise" in out and "1 supported, 1 not run" in out


def test_ls_json_has_the_newest_verdict_of_each_claim_or_null(litmus, project, stored_run):
    expected = {"suite": "demo/pairwise", "family": "demo", "title": "Replace with the title of the paper"}
    assert json.loads(litmus("ls", "--json")[1]) == [
        {**expected, "claims": [{"id": "lower_error", "verdict": None}, {"id": "no_slower", "verdict": None}]}
    ]
    stored_run("old", "refuted", started_at=1.0)
    stored_run("new", "supported", started_at=2.0)
    assert json.loads(litmus("ls", "--json")[1])[0]["claims"][0] == {"id": "lower_error", "verdict": "supported"}
    assert json.loads(litmus("ls", "--json", "--run", "old")[1])[0]["claims"][0]["verdict"] == "refuted"


def test_ls_takes_one_family(litmus, project):
    assert "demo/pairwise" in litmus("ls", "--family", "demo")[1]
    code, _, err = litmus("ls", "--family", "dem")
    assert code == 2 and "'demo'" in err and "--family" in err


def test_a_broken_card_is_explained_and_hides_no_other(litmus, project):
    for path, text in skeleton("demo", "another").items():
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text(text)
    (project / "suites/demo/pairwise/card.yaml").write_text("version: [")
    code, out, err = litmus("ls", "--json")
    assert code == 2
    assert [row["suite"] for row in json.loads(out)] == ["demo/another"]
    assert "pairwise/card.yaml" in err and "Traceback" not in err


def test_listing_imports_no_heavy_library(project):
    code = (
        "import sys; sys.argv = ['litmus', 'ls', '--json']\n"
        "from harness.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'pandas', 'numba', 'scipy', 'pyarrow', 'plotly', 'sklearn', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_show_tells_claims_rules_and_sizes(litmus, stored_run):
    stored_run("new", "supported")
    code, out, _ = litmus("show", "pairwise")
    assert code == 0
    for text in (
        "supported lower_error",
        "supported if < 0.25, refuted if > 0.5",
        "smoke 1, small 16, full 16",
        "not run no_slower",
    ):
        assert text in out


def test_show_suggests_near_names(litmus, project):
    code, _, err = litmus("show", "pairwse")
    assert code == 2 and "did you mean 'pairwise'" in err and "litmus ls" in err


def test_verdicts_json_tells_what_decided(litmus, stored_run):
    stored_run("new", "refuted")
    code, out, _ = litmus("verdicts", "pairwise", "--json")
    (suite,) = json.loads(out)
    claim = suite["claims"][0]
    assert code == 0
    assert (claim["id"], claim["verdict"], claim["reason"], claim["note"]) == (
        "lower_error",
        "refuted",
        "the whole interval",
        "a note",
    )
    assert (claim["estimate"], claim["interval"], claim["n"], claim["level"]) == (0.125, [0.1, 0.15], 8, 0.95)
    assert claim["thresholds"] == {"supported_if": "< 0.25", "refuted_if": "> 0.5"}
    assert claim["cells"] == ["00cc"], "of the part that was refuted, not of the supported one"
    assert [part["verdict"] for part in claim["parts"]] == ["supported", "refuted"]
    assert claim["parts"][1]["point"] == {"n": 65536}
    not_run = suite["claims"][1]
    assert (not_run["verdict"], not_run["estimate"], not_run["interval"], not_run["cells"]) == (
        "not run",
        None,
        None,
        [],
    )


def test_verdicts_without_a_run_are_null_and_say_how_to_get_them(litmus, project):
    assert json.loads(litmus("verdicts", "--json")[1])[0]["claims"][0]["verdict"] is None
    assert "2 claims have no stored verdict" in litmus("verdicts")[1]


def test_verdicts_as_a_table(litmus, stored_run):
    stored_run("new", "supported")
    out = litmus("verdicts")[1]
    assert "0.1 .. 0.15" in out and "< 0.25" in out and "1 supported, 1 not run" in out


def test_an_unknown_run_is_explained(litmus, stored_run):
    stored_run("20260101-small", "supported")
    for command in ("verdicts", "report", "ls"):
        code, _, err = litmus(command, "--run", "20260101-smal")
        assert code == 2 and "20260101-small" in err
