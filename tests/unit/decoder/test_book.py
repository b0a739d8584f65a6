"""The book's rows and blocks against a plain map, in C++ and with sanitizers where the compiler has them.

The same comparison is part of `make fuzz`; here it runs on markets made up for the purpose and on random changes.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support.repository import ROOT

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
MARKETS = ["usual", "moving", "there and back", "drifting", "far", "emptied"]


@pytest.fixture(scope="module")
def book_check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that compares, built once."""
    made, probe = tmp_path_factory.mktemp("book"), "int main() {}"
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, "-std=gnu++20", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'decoder'}"]
    probed = subprocess.run(
        [compiler, *SANITIZERS, "-x", "c++", "-", "-o", str(made / "probe")], input=probe, text=True, check=False
    )
    source = Path(__file__).with_name("book_check.cpp")
    flags = SANITIZERS if probed.returncode == 0 else []
    subprocess.run([*command, *flags, str(source), "-o", str(made / "book_check")], check=True)
    return made / "book_check"


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("market", MARKETS)
def test_a_book_is_that_of_a_plain_map_at_a_bounded_cost(book_check: Path, market: str) -> None:
    """At ticks of one unit and many, dense and sparse: the same levels after every diff, and few moves a change.

    The market is at rest or moves away for good, moves away and back, drifts, gets levels far away, loses a side.
    """
    done = run(book_check, market, "1")

    assert (0, "") == (done.returncode, done.stderr), done.stdout


@pytest.mark.parametrize("seed", range(4))
def test_random_changes_leave_the_book_of_a_plain_map(book_check: Path, seed: int) -> None:
    """Levels anywhere in any order, on the tick or off it, loads, rescaled prices, up to more levels than are kept."""
    done = run(book_check, "random", str(seed))

    assert (0, "") == (done.returncode, done.stderr), done.stdout
