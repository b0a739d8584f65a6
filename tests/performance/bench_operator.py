"""What an operator that manages many pipelines costs: memory, requests and time, against a real API server.

The server has no nodes and no controllers: pods do not exist, and nothing but the operator writes. That is the
operator's own part, which must not grow with time, and with the number of pipelines only in proportion.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.apiserver import ApiServer  # noqa: E402  it is found by the path above
from support.operator_parts import define  # noqa: E402
from support.operator_process import OperatorProcess, looks, operating  # noqa: E402

NAMESPACE = "bench"
MIB = 1 << 20
CHILDREN_EACH = 27


def create(server: ApiServer, first: int, last: int) -> None:
    """Create pipelines of numbers first to last - 1."""
    path = f"/apis/sheetanchor.dev/v1alpha1/namespaces/{NAMESPACE}/predictionpipelines"

    def one(number: int) -> None:
        metadata = {"name": f"p{number:04d}"}
        body = {"apiVersion": "sheetanchor.dev/v1alpha1", "kind": "PredictionPipeline", "metadata": metadata}
        server.ask(path, method="POST", body={**body, "spec": {"symbols": ["BTCUSDT"]}})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, range(first, last)))


def written(operator: OperatorProcess) -> float:
    """Count the objects that have been written."""
    counts = operator.metrics()
    return sum(value for name, value in counts.items() if name.startswith("sheetanchor_operator_applies_total"))


def wait(operator: OperatorProcess, total: int, within_s: float) -> float:
    """Wait until all children of so many pipelines are made; gives the seconds."""
    started_s = time.monotonic()
    while written(operator) < total * CHILDREN_EACH:
        assert operator.process is not None
        assert operator.process.poll() is None, operator.said()[-2000:]
        assert time.monotonic() - started_s < within_s, f"{written(operator):.0f} objects only"
        time.sleep(1)
    return time.monotonic() - started_s


def row(server: ApiServer, operator: OperatorProcess, pipelines: int, made_s: float, watch_s: float) -> None:
    """Observe a quiet operator for a while and print what it costs."""
    time.sleep(10)
    looks_before, cpu_before, writes_before = looks(operator), cpu_s(operator), written(operator)
    time.sleep(watch_s)
    looked = looks(operator) - looks_before
    cpu = (cpu_s(operator) - cpu_before) / watch_s
    print(
        f"{pipelines:>9} {made_s:>9.1f} {operator.rss() / MIB:>9.0f} {looked / watch_s:>9.1f} {cpu * 100:>8.0f} "
        f"{written(operator) - writes_before:>9.0f}",
        flush=True,
    )


def cpu_s(operator: OperatorProcess) -> float:
    """Give the processor time that the operator has used."""
    return operator.metrics()["process_cpu_seconds_total"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipelines", type=int, nargs="*", default=[100, 500, 1000], help="numbers to measure at")
    parser.add_argument("--watch-s", type=float, default=60.0, help="seconds to observe each; resyncs go on meanwhile")
    parser.add_argument("--again", type=int, default=2, help="further observations at the largest number")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = ApiServer(Path(folder))
        try:
            server.start()
            define(server)
            server.kubectl("create", "namespace", NAMESPACE)
            secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "binance-api-key"}}
            server.apply({**secret, "stringData": {"api-key": "k"}}, namespace=NAMESPACE)
            measure(server, Path(folder), args.pipelines, args.watch_s, args.again)
        finally:
            server.stop()


def measure(server: ApiServer, folder: Path, numbers: list[int], watch_s: float, again: int) -> None:
    """Measure at growing numbers of pipelines, then several times more at the largest."""
    with operating(server, NAMESPACE, folder) as operator:
        while not operator.leads:
            time.sleep(0.5)
        titles = ("pipelines", "made s", "RSS MiB", "looks/s", "CPU %", "writes")
        print(" ".join(f"{title:>9}" for title in titles))
        before = 0
        for number in numbers:
            create(server, before, number)
            made_s = wait(operator, number, within_s=3600)
            row(server, operator, number, made_s, watch_s)
            before = number
        for _ in range(again):
            row(server, operator, before, 0.0, watch_s)


if __name__ == "__main__":
    main()
