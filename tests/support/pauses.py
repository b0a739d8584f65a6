"""Run pytest and stop its processes now and then, as a busy machine does: a test that is right only when quick fails.

Only the processes that run tests are stopped, not those that they start: the product goes on meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

LONGEST_S = 4.0
MEAN_BETWEEN_S = 8.0


def children(pid: int) -> list[int]:
    """Give the direct children of a process."""
    found = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found += [int(child) for child in tasks.read_text().split()]
    return found


def runs_tests(pid: int) -> bool:
    """Say whether a process is a worker of pytest-xdist."""
    try:
        return b"sys.stdin.readline" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return False


def stop_now_and_then(pid: int, chance: random.Random, ended: threading.Event) -> None:
    """Stop one of the processes that run tests at a time, for up to some seconds."""
    while not ended.wait(chance.expovariate(1 / MEAN_BETWEEN_S)):
        workers = [child for child in children(pid) if runs_tests(child)]
        stopped = chance.choice(workers) if workers else pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGSTOP)
            ended.wait(chance.uniform(0.5, LONGEST_S))
            os.kill(stopped, signal.SIGCONT)


def main() -> int:
    """Run pytest with the arguments that are left; gives its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    known, rest = parser.parse_known_args()
    running = subprocess.Popen([sys.executable, "-m", "pytest", *rest])
    ended = threading.Event()
    stopper = threading.Thread(target=stop_now_and_then, args=(running.pid, random.Random(known.seed), ended))
    stopper.start()
    try:
        return running.wait()
    finally:
        ended.set()
        stopper.join()


if __name__ == "__main__":
    sys.exit(main())
