"""All pages can be found from the README."""

from __future__ import annotations

import re
from pathlib import Path

from support import module_map

ROOT = Path(__file__).parents[2]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SOURCES = ("charts", "decoder", "docs", "operator", "tests", "workloads")
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")


def test_every_page_can_be_found() -> None:
    """Links lead from the README to every page."""
    found, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in found or page.suffix != ".md" or not page.exists():
            continue
        found.add(page)
        waiting += [(page.parent / target).resolve() for target in LINK.findall(page.read_text(encoding="utf-8"))]

    assert set() == {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md")} - {
        page.relative_to(ROOT).as_posix() for page in found
    }


def test_the_list_of_modules_is_that_of_the_tree() -> None:
    """`docs/modules.md` is what `make modules` writes, and no module is without a first line."""
    written = (ROOT / "docs" / "modules.md").read_text(encoding="utf-8")

    assert module_map.page() == written, "run make modules"
    assert [] == re.findall(r"\| \|$", written, re.MULTILINE)


NAMED = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|md|yaml|toml|lua)|(?:[\w.-]+/)+)`")


def test_recipes_name_files_that_exist() -> None:
    """Each file and folder that CONTRIBUTING names is there, whole or as the end of a path."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = {path.relative_to(ROOT).as_posix() for folder in SOURCES for path in (ROOT / folder).rglob("*.*")}
    made = {".venv/", "build/dist/"}

    missing = [
        name
        for name in NAMED.findall(text)
        if name not in made and not (ROOT / name).exists() and not any(f"/{name}" in f"/{path}" for path in paths)
    ]

    assert len(NAMED.findall(text)) > 50
    assert [] == missing


def test_what_keeps_a_fault_from_coming_back_exists() -> None:
    """Each test that the page of faults names is in the file that it names."""
    text = (ROOT / "docs" / "faults-found.md").read_text(encoding="utf-8")
    sources = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in TESTS}
    missing, file = [], ""
    for match in re.finditer(r"((?:tests/)?[\w/]+\.py)|::(\w+)|\n", text):
        if match[1]:
            file = next((path for path in sources if path.endswith("/" + match[1].removeprefix("tests/"))), "")
            if not file and match[1].rpartition("/")[2].startswith("test_"):
                missing.append(match[1])
        elif match[2] and not re.search(rf"(?:def|class) {match[2]}\b", sources.get(file, "")):
            missing.append(f"{file}::{match[2]}")

    assert [] == missing
