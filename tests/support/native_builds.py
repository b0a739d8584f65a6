"""Builds of the native decoder, each in a process of its own, measured in turns on the shipped recording.

On a machine that others use, one run says little, and two runs at different times say nothing about each other. So
builds take turns within one run, and each stretch of the recording counts with its fastest time: what a stretch does
is the same in every run, and whatever else the machine did can only have made it slower. A run that reads the frames
and keeps nothing is measured beside the others; the ratio to it moves less from machine to machine than nanoseconds do.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from sheetanchor.contract import pack_frames

STRETCH_FRAMES = 1000
OTHER_SYMBOL = "OTHER"
"""A market of another symbol reads and checks every frame, and leaves it at that."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is done with every message of the recording.

    Attributes:
        entry_frames: Frames per stream entry, a divisor of 1,000.
        markets: So many markets are fed in turn with each entry.
        is_kept: Whether books and windows are built; else frames are only read and checked.
        template: Id of the messages that are fed; 0 for all.
    """

    entry_frames: int
    markets: int = 1
    is_kept: bool = True
    template: int = 0

    def of(self, frames: Sequence[tuple[int, bytes]]) -> Sequence[tuple[int, bytes]]:
        """Those of the frames that are fed."""
        return [frame for frame in frames if self.template in {0, int.from_bytes(frame[1][2:4], "little")}]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What markets are fed with: plain values, so that a build is measured without the modules of another.

    Attributes:
        symbol: Of every frame.
        snapshot: The first arguments of `load_snapshot`.
        frames: As `pack_frames` takes them.
    """

    symbol: str
    snapshot: tuple[int, int, int, list[tuple[int, int]], list[tuple[int, int]]]
    frames: Sequence[tuple[int, bytes]]


def installed() -> Path:
    """The native module that this environment has."""
    found = importlib.util.find_spec("sheetanchor._decoder")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin)


def memory_kib(build: Path, markets: int, market: Recorded) -> float:
    """Resident memory of each of so many markets that were fed with the whole recording."""
    with shared(market) as file, started(build, file) as process:
        return float(answer(process, markets)) / markets


def fastest(builds: Sequence[Path], work: Work, runs: int, market: Recorded) -> list[float]:
    """Nanoseconds per message of each build, every stretch of the recording at its fastest of so many runs in turn."""
    with shared(market) as file, ExitStack() as stack:
        processes = [stack.enter_context(started(build, file)) for build in builds]
        best: list[list[int]] = [[] for _ in builds]
        for _ in range(runs):
            for nth, process in enumerate(processes):
                took = answer(process, astuple(work))
                best[nth] = [min(pair) for pair in zip(best[nth], took, strict=True)] if best[nth] else took
    return [sum(stretches) / (len(work.of(market.frames)) * work.markets) for stretches in best]


def in_turns(works: Mapping[str, Work], runs: int, market: Recorded) -> dict[str, float]:
    """Nanoseconds per message of each work with the installed build, the works taking turns as builds do."""
    best: dict[str, list[int]] = {}
    with shared(market) as file, started(installed(), file) as process:
        for _ in range(runs):
            for name, work in works.items():
                took = answer(process, astuple(work))
                best[name] = [min(pair) for pair in zip(best.get(name, took), took, strict=True)]
        assert process.stdin is not None
        process.stdin.close()
    return {name: sum(best[name]) / (len(work.of(market.frames)) * work.markets) for name, work in works.items()}


@contextmanager
def shared(market: Recorded) -> Iterator[Path]:
    """The market in a file, for processes that measure."""
    with tempfile.NamedTemporaryFile() as file:
        pickle.dump(astuple(market), file)
        file.flush()
        yield Path(file.name)


def started(build: Path, market: Path) -> subprocess.Popen[str]:
    """A process that measures one build on the market of a file."""
    command = [sys.executable, str(Path(__file__).resolve()), str(build), str(market)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str], question: object) -> Any:
    """What the process measures: nanoseconds of each stretch for a work, KiB of memory for a number of markets."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def module_at(path: Path) -> Any:
    """The native module of a file. A process can hold one only: a second one would get the first one's types."""
    spec = importlib.util.spec_from_file_location("sheetanchor._decoder", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stretches_ns(native: Any, recorded: Recorded, work: Work) -> list[int]:
    """Feed the whole recording to fresh markets once; nanoseconds of each stretch."""
    frames, out = work.of(recorded.frames), []
    markets = [native.Market(recorded.symbol if work.is_kept else OTHER_SYMBOL) for _ in range(work.markets)]
    for market in markets:
        market.load_snapshot(*recorded.snapshot, 0)
    for start in range(0, len(frames), STRETCH_FRAMES):
        stretch = frames[start : start + STRETCH_FRAMES]
        batches = [
            pack_frames(stretch[at : at + work.entry_frames]) for at in range(0, len(stretch), work.entry_frames)
        ]
        began = time.perf_counter_ns()
        for batch in batches:
            for market in markets:
                market.feed(0, batch, 0)
        out.append(time.perf_counter_ns() - began)
    return out


def resident_kib() -> int:
    """Memory of this process."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE") // 1024


def fed_kib(native: Any, recorded: Recorded, count: int) -> int:
    """By how much the memory grows when so many markets are made and fed with the whole recording."""
    frames = recorded.frames
    entries = [pack_frames(frames[at : at + STRETCH_FRAMES]) for at in range(0, len(frames), STRETCH_FRAMES)]
    before, markets = resident_kib(), [native.Market(recorded.symbol) for _ in range(count)]
    for market in markets:
        market.load_snapshot(*recorded.snapshot, 0)
        for entry in entries:
            market.feed(0, entry, 0)
    return resident_kib() - before


def main() -> None:
    """Measure what each line of the input asks for."""
    native, recorded = module_at(Path(sys.argv[1])), Recorded(*pickle.loads(Path(sys.argv[2]).read_bytes()))
    for line in sys.stdin:
        asked = json.loads(line)
        found = (
            fed_kib(native, recorded, asked) if isinstance(asked, int) else stretches_ns(native, recorded, Work(*asked))
        )
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
