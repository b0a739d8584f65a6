"""Rules of this repository that no linter knows."""

from __future__ import annotations

import ast
import re
from collections import Counter

from support.repository import ROOT, tracked


def test_the_folder_operator_is_no_package() -> None:
    """`operator/__init__.py` would shadow the standard library's module."""
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_modules_stay_readable() -> None:
    """No Python module has more than 600 lines."""
    long = {str(path.relative_to(ROOT)) for path in tracked("*.py") if len(path.read_text().splitlines()) > 600}

    assert set() == long


ONE_THING = re.compile(r"\bOne (?:module|class|module and one class), since\b")
"""Begins the sentence that a long module or class needs in its docstring: why it is one thing."""


def test_long_modules_and_classes_say_why_they_are_one_thing() -> None:
    """A module of more than 400 lines, or a class of more than 250, is split, or says what would be lost by a split."""
    unexplained = []
    for path in tracked("operator/*.py", "workloads/*.py"):
        text, name = path.read_text(), str(path.relative_to(ROOT))
        module = ast.parse(text)
        if len(text.splitlines()) > 400 and not ONE_THING.search(ast.get_docstring(module) or ""):
            unexplained.append(name)
        for one in ast.walk(module):
            is_long = isinstance(one, ast.ClassDef) and (one.end_lineno or 0) - one.lineno >= 250
            if is_long and not ONE_THING.search(ast.get_docstring(one) or ""):
                unexplained.append(f"{name}: {one.name}")

    assert [] == unexplained


def described(one: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Names that the sections `Args` and, of a class, `Attributes` of a docstring explain."""
    sections = "Args|Attributes" if isinstance(one, ast.ClassDef) else "Args"
    found = re.findall(rf"^(?:{sections}):\n((?:    .*\n?|\n)+)", ast.get_docstring(one) or "", re.MULTILINE)
    entries = re.findall(r"^    ((?:\w+, )*\w+):", "".join(found), re.MULTILINE)
    return {name for entry in entries for name in entry.split(", ")}


def owned(one: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Names of parameters and, of a class, of fields, methods and whatever is set on `self`."""
    names = set()
    for part in ast.walk(one):
        if isinstance(part, ast.arg):
            names.add(part.arg)
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            names.add(part.target.id)
        elif isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(part.name)
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self":
            names.add(part.attr)
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            names.add(part.id)
    return names


def test_docstrings_explain_names_that_are_there() -> None:
    """After a rename the explanation of the old name would be one of nothing."""
    gone = [
        f"{path.relative_to(ROOT)}: {one.name}: {name}"
        for path in tracked("operator/*.py", "workloads/*.py")
        for one in ast.walk(ast.parse(path.read_text()))
        if isinstance(one, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for name in described(one) - owned(one)
    ]

    assert [] == gone


def test_folders_stay_small() -> None:
    """A folder of the product has at most twelve modules: beyond that its purpose is not clear at a glance."""
    modules = [path for path in tracked("operator/*.py", "workloads/*.py") if path.name != "__init__.py"]

    assert [] == [name for name, count in Counter(str(path.parent) for path in modules).items() if count > 12]


def test_importing_a_package_imports_nothing_else() -> None:
    """An `__init__` is a docstring: `policy` must not bring the roles along, and the plugin ships single files."""
    inits = [path for path in tracked("operator/*.py", "workloads/*.py") if path.name == "__init__.py"]
    version = ROOT / "workloads" / "sheetanchor" / "__init__.py"  # `sheetanchor.__version__` is asked for everywhere

    assert version in inits
    assert [] == [str(path) for path in inits if path != version and len(ast.parse(path.read_text()).body) > 1]


def test_mocks_are_rare() -> None:
    """Tests use real parts: fewer than two mocks per thousand lines."""
    lines = [line for path in tracked("tests/*.py") for line in path.read_text().splitlines()]
    mocks = [line for line in lines if re.search(r"(Magic|Async)?Mock\(|mock\.patch|mocker\.", line)]

    assert len(mocks) * 1000 < 2 * len(lines)


def test_every_make_target_is_explained() -> None:
    """`make help` lists each target that people call."""
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.M)
    assert phony is not None

    assert set() == {name for name in phony[1].split() if not re.search(rf"^{name}:.*## ", text, re.M)}


def test_documents_link_to_files_that_exist() -> None:
    """Every relative link in a Markdown file leads somewhere."""
    broken = []
    for page in tracked("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")

    assert [] == broken


CUT = re.compile(r"(?:error|message|msg|reason|words|said)\b\S*(?: or \S+)?\[:(?:\d{2,}|[A-Z_]*MAX)\]")


def test_no_message_is_cut_at_its_end_only() -> None:
    """Text of a library, a server or a user is cut by `errors.shortened`: the decisive part may be the last."""
    sources = [path for path in tracked("*.py") if "tests" not in path.relative_to(ROOT).parts]

    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sources
        for line in path.read_text(encoding="utf-8").splitlines()
        if CUT.search(line)
    ]

    assert CUT.search("' '.join(str(error).split())[:200]")
    assert CUT.search('str(websocket.get("message") or "none")[:200]')
    assert [] == found
