"""Print what some extras need of requirements.lock, hashes included, for pip's --require-hashes.

    python .ci/locked.py EXTRA...

It runs before anything is installed, so it needs nothing but Python. Whatever an extra needs that the lock has not is
an error here, and a file whose hash is not in the lock is one of pip's.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
RENEW = "run `make lock`"


@dataclass(frozen=True, slots=True)
class Entry:
    """One package of the lock.

    Attributes:
        name: Normalised.
        requirement: `name==version`, with a marker where it has one.
        hashes: SHA-256 of each of its files, hexadecimal.
        parents: Names of the packages that require it; `sheetanchor` if this project does.
    """

    name: str
    requirement: str
    hashes: tuple[str, ...]
    parents: frozenset[str]

    def __str__(self) -> str:
        return " \\\n    ".join([self.requirement, *(f"--hash=sha256:{one}" for one in self.hashes)])


def normalised(name: str) -> str:
    """Give a distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def entries(text: str) -> list[Entry]:
    """Read the lock.

    Raises:
        ValueError: An entry has no exact version, no hash, or does not say what requires it.
    """
    found = []
    for block in re.split(r"\n(?=\S)", "\n".join(line for line in text.splitlines() if not line.startswith("#"))):
        first, *rest = (line.strip().removesuffix("\\").strip() for line in block.strip().splitlines() or [""])
        if not first:
            continue
        pinned = re.fullmatch(rf"({NAME.pattern})==[^\s;]+( ; .+)?", first)
        hashes = tuple(line.removeprefix("--hash=sha256:") for line in rest if line.startswith("--hash="))
        parents = {one.split()[0] for line in rest if line.startswith("# via ") for one in line[6:].split(",")}
        if not pinned or not hashes or not parents or not all(re.fullmatch("[0-9a-f]{64}", one) for one in hashes):
            raise ValueError(f"{LOCK.name}: {first!r} is no version with hashes and what requires it; {RENEW}")
        found.append(Entry(normalised(pinned[1]), first, hashes, frozenset(map(normalised, parents))))
    return found


def requirements(project: dict[str, object], extra: str) -> Iterator[str]:
    """Give what an extra of pyproject.toml asks for, those of extras that it includes among them.

    Raises:
        ValueError: There is no such extra.
    """
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    if extra not in extras:
        raise ValueError(f"pyproject.toml has no extra {extra!r}: it has {', '.join(sorted(extras))}")
    for one in extras[extra]:
        ours = re.fullmatch(r"sheetanchor\[(.*)\]", one)
        if ours:
            for name in ours[1].split(","):
                yield from requirements(project, name.strip())
        else:
            yield one


def selected(lock: list[Entry], wanted: set[str]) -> list[Entry]:
    """Give the entries of the wanted names, and of all that these require.

    Raises:
        ValueError: The lock lacks a wanted name.
    """
    missing = sorted(wanted - {one.name for one in lock})
    if missing:
        raise ValueError(f"{LOCK.name} lacks {', '.join(missing)}; {RENEW}")
    names = set(wanted)
    while more := {one.name for one in lock if one.name not in names and one.parents & names}:
        names |= more
    return [one for one in lock if one.name in names]


def locked(*extras: str, base: bool = True) -> list[Entry]:
    """Give what extras need, and what every role needs unless `base` is false."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [
        *(project["dependencies"] if base else ()),
        *(one for extra in extras for one in requirements(project, extra)),
    ]
    names = {normalised(found[0]) for one in asked if (found := NAME.match(one))}
    return selected(entries(LOCK.read_text(encoding="utf-8")), names)


def main(arguments: list[str]) -> int:
    """Print the entries of the extras that are named."""
    # Tools run beside the product, not in it: they do not bring its own needs along.
    tools = {"build", "lock", "sbom"}
    try:
        chosen = locked(*arguments, base=not set(arguments) <= tools)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(map(str, chosen)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
