"""What the cluster test bed rests on: its cache, its limits, the cluster that it means."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cluster.bed import given, kind, run
from cluster.bed.cache import digest, entry, locked
from cluster.bed.run import BedError, CannotHost
from support.cluster_reader import longest_hole


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep away from the cache that other runs use."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_an_entry_is_built_once() -> None:
    """Two runs at the same time build an entry once, and both get it whole."""
    built, found = [], []

    def build(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.2)
        (folder / "content").write_text("whole")

    def use() -> None:
        found.append((entry("thing", "1", build) / "content").read_text())

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert 1 == len(built)
    assert ["whole", "whole"] == found


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    """An entry that could not be built is not there, nor is a part of it."""

    def build(folder: Path) -> None:
        (folder / "half").touch()
        raise BedError("broken")

    with pytest.raises(BedError, match="broken"):
        entry("thing", "1", build)

    assert ["thing.lock"] == [path.name for path in (tmp_path / "cache" / "sheetanchor").iterdir()]


def test_a_digest_follows_contents(tmp_path: Path) -> None:
    """Another content of a file below a folder is another digest, and so is another name."""
    (tmp_path / "inner").mkdir()
    file = tmp_path / "inner" / "file"
    file.write_text("one")
    before = digest(tmp_path, "v1")

    assert before == digest(tmp_path, "v1")
    assert before != digest(tmp_path, "v2")
    file.write_text("two")
    changed = digest(tmp_path, "v1")
    assert before != changed
    file.rename(tmp_path / "inner" / "other")
    assert changed != digest(tmp_path, "v1")


def test_a_slow_command_is_ended_with_all_it_started() -> None:
    """A command over its limit is an error that names it, and its children are gone."""
    started_s = time.monotonic()

    with pytest.raises(BedError, match=r"sleep 60 .*not done within 0.3 s"):
        run.run("sh", "-c", "sleep 60 & wait", within_s=0.3)

    assert time.monotonic() - started_s < 10


def test_a_failed_command_says_why() -> None:
    """The error has the command, its exit code and the last of what it said."""
    with pytest.raises(BedError, match=r"sh -c .*: exit code 3: no such thing"):
        run.run("sh", "-c", "echo no such thing >&2; exit 3", within_s=10)


def test_a_lock_is_free_again() -> None:
    """A process that fails while it holds a lock leaves it to the next."""
    with pytest.raises(BedError), locked("thing"):
        raise BedError("broken")

    with locked("thing"):
        pass


def test_the_environment_names_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kubeconfig in the environment is the cluster that is meant, unless it is the bed's own."""
    monkeypatch.delenv("SHEETANCHOR_TEST_CLUSTER", raising=False)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert given.kubeconfig() is None

    monkeypatch.setenv("KUBECONFIG", str(kind.KUBECONFIG))
    assert given.kubeconfig() is None

    named = tmp_path / "kubeconfig"
    named.touch()
    monkeypatch.setenv("KUBECONFIG", str(named))
    assert named == given.kubeconfig()

    monkeypatch.setenv("SHEETANCHOR_TEST_CLUSTER", str(tmp_path / "nosuch"))
    with pytest.raises(CannotHost, match=r"SHEETANCHOR_TEST_CLUSTER=.*no such file"):
        given.kubeconfig()


@pytest.mark.parametrize(
    ("read", "hole"),
    [
        ({7: 40, 8: 40, 9: 1_999}, 0),
        ({7: 40, 8: 2_000, 9: 40}, 1),
        ({7: 40, 9: 40}, 1),
        ({7: 40}, 2),
        ({}, 3),
    ],
)
def test_a_hole_is_what_was_not_read_in_time(read: dict[int, int], hole: int) -> None:
    """A slot that was read after its end is as missing as one that was never read."""
    assert hole == longest_hole(read, 7, 9)
