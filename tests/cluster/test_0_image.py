"""What the product's image says of itself and what is in it, read from its archive."""

from __future__ import annotations

import json
import re
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest

from cluster.bed import given, kind, product

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

COMPILERS = re.compile(r"(.*-)?(cc|c\+\+|gcc|g\+\+|clang|clang\+\+|cpp|as|ld|make|cmake|ninja|go|rustc)(-[\d.]+)?")
PREFIX = "org.opencontainers.image."


@pytest.fixture(scope="module")
def archive() -> Iterator[tarfile.TarFile]:
    """The image as `make image` writes it."""
    if given.kubeconfig():
        pytest.skip("a given cluster takes its image from elsewhere: there is no archive to read")
    with tarfile.open(product.archive()) as archive:
        yield archive


def read(archive: tarfile.TarFile, name: str) -> Any:
    """Read a document of the archive."""
    found = archive.extractfile(name)
    assert found is not None
    return json.load(found)


@pytest.fixture(scope="module")
def manifest(archive: tarfile.TarFile) -> Any:
    """Which parts the image has."""
    (manifest,) = read(archive, "manifest.json")
    return manifest


@pytest.fixture(scope="module")
def settings(archive: tarfile.TarFile, manifest: Any) -> Any:
    """What a container of it gets."""
    return read(archive, manifest["Config"])["config"]


@pytest.fixture(scope="module")
def files(archive: tarfile.TarFile, manifest: Any) -> list[tarfile.TarInfo]:
    """Everything in all layers."""
    found: list[tarfile.TarInfo] = []
    for name in manifest["Layers"]:
        # A layer that another one equals is a link to it.
        member = archive.getmember(name)
        with tarfile.open(fileobj=archive.extractfile(member)) as layer:
            found += layer.getmembers()
    return found


def test_it_runs_as_nobody(settings: Any) -> None:
    """The user is a number, so that a cluster can see that it is not root; the role is the first argument."""
    assert "65532:65532" == settings["User"]
    assert ["sheetanchor"] == settings["Entrypoint"]
    assert not settings.get("Cmd")


def test_it_says_what_it_is(settings: Any) -> None:
    """Its labels are those of the Open Container Initiative, with version and commit."""
    labels = {name.removeprefix(PREFIX): text for name, text in settings["Labels"].items() if name.startswith(PREFIX)}
    with (kind.CHECKOUT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]

    assert labels.items() >= {"title": "sheetanchor", "licenses": "Apache-2.0", "version": project["version"]}.items()
    assert re.fullmatch(r"[0-9a-f]{12}", labels["revision"])
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", labels["created"])
    assert labels["source"].startswith("https://")
    assert labels["description"]


def test_no_compiler_is_inside(files: list[tarfile.TarInfo]) -> None:
    """What turns a foothold into a tool is not there; neither are the tests and headers of what it needs."""
    programs = {PurePosixPath(one.name) for one in files if "bin" in PurePosixPath(one.name).parts}

    assert [] == sorted(str(path) for path in programs if COMPILERS.fullmatch(path.name))
    assert PurePosixPath("opt/own/bin/sheetanchor") in programs
    assert not [one.name for one in files if re.match(r"opt/needs/.*/(tests|include)/", one.name)]


def test_nobody_may_write_what_it_runs(files: list[tarfile.TarInfo]) -> None:
    """Its own code and what that needs belong to root."""
    code = [one for one in files if one.name.startswith("opt/") and not one.issym()]

    assert len(code) > 1000
    assert {(0, 0)} == {(one.uid, one.gid) for one in code}
    assert [] == [one.name for one in code if one.mode & 0o022]
