"""The layout of the tree: small folders, one meaning for each public name, configuration that names existing modules."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("interp", "distill", "analyses", "figures")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = {contract["id"]: contract for contract in CONFIG["tool"]["importlinter"]["contracts"]}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in MODULES}


def public_names(path: Path) -> list[str]:
    """Functions, classes and constants that a module defines at its top level, without an underscore."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.append(name)
            case ast.Assign(targets=targets):
                found += [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.append(name)
    return [name for name in found if not name.startswith("_")]


def test_a_folder_has_at_most_thirteen_modules() -> None:
    sizes = defaultdict(list)
    for path in MODULES:
        if not path.name.startswith("__"):
            sizes[path.parent].append(path.name)
    assert {str(folder.relative_to(ROOT)): names for folder, names in sizes.items() if len(names) > 13} == {}


def test_a_public_name_is_defined_in_one_module() -> None:
    places = defaultdict(set)
    for path in MODULES:
        for name in public_names(path):
            places[name].add(name_of(path))
    assert {name: sorted(modules) for name, modules in places.items() if len(modules) > 1 and name != "main"} == {}


def test_no_private_name_is_imported_from_another_module() -> None:
    taken = [
        f"{name_of(path)}: from {node.module} import {alias.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert taken == []


def test_a_command_is_a_package_with_a_main() -> None:
    commands = sorted(path.parent.name for path in (ROOT / "analyses").glob("*/__main__.py"))
    assert commands == ["examples", "grades", "heads", "shifts"]


def test_tests_mirror_the_packages() -> None:
    """tests/PACKAGE/FOLDER/test_X.py tests PACKAGE/FOLDER/X.py, or a part of it: test_page_browser.py tests page.py."""
    strays = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        package = path.relative_to(ROOT / "tests").parts[0]
        if package not in PACKAGES:
            continue
        folder = ROOT / path.relative_to(ROOT / "tests").parent
        stem = path.stem.removeprefix("test_")
        modules = {module.stem.strip("_") for module in folder.glob("*.py")}
        if not any(stem == module or stem.startswith(f"{module}_") for module in modules):
            strays.append(str(path.relative_to(ROOT)))
    assert strays == []
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_every_module_of_a_contract_exists() -> None:
    for contract in CONTRACTS.values():
        for module in [*contract.get("source_modules", []), *contract.get("ancestors", [])]:
            assert module in NAMES, f"{contract['id']}: {module}"
        ours = [module for module in contract.get("forbidden_modules", []) if module.split(".")[0] in PACKAGES]
        assert set(ours) <= NAMES, contract["id"]


def test_no_contract_has_an_exception() -> None:
    assert [contract for contract in CONTRACTS if any("ignore" in key for key in CONTRACTS[contract])] == []


def test_figures_may_import_only_the_tables_of_interp() -> None:
    rooms = {f"interp.{path.stem}" for path in (ROOT / "interp").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    stubs = {"interp.__init__", "interp.table"}  # interp.table only raises: it names where the module moved
    assert set(CONTRACTS["figures-read-tables"]["forbidden_modules"]) == rooms - {"interp.tables"} - stubs


@pytest.mark.parametrize("pattern", ["**/statistics.py", "interp/tables", "interp/inference.py", "figures"])
def test_the_contract_without_torch_names_every_module_that_it_means(pattern: str) -> None:
    """Tables, statistics and figures run where torch is not installed."""
    named = CONTRACTS["without-torch"]["source_modules"]
    meant = {name_of(path / "__init__.py" if path.is_dir() else path) for path in ROOT.glob(pattern) if ".venv" not in path.parts}
    meant = {name for name in meant if name.split(".")[0] in PACKAGES} - {"interp.attention.statistics"}  # statistics of tensors
    assert meant
    assert {name for name in meant if not any(name == module or name.startswith(f"{module}.") for module in named)} == set()


READ_BY_HELP = re.compile(r"(\w+\.)*(options|catalog|divergences|grading|conditions|config|strategies|settings|__main__)")
TENSOR_CATALOGS = {"interp.measures.catalog"}
"""Catalogs whose entries are made of tensors: read once a model is to be opened."""


def test_what_help_and_errors_read_imports_no_torch() -> None:
    """Options, catalogs and the commands themselves import torch only inside the functions that need it."""
    modules = sorted(name for name in NAMES if READ_BY_HELP.fullmatch(name) and name not in TENSOR_CATALOGS)
    assert {"distill.__main__", "distill.teachers.catalog", "distill.objectives.divergences", "analyses.heads.options"} <= set(modules)
    code = (
        f"import importlib, sys\nfor name in {modules}:\n    importlib.import_module(name)\n    assert 'torch' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_strictly_typed_path_exists() -> None:
    missing = [path for path in CONFIG["tool"]["pyright"]["strict"] if not (ROOT / path).exists()]
    assert missing == []
    assert [path for path in CONFIG["tool"]["pyright"]["include"] if not (ROOT / path).is_dir()] == []


def test_the_shapes_of_every_attention_pass_are_executed() -> None:
    """tests/conftest.py names the modules whose jaxtyping shapes are checked at run time."""
    text = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    (listed,) = re.findall(r"install_import_hook\(\s*\[(.*?)\]", text, re.DOTALL)
    hooked = set(re.findall(r'"([\w.]+)"', listed))
    assert hooked <= NAMES
    assert {"interp.attention.statistics", "interp.attention.blocked", "interp.attention.flash", "interp.attention.triton"} <= hooked


def test_the_map_of_the_tree_names_every_folder_and_no_other() -> None:
    """docs/layout.md: one line a folder."""
    text = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `((?:interp|distill|analyses|figures)/[\w/]*)` \|", text, re.MULTILINE))
    folders = {f"{path.parent.relative_to(ROOT)}/" for path in MODULES if path.name == "__init__.py"}
    assert listed == folders


def test_every_module_says_what_it_is() -> None:
    for path in MODULES:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring, path
        assert "TODO" not in docstring, path
