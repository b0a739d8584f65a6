"""How the image is made: signatures, fixes that arrive, digests. Its functions run, on stand-ins for its tools."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = (ROOT / "workloads" / "image.sh").read_text(encoding="utf-8")
DIGEST = f"sha256:{'a' * 64}"
OTHER = f"sha256:{'b' * 64}"


def functions() -> str:
    """The script's functions and settings, without what it does with them."""
    begin, end = SCRIPT.index("registry_answers()"), SCRIPT.index('if [ -n "${BASE:-}" ]')
    return SCRIPT[begin:end]


def run(folder: Path, commands: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run commands among the script's functions; what it calls is in `folder`/bin and says what it was asked."""
    setting = f"""
    set -euo pipefail
    cache={folder}; engine=podman; version=3.11; base=${{BASE:-docker.io/library/python:3.11-slim}}
    mirror=http://mirror.example/debian; security=http://mirror.example/debian-security
    keyring={folder}/keys.gpg; max_age_days=${{MAX_AGE_DAYS:-7}}
    say() {{ echo "$*" >&2; }}
    fail() {{ say "$*"; exit 1; }}
    """
    environment = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin:/usr/sbin:/sbin", **variables}
    command = ["bash", "-c", setting + functions() + commands]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def tool(folder: Path, name: str, text: str) -> None:
    """Put a stand-in for a program first in PATH; it adds its arguments to `folder`/called."""
    (folder / "bin").mkdir(exist_ok=True)
    path = folder / "bin" / name
    path.write_text(f'#!/bin/bash\necho "{name} $*" >>{folder}/called\n{text}\n')
    path.chmod(0o755)


def called(folder: Path) -> str:
    path = folder / "called"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    ("age_days", "variables", "fresh"),
    [
        (0, {}, True),
        (6.9, {}, True),
        (7.1, {}, False),
        (0, {"REFRESH": "1"}, False),
        (20, {"MAX_AGE_DAYS": "30"}, True),
    ],
)
def test_what_is_kept_has_an_age(tmp_path: Path, age_days: float, variables: dict[str, str], fresh: bool) -> None:
    """A base is fetched again after a week, or on request."""
    kept = tmp_path / "kept"
    kept.write_text("x")
    moment = time.time() - age_days * 86400
    os.utime(kept, (moment, moment))

    assert fresh is (run(tmp_path, f"fresh {kept}", **variables).returncode == 0)


def test_a_public_base_is_taken_by_its_digest(tmp_path: Path) -> None:
    """The tag's digest of the day is what is built from, and stays so until it is too old."""
    tool(tmp_path, "podman", f'case "$*" in "image inspect"*) echo docker.io/library/python@{DIGEST};; esac')

    first = run(tmp_path, 'public_base && echo "$base"')
    tool(tmp_path, "podman", f'case "$*" in "image inspect"*) echo docker.io/library/python@{OTHER};; esac')
    second = run(tmp_path, 'public_base && echo "$base"')
    anew = run(tmp_path, 'public_base && echo "$base"', REFRESH="1")

    assert [f"docker.io/library/python@{DIGEST}"] * 2 == [first.stdout.strip(), second.stdout.strip()]
    assert f"docker.io/library/python@{OTHER}" == anew.stdout.strip()


@pytest.mark.parametrize(
    ("base", "digest", "pulled", "expected"),
    [
        ("registry.example:5000/python", DIGEST, True, f"registry.example:5000/python@{DIGEST}"),
        ("registry.example:5000/python:3", DIGEST, True, f"registry.example:5000/python@{DIGEST}"),
        (f"x/python@{DIGEST}", DIGEST, True, f"x/python@{DIGEST}"),
        ("localhost/own:1", "", False, "localhost/own:1"),
        ("x/python:3", DIGEST, False, ""),
    ],
    ids=["no tag", "tag", "digest", "made here", "an old copy of a public one"],
)
def test_a_base_of_ones_own(tmp_path: Path, base: str, digest: str, pulled: bool, expected: str) -> None:
    """By digest wherever one is known; what no registry answers for is taken only if it was made here."""
    pull = "exit 0" if pulled else "exit 1"
    known = f"echo {base.split('@')[0]}@{digest}" if digest else "echo"
    tool(tmp_path, "podman", f'case "$*" in pull*) {pull};; "image inspect"*) {known};; esac')

    done = run(tmp_path, 'public_base && echo "$base"', BASE=base)

    assert expected == done.stdout.strip()
    assert bool(expected) is (done.returncode == 0)


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    """A machine that can make a Debian root, quickly."""
    (tmp_path / "keys.gpg").write_text("keys")
    tool(
        tmp_path,
        "debootstrap",
        'for root in "$@"; do [ -d "$root" ] && mkdir -p "$root/etc/apt" "$root/var/log" && break; done',
    )
    tool(tmp_path, "chroot", f'cat "$1/etc/apt/sources.list" >>{tmp_path}/sources')
    tool(tmp_path, "podman", "exit 0")
    return tmp_path


def test_nothing_is_installed_unsigned(debian: Path) -> None:
    """Signatures are checked against Debian's keys, for image and test nodes; without keys nothing is made."""
    done = run(debian, "debian_base")
    (debian / "keys.gpg").unlink()
    without = run(debian, "debian_base", REFRESH="1")

    assert (0, 1) == (done.returncode, without.returncode), done.stderr
    assert f"--force-check-gpg --keyring={debian}/keys.gpg" in called(debian)
    assert "keys.gpg is missing" in without.stderr
    assert 1 == called(debian).count("debootstrap")
    bed = (ROOT / "tests" / "cluster" / "bed" / "build.py").read_text(encoding="utf-8")
    assert '"--force-check-gpg", f"--keyring={KEYRING}"' in bed


def test_the_security_suite_is_in_the_base(debian: Path) -> None:
    """Security fixes since the release are installed, from signed lists, with any mirror."""
    run(debian, "debian_base")
    sources = (debian / "sources").read_text().splitlines()

    suites = {tuple(line.split()[2:4]) for line in sources}
    assert {
        ("http://mirror.example/debian", "bookworm"),
        ("http://mirror.example/debian", "bookworm-updates"),
        ("http://mirror.example/debian-security", "bookworm-security"),
    } == suites
    assert all("signed-by=" in line for line in sources)
    assert ["update", "dist-upgrade"] == re.findall("^chroot .* apt-get .*(update|dist-upgrade)$", called(debian), re.M)


@pytest.mark.parametrize("fails", ["debootstrap", "chroot"])
def test_a_base_that_cannot_be_mended_is_none(debian: Path, fails: str) -> None:
    """Where packages or fixes cannot be had, nothing is kept, and the message says what to do."""
    tool(debian, fails, "exit 1")

    done = run(debian, "debian_base")

    assert 1 == done.returncode
    assert "MAX_AGE_DAYS" in done.stderr
    assert [] == [*debian.glob("base-*.tar"), *debian.glob("root.*")]


def test_the_last_stage_has_no_pip() -> None:
    """The build fails where the last stage can still import it."""
    stages = (ROOT / "workloads" / "Containerfile").read_text(encoding="utf-8").split("\nFROM ")

    assert "! python3 -c 'import pip'" in stages[-1]
    assert stages[-1].index("import pip") < stages[-1].index("USER 65532")
