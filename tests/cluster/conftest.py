"""Fixtures of the tests that need a cluster; no test is collected where none can be had."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from support.cluster_bed import Cluster, Installed, reason_against
from support.cluster_parts import Running

# The tests share one cluster and follow each other, so they are no matter for several workers.
REASON = "tests of one cluster run in one process" if os.environ.get("PYTEST_XDIST_WORKER") else reason_against()
collect_ignore_glob = ["test_*.py"] if REASON else []


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four nodes, three of them in zones a, b and c."""
    cluster = Cluster()
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def image(cluster: Cluster) -> str:
    """The name of the product's image, which the nodes have."""
    return cluster.load_product()


@pytest.fixture(scope="session")
def installed(cluster: Cluster, image: str) -> Iterator[Installed]:
    """The chart in the namespace sheetanchor-system."""
    installed = Installed(cluster, image)
    yield installed
    if cluster.was_there:
        installed.uninstall()


@pytest.fixture(scope="session")
def namespace(cluster: Cluster) -> Callable[[str], str]:
    """Makes a namespace that enforces restricted pods and returns its name."""
    return cluster.make_namespace


@pytest.fixture(scope="session")
def recorded_market(installed: Installed) -> Callable[[str], None]:
    """Applies the sample of the recorded market in a namespace."""
    return installed.recorded_market


@pytest.fixture(scope="session")
def applied(cluster: Cluster, recorded_market: Callable[[str], None]) -> tuple[Running, float]:
    """The sample, and when it was applied by time.monotonic()."""
    place = cluster.make_namespace("market")
    applied_s = time.monotonic()
    recorded_market(place)
    return Running(cluster, place), applied_s


@pytest.fixture(scope="session")
def btc(applied: tuple[Running, float]) -> Running:
    """The sample's pipeline once it is sound."""
    btc, _ = applied
    btc.until_sound(180)
    return btc


@pytest.fixture(scope="session")
def second_image(cluster: Cluster, installed: Installed) -> str:
    """Another name of the product's image, for updates."""
    other = installed.image.rpartition(":")[0] + ":other"
    cluster.tag_image(installed.image, other)
    return other
