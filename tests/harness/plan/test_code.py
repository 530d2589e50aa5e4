import pytest

from harness.plan.code import code_files, code_hash


def edit(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def hash_after(root):
    """The suite's hash after an edit."""
    folder = root / "suites" / "alpha" / "one"

    def measure(name=None, text=None):
        from harness.plan.code import _normal

        if name is not None:
            edit(root, name, text)
        _normal.cache_clear()
        return code_hash(root, folder)

    return measure


def test_the_files_are_the_suites_and_what_they_import_step_by_step(root):
    names = {str(path.relative_to(root)) for path in code_files(root, root / "suites" / "alpha" / "one")}
    assert names == {
        "suites/alpha/one/suite.py",
        "reference/__init__.py",
        "reference/methods/__init__.py",
        "reference/methods/alpha/__init__.py",
        "reference/methods/alpha/one.py",
        "reference/shared.py",
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "suites/alpha/one/suite.py",
            "# why\nfrom reference.methods.alpha.one import method\n\n\nVALUE = method( 2 )  # here\n",
        ),
        ("reference/shared.py", "# a comment\ndef helper(x):\n\n    return (x * 2)\n"),
        ("reference/unrelated.py", "VALUE = 2\n"),
        ("suites/alpha/one/notes.txt", "not code"),
    ],
)
def test_comments_layout_and_other_files_leave_the_hash_alone(hash_after, name, text):
    before = hash_after()
    assert hash_after(name, text) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("suites/alpha/one/suite.py", "from reference.methods.alpha.one import method\n\nVALUE = method(3)\n"),
        (
            "reference/methods/alpha/one.py",
            "from reference.shared import helper\n\n\ndef method(x):\n    return helper(x) + 2\n",
        ),
        ("reference/shared.py", "def helper(x):\n    return x * 3\n"),
        ("suites/alpha/one/more.py", "VALUE = 1\n"),
        ("reference/__init__.py", "VALUE = 1\n"),
    ],
)
def test_code_that_can_change_numbers_changes_the_hash(hash_after, name, text):
    before = hash_after()
    assert hash_after(name, text) != before


def test_relative_imports_kernels_and_cycles_are_followed(root, hash_after):
    edit(
        root,
        "reference/methods/alpha/one.py",
        "from . import two\nfrom .two import other\n\n\ndef method(x):\n    return other(x)\n",
    )
    edit(
        root, "reference/methods/alpha/two.py", "import reference.methods.alpha.one\n\n\ndef other(x):\n    return x\n"
    )
    before = hash_after()
    assert hash_after("reference/methods/alpha/kernel.cu", "__global__ void k() {}") != before
    after_kernel = hash_after()
    assert (
        hash_after(
            "reference/methods/alpha/two.py", "import reference.methods.alpha.one\n\n\ndef other(x):\n    return -x\n"
        )
        != after_kernel
    )


def test_a_file_that_does_not_parse_still_has_a_hash(hash_after):
    before = hash_after()
    assert hash_after("suites/alpha/one/suite.py", "def broken(:\n") != before
