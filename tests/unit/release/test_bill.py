"""The bill of materials: what is in the finished image, no less and nothing that a later layer took away."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jsonschema import Draft7Validator
from referencing import Registry, Resource

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "workloads" / "bill.py"


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bill", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bill = _module()
DEBIAN = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u13

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: login
Status: install ok installed
Architecture: amd64
Version: 1:4.13
"""
RELEASE = 'ID=debian\nVERSION_ID="12"\n'
SITE = "usr/local/lib/python3.11/site-packages"


def metadata(name: str, version: str, more: str = "") -> str:
    return f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{more}\nA text that follows.\n"


def packed(contents: dict[str, str]) -> bytes:
    """Pack files as a layer or an archive is packed."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, text in contents.items():
            one = tarfile.TarInfo(name)
            one.size = len(text.encode("latin-1"))
            archive.addfile(one, io.BytesIO(text.encode("latin-1")))
    return whole.getvalue()


def image(folder: Path, *layers: dict[str, str], config: dict[str, Any] | None = None) -> Path:
    """Write a docker-archive."""
    names = [f"{number}.tar" for number in range(len(layers))]
    contents = {name: packed(layer).decode("latin-1") for name, layer in zip(names, layers, strict=True)}
    about = [{"Config": "config.json", "RepoTags": ["localhost/sheetanchor:dev"], "Layers": names}]
    contents |= {"config.json": json.dumps({"config": config or {}}), "manifest.json": json.dumps(about)}
    path = folder / "image.tar"
    path.write_bytes(packed(contents))
    return path


def purls(path: Path) -> set[str]:
    with tarfile.open(path) as archive:
        return {one["purl"] for one in json.loads(bill.bill(archive))["components"]}


BASE = {
    "./etc/os-release": RELEASE,
    "./var/lib/dpkg/status": DEBIAN,
    f"./{SITE}/pip-23.0.dist-info/METADATA": metadata("pip", "23.0"),
}
OWN = {
    "opt/needs/PyYAML-6.0.dist-info/METADATA": metadata("PyYAML", "6.0", "License-Expression: MIT\n"),
    "opt/own/sheetanchor-0.1.0.dist-info/METADATA": metadata("sheetanchor", "0.1.0"),
}
LIBC = "pkg:deb/debian/libc6@2.36-9%2Bdeb12u13?arch=amd64&distro=debian-12"
LOGIN = "pkg:deb/debian/login@1:4.13?arch=amd64&distro=debian-12"
OURS = {"pkg:pypi/pyyaml@6.0", "pkg:generic/sheetanchor@0.1.0"}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((BASE, OWN), {LIBC, LOGIN, "pkg:pypi/pip@23.0", *OURS}),
        ((BASE, OWN, {f"{SITE}/.wh.pip-23.0.dist-info": ""}), {LIBC, LOGIN, *OURS}),
        ((BASE, OWN, {f"{SITE}/.wh..wh..opq": ""}), {LIBC, LOGIN, *OURS}),
        ((BASE, {**OWN, f"{SITE}/.wh..wh..opq": ""}), {LIBC, LOGIN, *OURS}),
        ((BASE, OWN, {"var/lib/dpkg/status": DEBIAN.split("\n\n")[0]}), {LIBC, "pkg:pypi/pip@23.0", *OURS}),
        (
            (
                {
                    "usr/lib/os-release": RELEASE,
                    "var/lib/dpkg/status.d/libc6": DEBIAN.split("\n\n")[0].replace(
                        "Status: install ok installed\n", ""
                    ),
                },
                OWN,
            ),
            {LIBC, *OURS},
        ),
    ],
    ids=["all", "one taken away", "a folder emptied", "emptied and filled", "packages replaced", "a base without dpkg"],
)
def test_it_lists_what_the_last_layer_leaves(
    tmp_path: Path, layers: tuple[dict[str, str], ...], expected: set[str]
) -> None:
    """Debian's and Python's packages, those that are installed, after every removal."""
    assert expected == purls(image(tmp_path, *layers))


def test_an_interpreter_that_no_package_brought_is_named(tmp_path: Path) -> None:
    """Public images of Python compile it themselves."""
    path = image(tmp_path, BASE, OWN, config={"Env": ["PATH=/bin", "PYTHON_VERSION=3.11.14"]})

    assert "pkg:generic/python@3.11.14" in purls(path)


def test_it_is_cyclonedx_and_the_same_twice(tmp_path: Path) -> None:
    """The text fits the standard's own schema, says which image it is of, and depends on nothing but that."""
    labels = {"org.opencontainers.image.version": "0.1.0", "org.opencontainers.image.created": "2026-11-30T00:00:00Z"}
    path = image(tmp_path, BASE, OWN, config={"Labels": labels})
    texts = []
    for _ in range(2):
        done = subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True, timeout=120, check=True)
        texts.append(done.stdout)
    reported = json.loads(texts[0])
    with tarfile.open(path) as archive:
        config = archive.extractfile("config.json")
        assert config
        identity = hashlib.sha256(config.read()).hexdigest()

    assert texts[0] == texts[1]
    assert identity == reported["metadata"]["component"]["hashes"][0]["content"]
    assert ("container", "0.1.0") == (
        reported["metadata"]["component"]["type"],
        reported["metadata"]["component"]["version"],
    )
    assert [] == [error.message for error in schema().iter_errors(reported)]


def schema() -> Draft7Validator:
    """The schema of CycloneDX 1.6, with those that it refers to."""
    folder = files("cyclonedx.schema") / "_res"

    def load(name: str) -> Any:
        return json.loads((folder / f"{name}.SNAPSHOT.schema.json").read_text(encoding="utf-8"))

    parts = [load(name) for name in ("spdx", "jsf-0.82", "bom-1.6")]
    registry: Registry[Any] = Registry()
    registry = registry.with_resources([(part["$id"], Resource.from_contents(part)) for part in parts])
    return Draft7Validator(parts[-1], registry=registry)


@pytest.mark.parametrize(
    ("layers", "word"), [(({"etc/os-release": RELEASE},), "no package"), ((), "no package")], ids=["bare", "empty"]
)
def test_an_image_without_packages_is_an_error(tmp_path: Path, layers: tuple[dict[str, str], ...], word: str) -> None:
    """An empty bill would pass as an image with nothing in it."""
    command = [sys.executable, SCRIPT, image(tmp_path, *layers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert (1, "") == (done.returncode, done.stdout)
    assert word in done.stderr


@pytest.mark.parametrize("content", [b"", b"no archive", packed({"x": "y"})], ids=["empty", "text", "another"])
def test_what_is_no_image_is_an_error(tmp_path: Path, content: bytes) -> None:
    """One line says which file it was."""
    path = tmp_path / "image.tar"
    path.write_bytes(content)

    done = subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True, timeout=120, check=False)

    assert (1, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert str(path) in done.stderr
