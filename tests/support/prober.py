"""A kubelet as far as probes go, in a process of its own: it asks one port again and again, and prints each answer.

Beside each answer stands for how long the process that was asked, and this one, could have run and had no processor: on
a busy machine that is most of the time an answer takes, and it is none of theirs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from support.role_parts import asked_closely

EVERY_S = 0.02


def starved_s(process: str) -> float:
    """Give how long the threads of a process have waited for a processor; one waits for another, so that it adds up."""
    waited_ns = 0
    for thread in os.listdir(f"/proc/{process}/task"):
        try:
            waited_ns += int(Path(f"/proc/{process}/task/{thread}/schedstat").read_text().split()[1])
        except OSError:
            continue  # it has ended
    return waited_ns / 1e9


def main(port: int, process: str) -> None:
    """Ask until SIGTERM."""
    while True:
        before_s = starved_s(process) + starved_s("self")
        asked = asked_closely(port)
        waited_s = starved_s(process) + starved_s("self") - before_s
        print(json.dumps({**asdict(asked), "starved_s": waited_s}), flush=True)
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
