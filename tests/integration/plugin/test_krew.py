"""The archive that krew installs: complete, and what its manifest says."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
BUILD = [sys.executable, str(ROOT / "operator" / "krew" / "build.py")]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with archive and manifest."""
    folder = tmp_path_factory.mktemp("krew")
    subprocess.run([*BUILD, str(folder)], check=True, capture_output=True, timeout=120)
    return folder


def test_manifest_speaks_of_the_archive(built: Path) -> None:
    """Checksum, program and address are those of the archive beside it."""
    manifest = yaml.safe_load((built / "reanchor.yaml").read_text())
    (platform,) = manifest["spec"]["platforms"]
    archive = built / "kubectl-reanchor.tar.gz"

    with tarfile.open(archive) as packed:
        modes = {entry.name.partition("/")[0]: entry.mode for entry in packed}

    assert hashlib.sha256(archive.read_bytes()).hexdigest() == platform["sha256"]
    assert archive.resolve().as_uri() == platform["uri"]
    assert {"kubectl-reanchor": 0o755, "LICENSE": 0o644, "lib": 0o644} == modes
    assert platform["bin"] in modes
    assert "reanchor" == manifest["metadata"]["name"]


def test_same_sources_give_the_same_archive(built: Path, tmp_path: Path) -> None:
    """A checksum can be checked by building again."""
    subprocess.run([*BUILD, str(tmp_path), "https://localhost/archive"], check=True, capture_output=True, timeout=120)

    name = "kubectl-reanchor.tar.gz"
    assert (built / name).read_bytes() == (tmp_path / name).read_bytes()
    assert "uri: https://localhost/archive" in (tmp_path / "reanchor.yaml").read_text()


def test_it_runs_without_any_package_installed(built: Path, tmp_path: Path) -> None:
    """A Python without a single package of its own runs it, by a link as krew makes one."""
    with tarfile.open(built / "kubectl-reanchor.tar.gz") as packed:
        packed.extractall(tmp_path / "store", filter="data")
    venv.create(tmp_path / "bare", symlinks=True, with_pip=False)
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / "kubectl-reanchor"
    link.symlink_to(tmp_path / "store" / "kubectl-reanchor")
    python = f"python3.{sys.version_info.minor}"
    if not (tmp_path / "bare" / "bin" / python).exists():
        (tmp_path / "bare" / "bin" / python).symlink_to(tmp_path / "bare" / "bin" / "python3")
    env = {"PATH": f"{tmp_path / 'bare' / 'bin'}:/usr/bin:/bin"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(link), *words], capture_output=True, text=True, timeout=120, check=False, env=env)

    shown, lost = run("--help"), run("btc", "--kubeconfig", str(tmp_path / "none"))

    assert (0, "") == (shown.returncode, shown.stderr)
    assert "kubectl reanchor status [NAME]" in shown.stdout
    assert (7, 1) == (lost.returncode, len(lost.stderr.splitlines())), lost.stderr
