"""The contract type that import-linter has not: what a package may import, all else being refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def contracts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("import_contracts", ROOT / ".ci" / "import_contracts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def found(contracts: ModuleType, *imports: tuple[str, str], **options: Any) -> list[str]:
    """Judge `sheetanchor_operator.api`, which may import itself and `sheetanchor.policy`."""
    graph = grimp.ImportGraph()
    for name in ("sheetanchor", "sheetanchor.policy", "sheetanchor_operator", "sheetanchor_operator.api"):
        graph.add_module(name)
    for importer, imported in imports:
        outside = imported.partition(".")[0] not in ("sheetanchor", "sheetanchor_operator")
        graph.add_module(imported, is_squashed=outside)
        graph.add_import(importer=importer, imported=imported, line_number=7, line_contents=f"import {imported}")
    options = {
        "source_modules": ["sheetanchor_operator.api"],
        "allowed_modules": ["sheetanchor_operator.api", "sheetanchor.policy", "sheetanchor", "pydantic"],
        **options,
    }
    contract = contracts.Allowlist(name="a test", session_options={}, contract_options=options)
    check = contract.check(graph, verbose=False)
    assert check.kept == (not check.metadata["found"])
    return list(check.metadata["found"])


API = "sheetanchor_operator.api.pipeline"


@pytest.mark.parametrize(
    "imported",
    [
        "sheetanchor.policy",
        "sheetanchor.policy.gap_rules",
        "sheetanchor_operator.api.fields",
        "sheetanchor",
        "pydantic",
        "re",
    ],
)
def test_what_is_listed_may_be_imported(imported: str, contracts: ModuleType) -> None:
    """A name stands for itself and what is in it; the standard library needs no name."""
    assert [] == found(contracts, (API, imported))


@pytest.mark.parametrize(
    "imported",
    [
        "sheetanchor.store",
        "sheetanchor.policy_of_others",
        "sheetanchor.not_thought_of",
        "sheetanchor_operator.kube",
        "httpx",
    ],
)
def test_what_is_not_listed_may_not(imported: str, contracts: ModuleType) -> None:
    """An import that no contract lists is refused, in our packages and in others'; the root stands for itself only."""
    assert [f"{API} imports {imported} (line 7)"] == found(contracts, (API, imported))


def test_others_may_import_what_they_like(contracts: ModuleType) -> None:
    """The contract is about its source modules, and about what they import themselves."""
    assert [] == found(contracts, ("sheetanchor.policy.gap_rules", "httpx"), (API, "sheetanchor.policy.gap_rules"))


@pytest.mark.parametrize("imported", ["asyncio", "socket", "subprocess", "http"])
def test_a_pure_package_cannot_wait_or_connect(imported: str, contracts: ModuleType) -> None:
    """Of the standard library a decision has no use for what waits, connects or starts something."""
    assert [] == found(contracts, (API, imported))
    assert [f"{API} imports {imported} (line 7)"] == found(contracts, (API, imported), pure="true")


def test_an_exception_is_one_import(contracts: ModuleType) -> None:
    """An exception excuses the import that it names and no other."""
    excused = {"ignore_imports": [f"{API} -> sheetanchor.store"]}
    other = "sheetanchor_operator.api.fields"

    assert [] == found(contracts, (API, "sheetanchor.store"), **excused)
    assert [f"{other} imports sheetanchor.store (line 7)"] == found(
        contracts, (API, "sheetanchor.store"), (other, "sheetanchor.store"), **excused
    )
