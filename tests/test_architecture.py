"""The rules that hold the project together, checked on its files alone."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {"harness": ("reference", "suites", "tests"), "reference": ("harness", "suites", "tests")}
# A later room may import an earlier one, never the other way; rooms beside each other do not know each other.
ROOMS = [
    {"errors"},
    {"declare"},
    {"plan", "records"},
    {"judge"},
    {"run"},
    {"report", "adapters"},
    {"cli"},
    {"__main__"},
]
HEAVY = {"torch", "numba", "triton", "pandas", "pyarrow", "scipy", "sklearn", "plotly", "numpy", "bitsandbytes"}
LIGHT_ROOMS = ("declare", "plan", "cli")
# Names of folders that only one person's machine has; nothing in the project may depend on them.
MACHINE_PATH = re.compile(r"(?<![\w./~$}])/(?:home|root|Users|work|workspace|opt|mnt|srv|farm)/[\w.-]")
REGISTRY = re.compile(r"(?:--(?:extra-)?index-url|find-links|trusted-host)\s*[= ]\s*\S|file://", re.IGNORECASE)


def tracked_files():
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False)
    if done.returncode:  # an unpacked archive
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def python_files(package):
    return sorted(path for path in (ROOT / package).rglob("*.py"))


def imports(path):
    """(module, whether it is imported when the file is) of every import; relative ones resolved."""
    package = path.relative_to(ROOT).parent.parts
    tree = ast.parse(path.read_bytes())
    deferred = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _only_for_types(node)
        for inner in ast.walk(node)
        if inner is not node
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in deferred
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module, id(node) not in deferred
            for alias in node.names:
                yield f"{module}.{alias.name}", id(node) not in deferred


def _only_for_types(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("package", FORBIDDEN)
def test_the_layers_do_not_know_each_other(package):
    files = python_files(package)
    assert files
    crossed = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files
        for module, _ in imports(path)
        if module.split(".")[0] in FORBIDDEN[package]
    ]
    assert not crossed


def test_imports_inside_the_harness_run_one_way():
    level = {room: height for height, rooms in enumerate(ROOMS) for room in rooms}
    wrong = []
    for path in python_files("harness"):
        parts = path.relative_to(ROOT / "harness").parts
        here = parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for module, _ in imports(path):
            there = module.split(".")[1] if module.startswith("harness.") else None
            if there in level and there != here and level[there] >= level[here]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


@pytest.mark.parametrize("room", LIGHT_ROOMS)
def test_nothing_heavy_is_imported_to_list_or_to_plan(room):
    heavy = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in python_files(f"harness/{room}")
        for module, at_once in imports(path)
        if at_once and module.split(".")[0] in HEAVY
    ]
    assert not heavy


def test_every_folder_of_the_harness_is_a_room_with_a_place():
    known = set().union(*ROOMS)
    found = {path.name for path in (ROOT / "harness").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert found <= known


def test_library_code_does_not_print():
    printing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ("harness", "reference", "suites")
        for path in python_files(package)
        if "cli" not in path.parts
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing


def test_no_file_mentions_a_path_of_one_machine_or_a_registry():
    found = []
    for path in tracked_files():
        if path == Path(__file__):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # parquet and other binary files
        found += [
            f"{path.relative_to(ROOT)}:{number}: {match.group(0)}"
            for number, line in enumerate(text.splitlines(), 1)
            for match in (MACHINE_PATH.search(line), REGISTRY.search(line))
            if match
        ]
    assert not found


def test_the_pins_are_versions_and_nothing_else():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 50
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert "torch==2.13.0" in lines
    names = [line.split("==")[0] for line in lines]
    assert names == sorted(set(names))


def test_the_make_targets_are_there():
    text = (ROOT / "Makefile").read_text()
    for target in ("bench", "test", "lint", "report", "compare", "asv", "clean", "help", "readme-table", "venv"):
        assert re.search(rf"^{target}:", text, re.MULTILINE), target
    for variable in ("PROFILE", "SUITES", "DEVICE", "BUDGET", "OUT"):
        assert re.search(rf"^{variable}\s*\?=", text, re.MULTILINE), variable
