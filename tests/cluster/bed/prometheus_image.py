"""Prometheus as Debian packages it, as an image that tests let scrape the cluster."""

from __future__ import annotations

from pathlib import Path

from cluster.bed.build import Build, debian_root
from cluster.bed.cache import digest, entry
from cluster.bed.host import install
from cluster.bed.run import say

PROMETHEUS_IMAGE = "localhost/prometheus:dev"


def prometheus_archive() -> Path:
    """Return the archive of an image with Debian's Prometheus, which tests let scrape the cluster."""

    def build(folder: Path) -> None:
        install()
        root = debian_root("prometheus", ("prometheus",))
        say("building the image of Prometheus")
        image = Build()
        image.add(root)
        archive = folder / "image.tar"
        image.commit(f"docker-archive:{archive}:{PROMETHEUS_IMAGE}", "--entrypoint", '["/usr/bin/prometheus"]')

    return entry("prometheus-image", digest(Path(__file__)), build) / "image.tar"
