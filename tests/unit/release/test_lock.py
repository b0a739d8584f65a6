"""The lock of dependencies: complete, current, by hash, and each package in the extra of the role that needs it."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path
from types import ModuleType

import grimp
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = sorted(PROJECT["project"]["optional-dependencies"])
TEXT = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("locked", ROOT / ".ci" / "locked.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["locked"] = module
    spec.loader.exec_module(module)
    return module


locked = _module()
ENTRIES = {one.name: one for one in locked.entries(TEXT)}
"""What the lock has, by name."""


def asked_for(extra: str) -> list[Requirement]:
    """What pyproject.toml asks for by an extra, the needs of every role among it."""
    return [
        *map(Requirement, PROJECT["project"]["dependencies"]),
        *map(Requirement, locked.requirements(PROJECT["project"], extra)),
    ]


def version_of(name: str) -> str:
    found: str = ENTRIES[locked.normalised(name)].requirement.split(" ;")[0].partition("==")[2]
    return found


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_is_locked_within_its_bounds(extra: str) -> None:
    """Whatever an extra asks for is in the lock, at a version that it allows: else `make lock` was forgotten."""
    wrong = [str(one) for one in asked_for(extra) if version_of(one.name) not in one.specifier]

    assert [] == wrong


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - {"lock"}))
def test_what_packages_require_is_locked_with_them(extra: str) -> None:
    """What the installed packages of an extra require is in its part of the lock, so that pip misses nothing."""
    chosen = {one.name for one in locked.locked(extra)}
    needed: set[tuple[str, str]] = set()
    waiting = [(locked.normalised(one.name), frozenset({"", *one.extras})) for one in asked_for(extra)]
    while waiting:
        name, extras = waiting.pop()
        for text in requires(name) or ():
            one = Requirement(text)
            wanted = one.marker is None or any(one.marker.evaluate({"extra": each}) for each in extras)
            if wanted and (name, text) not in needed:
                needed.add((name, text))
                waiting.append((locked.normalised(one.name), frozenset({"", *one.extras})))

    missing = {(name, text) for name, text in needed if locked.normalised(Requirement(text).name) not in chosen}
    assert set() == missing


def test_nothing_is_locked_that_no_extra_needs() -> None:
    """A package that was dropped from pyproject.toml leaves the lock too, with all that it brought along."""
    assert set(ENTRIES) == {one.name for extra in EXTRAS for one in locked.locked(extra)}


def test_the_tests_run_on_what_is_locked() -> None:
    """What is installed here is what the lock says, so what passes here is what others get."""
    other = {one.name: version(one.name) for one in locked.locked("dev") if " ; " not in one.requirement}

    assert {name: version_of(name) for name in other} == other


def test_the_lock_names_no_registry() -> None:
    """A mirror serves as well as the public registry: a file is known by its hash, not by its place."""
    assert [] == re.findall(r"(?m)^.*(?:://|--index|--find-links|--trusted).*$", TEXT)


@pytest.mark.parametrize(
    ("block", "word"),
    [
        ("yarl==1.2", "hashes"),
        ("yarl==1.2 \\\n    # via aiohttp", "hashes"),
        (f"yarl==1.2 \\\n    --hash=sha256:{'0' * 64}", "requires it"),
        (f"yarl>=1.2 \\\n    --hash=sha256:{'0' * 64}\n    # via aiohttp", "yarl>=1.2"),
        (f"yarl \\\n    --hash=sha256:{'0' * 64}\n    # via aiohttp", "yarl"),
        (f"yarl==1.2 \\\n    --hash=sha256:{'0' * 63}\n    # via aiohttp", "hashes"),
        (f"-e . \\\n    --hash=sha256:{'0' * 64}\n    # via aiohttp", "-e ."),
        (f"yarl @ file:///x.whl \\\n    --hash=sha256:{'0' * 64}\n    # via aiohttp", "yarl @"),
    ],
)
def test_an_entry_without_version_or_hash_is_refused(block: str, word: str) -> None:
    """What pip could take another file for does not pass as locked."""
    with pytest.raises(ValueError, match=re.escape(word)):
        locked.entries(TEXT + block + "\n")


def test_a_lock_that_lacks_something_is_refused() -> None:
    """An extra that was added without `make lock` fails at set-up, by name, before anything is fetched."""
    with pytest.raises(ValueError, match=r"lacks left-pad; run `make lock`"):
        locked.selected(list(ENTRIES.values()), {"yarl", "left-pad"})


def test_the_build_is_locked_too() -> None:
    """What builds the wheel comes out of the lock, whatever the frontend would fetch by itself."""
    asked = {Requirement(one).name for one in PROJECT["build-system"]["requires"]}
    chosen = {one.name for one in locked.locked("build", base=False)}

    # scikit-build-core asks for these two where the machine has none.
    assert asked | {"cmake", "ninja", "pip"} <= chosen


def test_pip_installs_nothing_unseen() -> None:
    """Every call of pip compares hashes, or installs our own wheel alone."""
    scripts = [ROOT / ".ci" / "environment", ROOT / "workloads" / "image.sh", ROOT / "workloads" / "Containerfile"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in scripts).replace("\\\n", " ")
    call = re.compile(r'("\$\{pip\[@\]\}"|-m pip|\$pip) ')
    lines = [" ".join(line.split()) for line in text.splitlines() if call.search(line)]
    calls = [line for line in lines if not line.startswith(("#", "pip=("))]
    safe = ("with_hashes[@]", "--require-hashes", "--no-deps --no-build-isolation", "--no-index --no-compile --no-deps")

    assert len(calls) >= 6
    assert [] == [one for one in calls if not any(word in one for word in safe)]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("redis==5.2.1", "rediss:// does not compare host names"),
        ("aiohttp==3.11.18", "no middleware for clients, so redirects of a WebSocket cannot be refused"),
        ("aiohttp==3.13.2", "a small answer may unpack into any size"),
    ],
)
def test_lower_bounds_leave_out_what_is_known_to_be_bad(bad: str, why: str) -> None:
    """Installing without the lock gives no version that breaks what the documents promise."""
    wrong = Requirement(bad)
    (pinned,) = wrong.specifier

    bounds = [one for extra in EXTRAS for one in asked_for(extra) if one.name == wrong.name]
    assert bounds
    assert [] == [str(one) for one in bounds if pinned.version in one.specifier], why


ROLES = {
    "ingest": "sheetanchor.ingest",
    "process": "sheetanchor.process",
    "reanchor": "sheetanchor.reanchor",
    "exchange": "sheetanchor.simulator",
    "infer": "sheetanchor.infer",
    "train": "sheetanchor.ml.train",
    "local": "sheetanchor.local",
    "operator": "sheetanchor_operator.__main__",
    "kubectl": "sheetanchor_operator.plugin",
}
GRAPH = grimp.build_graph("sheetanchor", "sheetanchor_operator", include_external_packages=True, cache_dir=None)
OWNERS = packages_distributions()


@pytest.mark.parametrize("role", ROLES)
def test_a_package_is_in_the_extra_of_the_role_that_imports_it(role: str) -> None:
    """Whatever a role's modules import, through whichever of ours, its extra asks for by name."""
    entry = ROLES[role]
    inside = {one for one in GRAPH.modules if one == entry or one.startswith(f"{entry}.")}
    seen = inside.union(*(GRAPH.find_upstream_modules(one) for one in inside))
    outside = {
        one.partition(".")[0] for one in seen if one.partition(".")[0] not in ("sheetanchor", "sheetanchor_operator")
    }
    used = {locked.normalised(name) for one in outside - sys.stdlib_module_names for name in OWNERS.get(one, (one,))}

    named = {locked.normalised(name) for one in asked_for(role) for name in (one.name, *one.extras)}
    assert used - named == set()
