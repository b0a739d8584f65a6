"""The network of the fault kit, with real sockets: who is who, one direction at a time, and everything is undone."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from conftest import free_port_number, wait_until
from faults.network import CLIENT_HOST, SERVER_HOST, Network, cut, descendants, slow

WITHIN_S = 30

TALKER = """
import socket, sys
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
for line in sys.stdin:
    link.sendall(line.encode())
    print(link.makefile().readline().strip(), flush=True)
"""


class Server(socketserver.ThreadingTCPServer):
    """Answers each line with the line, and notes it."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int) -> None:
        self.heard: list[str] = []
        heard = self.heard

        class Echo(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):
                    for line in self.rfile:
                        heard.append(line.decode().strip())
                        self.wfile.write(line)

        super().__init__((SERVER_HOST, port), Echo)


@pytest.fixture
def port() -> int:
    return free_port_number()


@pytest.fixture
def server(port: int) -> Iterator[Server]:
    with Server(port) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def network(server: Server, port: int) -> Iterator[Network]:
    made = Network(seed=1)
    made.listen(port, "there")
    yield made
    made.close()


@contextlib.contextmanager
def talker(network: Network, port: int, place: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a place that says what it is given and prints the answers."""
    process = subprocess.Popen(
        [sys.executable, "-c", TALKER, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    network.belongs(process.pid, place)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ask(port: int, line: str) -> str:
    """Ask from outside."""
    with socket.create_connection((CLIENT_HOST, port), timeout=WITHIN_S) as link:
        link.sendall(line.encode() + b"\n")
        return link.makefile().readline().strip()


def test_a_partition_cuts_one_place_and_no_other(network: Network, server: Server, port: int) -> None:
    """Data sent during it arrives after it, on the same connection; other places are not affected."""
    with talker(network, port, "here") as process:
        say(process, "before")
        assert "before" == hear(process)

        with contextlib.ExitStack() as stack:
            for rule in cut({"here"}, {"there"}):
                stack.enter_context(network.rule(rule))
            say(process, "during")
            assert "outside" == ask(port, "outside")
            assert "during" not in server.heard

        assert "during" == hear(process)


def test_one_direction_is_cut_and_the_other_is_not(network: Network, server: Server, port: int) -> None:
    """Answers are lost while questions arrive."""
    with talker(network, port, "here") as process:
        say(process, "before")
        assert "before" == hear(process)

        [rule] = cut({"there"}, {"here"}, both=False)
        with network.rule(rule):
            say(process, "during")
            wait_until(lambda: "during" in server.heard, within_s=WITHIN_S, what="the question has arrived")

        assert "during" == hear(process)


def test_a_new_connection_through_a_cut_waits(network: Network, server: Server, port: int) -> None:
    """It reaches the server once the cut is undone, even if that is because a test has failed."""
    with contextlib.suppress(ZeroDivisionError), contextlib.ExitStack() as stack:
        for rule in cut({"outside"}, {"there"}):
            stack.enter_context(network.rule(rule))
        with socket.create_connection((CLIENT_HOST, port), timeout=WITHIN_S) as link:
            link.sendall(b"early\n")
            link.settimeout(0.2)
            with pytest.raises(TimeoutError):
                link.recv(1)
        assert [] == server.heard
        raise ZeroDivisionError

    assert "late" == ask(port, "late")


def test_a_slow_link_delays_and_keeps_the_order(network: Network, port: int) -> None:
    """Both ways are slow, lost packets come again, and nothing is mixed up."""
    with contextlib.ExitStack() as stack:
        for rule in slow({"outside"}, {"there"}, delay_s=0.1, loss=0.3):
            stack.enter_context(network.rule(rule))
        began_s = time.monotonic()
        with socket.create_connection((CLIENT_HOST, port), timeout=WITHIN_S) as link:
            answers = link.makefile()
            for number in range(20):
                link.sendall(f"{number}\n".encode())
            heard = [answers.readline().strip() for _ in range(20)]

    assert [str(number) for number in range(20)] == heard
    assert time.monotonic() - began_s >= 0.2


def test_a_server_that_is_gone_ends_the_connection(port: int) -> None:
    """No client hangs on a connection to a server that does not exist."""
    network = Network()
    try:
        network.listen(port, "there")
        link = socket.create_connection((CLIENT_HOST, port), timeout=WITHIN_S)
        with link, contextlib.suppress(ConnectionError):
            assert b"" == link.recv(1)
    finally:
        network.close()


def test_children_are_where_their_parents_are() -> None:
    """A run that a processor starts is in the processor's place."""
    parent = subprocess.Popen(
        [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '60'])"], start_new_session=True
    )
    try:
        wait_until(lambda: descendants(parent.pid), within_s=WITHIN_S, what="the child runs")
    finally:
        for pid in descendants(parent.pid):
            subprocess.run(["kill", "-9", str(pid)], check=True)
        parent.wait()

    assert [] == descendants(parent.pid)
