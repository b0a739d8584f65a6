"""Writes what is in an image as a CycloneDX bill of materials: Debian's packages, Python's, and Python itself.

    python workloads/bill.py ARCHIVE

It reads the finished image, a docker-archive, and nothing else, so that it lists what is really in the image. Libraries
that a wheel brings inside itself are part of that wheel here. The same image gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tarfile
import uuid
from collections.abc import Iterator
from datetime import datetime
from email.parser import HeaderParser
from pathlib import Path
from typing import IO, Any, Final

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from license_expression import ExpressionError, get_spdx_licensing
from packageurl import PackageURL

WANTED: Final = re.compile(
    r"(etc|usr/lib)/os-release|var/lib/dpkg/status(\.d/[^/]+)?|(.+/)?[^/]+\.dist-info/METADATA", re.DOTALL
)
"""Files from which installed packages are read."""

LABEL: Final = "org.opencontainers.image."
NAMESPACE: Final = uuid.UUID("5c3a9a5e-6f8c-5d7e-9f53-0a5c6c7e0d11")
WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"


def files_of(archive: tarfile.TarFile, layers: list[str]) -> dict[str, str]:
    """Read these files as the last layer leaves them: what a layer removes is not in the image.

    Raises:
        KeyError: The archive lacks a layer that it names.
    """
    found: dict[str, str] = {}
    for name in layers:
        added: dict[str, str] = {}
        with tarfile.open(fileobj=_member(archive, name)) as layer:
            for one in layer:
                path = one.name.removeprefix("./").strip("/")
                folder, _, base = path.rpartition("/")
                if base.startswith(WHITEOUT):
                    gone = folder if base == OPAQUE else f"{folder}/{base.removeprefix(WHITEOUT)}".lstrip("/")
                    below = f"{gone}/" if gone else ""
                    found = {key: text for key, text in found.items() if key != gone and not key.startswith(below)}
                elif one.isfile() and WANTED.fullmatch(path):
                    added[path] = _member(layer, one).read().decode("utf-8", "replace")
        found |= added
    return found


def _member(archive: tarfile.TarFile, name: str | tarfile.TarInfo) -> IO[bytes]:
    opened = archive.extractfile(name)
    if opened is None:
        raise KeyError(f"{name} is no file")
    return opened


def debian(files: dict[str, str]) -> Iterator[Component]:
    """Give Debian's packages that are installed."""
    release = files.get("etc/os-release") or files.get("usr/lib/os-release") or ""
    release_fields = dict(re.findall(r'(?m)^(\w+)="?([^"\n]*)"?$', release))
    system = release_fields.get("ID", "debian")
    for path in sorted(files):
        if not path.startswith("var/lib/dpkg/"):
            continue
        for text in files[path].strip().split("\n\n"):
            fields = HeaderParser().parsestr(text)
            name, version = fields["Package"], fields["Version"]
            if not name or not version or " installed" not in (fields["Status"] or "x installed"):
                continue
            qualifiers = {
                "arch": fields["Architecture"] or "",
                "distro": f"{system}-{release_fields.get('VERSION_ID', '')}",
            }
            purl = PackageURL("deb", system, name, version, qualifiers)
            yield Component(name=name, version=version, purl=purl, bom_ref=purl.to_string())


def python(files: dict[str, str]) -> Iterator[Component]:
    """Give Python's packages."""
    spdx = get_spdx_licensing()
    for path in sorted(files):
        if not path.endswith(".dist-info/METADATA"):
            continue
        fields = HeaderParser().parsestr(files[path])
        name, version, expression = fields["Name"], fields["Version"], fields["License-Expression"]
        try:
            known = [LicenseExpression(str(spdx.parse(expression, validate=True)))] if expression else []
        except ExpressionError:
            known = []
        # Our own packages come from no registry, so they have no package URL.
        kind = "generic" if name == "sheetanchor" else "pypi"
        purl = PackageURL(kind, None, re.sub("[-_.]+", "-", name).lower(), version)
        yield Component(name=name, version=version, purl=purl, bom_ref=f"{path}#{version}", licenses=known)


def bill(archive: tarfile.TarFile) -> str:
    """Write the bill of an image.

    Raises:
        KeyError: It is no docker-archive.
        ValueError: It has no list of installed packages.
    """
    (manifest,) = json.load(_member(archive, "manifest.json"))
    text = _member(archive, manifest["Config"]).read()
    config: dict[str, Any] = json.loads(text).get("config", {})
    labels: dict[str, str] = config.get("Labels") or {}
    files = files_of(archive, manifest["Layers"])
    components = [*debian(files), *python(files)]
    if not components:
        raise ValueError("no package found in it: expected an image with Debian's or Python's package lists")
    for variable in config.get("Env") or ():
        name, _, version = variable.partition("=")
        if name == "PYTHON_VERSION":  # compiled by the base image's maker, so it is in no Debian package
            purl = PackageURL("generic", None, "python", version)
            components.append(Component(name="python", version=version, purl=purl, bom_ref=purl.to_string()))
    identity = hashlib.sha256(text).hexdigest()
    image = Component(
        name=(manifest.get("RepoTags") or ["sheetanchor"])[0],
        version=labels.get(f"{LABEL}version"),
        type=ComponentType.CONTAINER,
        bom_ref="image",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=identity)],
        properties=[Property(name=key, value=labels[key]) for key in sorted(labels) if key.startswith(LABEL)],
    )
    created = datetime.fromisoformat(labels.get(f"{LABEL}created", "1970-01-01T00:00:00Z"))
    whole = Bom(
        components=components,
        metadata=BomMetaData(component=image, timestamp=created),
        serial_number=uuid.uuid5(NAMESPACE, identity),
    )
    whole.register_dependency(image, components)
    return JsonV1Dot6(whole).output_as_string(indent=1)


def main(arguments: list[str]) -> int:
    """Print the bill of the archive that is named."""
    try:
        with tarfile.open(Path(arguments[0])) as archive:
            print(bill(archive))
    except (OSError, KeyError, ValueError, tarfile.TarError) as error:
        print(f"{arguments[0]}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
