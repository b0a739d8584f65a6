"""Builds the archive that krew installs `kubectl reanchor` from, and its manifest with the archive's checksum.

The archive holds the plugin and the packages that it needs, as they are installed beside this Python, so it runs on
the same kind of machine with the same minor version of Python. The same packages give the same bytes.

    python operator/krew/build.py FOLDER [URI]
"""

from __future__ import annotations

import gzip
import hashlib
import io
import platform
import sys
import tarfile
from importlib.metadata import Distribution, distribution, version
from pathlib import Path, PurePosixPath
from string import Template
from typing import Final

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).resolve().parents[2]
OWN: Final = (
    (
        ROOT / "workloads",
        "sheetanchor",
        (
            "__init__.py",
            "policy/__init__.py",
            "policy/reanchor_object.py",
            "runtime/__init__.py",
            "runtime/plain_text.py",
        ),
    ),
    (
        ROOT / "operator",
        "sheetanchor_operator",
        ("__init__.py", "names.py", "api/__init__.py", "api/timestamps.py", "plugin/*.py", "plugin/explain/*.py"),
    ),
)
"""Modules of this repository that the plugin imports."""

ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
PYTHON: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"
SCRIPT: Final = f"""#!/bin/sh
# krew calls this by a link, and kubectl by krew's.
folder=$(dirname "$(readlink -f "$0")")
PYTHONPATH="$folder/lib" exec {PYTHON} -s -m sheetanchor_operator.plugin "$@"
"""


def needed(*names: str) -> dict[str, Distribution]:
    """Find installed distributions and all that they require, by name."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        found[name] = distribution(name)
        for text in found[name].requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def files_of(one: Distribution) -> dict[str, bytes]:
    """Read a distribution's files, without scripts and without what Python has compiled for itself."""
    places = (PurePosixPath(path) for path in one.files or ())
    wanted = (place for place in places if ".." not in place.parts and "__pycache__" not in place.parts)
    # The installer and the source of a package differ by machine: the same packages would give other bytes.
    bookkeeping = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
    return {
        str(place): Path(str(one.locate_file(str(place)))).read_bytes()
        for place in wanted
        if place.name not in bookkeeping
    }


def own_files() -> dict[str, bytes]:
    """Read the plugin's own modules, with metadata that carries their version."""
    name = "sheetanchor"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version(name)}\n"
    files = {f"{name}-{version(name)}.dist-info/METADATA": metadata.encode()}
    for folder, package, patterns in OWN:
        for pattern in patterns:
            for path in sorted((folder / package).glob(pattern)):
                files[str(PurePosixPath(path.relative_to(folder)))] = path.read_bytes()
    return files


def archive_of(files: dict[str, tuple[int, bytes]]) -> bytes:
    """Pack files, each with its mode, so that the same files give the same bytes."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, (mode, content) in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = mode, len(content)
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), compresslevel=6, mtime=0)


def build(folder: Path, uri: str = "") -> None:
    """Write archive and manifest into a folder.

    Args:
        folder: Created if it is missing.
        uri: Where the archive will be published; default the local file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "kubectl-reanchor.tar.gz"
    library = own_files()
    for one in needed("kubernetes", "pyyaml").values():
        library.update(files_of(one))
    packed = {"kubectl-reanchor": (0o755, SCRIPT.encode()), "LICENSE": (0o644, (ROOT / "LICENSE").read_bytes())}
    packed.update({f"lib/{name}": (0o644, library[name]) for name in sorted(library)})
    path.write_bytes(archive_of(packed))
    template = Template((ROOT / "operator" / "krew" / "reanchor.yaml").read_text())
    filled = template.substitute(
        VERSION=version("sheetanchor"),
        URI=uri or path.resolve().as_uri(),
        SHA256=hashlib.sha256(path.read_bytes()).hexdigest(),
        OS=platform.system().lower(),
        ARCH=ARCHITECTURES.get(platform.machine(), platform.machine()),
        PYTHON=PYTHON,
    )
    (folder / "reanchor.yaml").write_text(filled)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)\n{folder / 'reanchor.yaml'}")


if __name__ == "__main__":
    build(Path(sys.argv[1]), *sys.argv[2:3])
