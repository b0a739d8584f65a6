"""How an image is made without a registry: a minimal Debian from its packages, files on top."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cluster.bed.cache import digest, entry
from cluster.bed.run import BedError, run, say, succeeds
from cluster.bed.tools import NODE, log

SUITE = "bookworm"
MIRROR = os.environ.get("SHEETANCHOR_DEBIAN_MIRROR", "http://deb.debian.org/debian")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
ROOT_WITHIN_S = 900  # a slow mirror
BUILD_WITHIN_S = 600
CONTAINER_PREFIX = "sheetanchor-build-"


def debian_root(name: str, packages: tuple[str, ...]) -> Path:
    """Return an archive of a minimal Debian with some packages and without documentation."""

    def build(folder: Path) -> None:
        say(f"installing a Debian root for {name} (a minute the first time)")
        root = folder / "root"
        # Without the keys debootstrap would only warn, and install whatever answers.
        checked = ["--force-check-gpg", f"--keyring={KEYRING}"]
        what = ["--variant=minbase", f"--include={','.join(packages)}", SUITE, str(root), MIRROR]
        command = ["debootstrap", *checked, *what]
        run(*command, within_s=ROOT_WITHIN_S, log=log(f"debootstrap-{name}"))
        for unneeded in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
            shutil.rmtree(root / unneeded, ignore_errors=True)
        run("tar", "-C", root, "--numeric-owner", "-cf", folder / "root.tar", ".", within_s=BUILD_WITHIN_S)
        shutil.rmtree(root)

    return entry(f"debian-{name}", digest(SUITE, *packages), build) / "root.tar"


class Build:
    """One container image in the making."""

    def __init__(self) -> None:
        self.container = ""
        self.container = self._buildah("from", "--name", f"{CONTAINER_PREFIX}{os.getpid()}", "scratch").strip()

    def add(self, archive: Path) -> None:
        """Unpack an archive over the root."""
        self._buildah("add", "-q", self.container, archive, "/")

    def put(self, *sources_and_target: str | Path, mode: str | None = None) -> None:
        """Copy files into the image."""
        self._buildah("copy", "-q", *(["--chmod", mode] if mode else []), self.container, *sources_and_target)

    def run(self, *command: str) -> None:
        """Run a command of the image in the image."""
        self._buildah("run", "--isolation", "chroot", self.container, "--", *command)

    def commit(self, target: str, *options: str) -> None:
        """Set what the image starts and write it; uncompressed, since it never leaves this machine."""
        self._buildah("config", *options, self.container)
        self._buildah("commit", "-q", "--rm", "--disable-compression", self.container, target)

    def _buildah(self, *arguments: str | Path) -> str:
        settings = {"CONTAINERS_CONF": str(NODE / "containers.conf")}
        buildah = ("buildah", "--storage-driver", "overlay")
        try:
            return run(*buildah, *arguments, within_s=BUILD_WITHIN_S, extra_env=settings)
        except BedError:
            if self.container:
                succeeds(*buildah, "rm", self.container)
            raise
