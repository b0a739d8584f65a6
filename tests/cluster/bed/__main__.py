"""The cluster test bed's commands."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cluster.bed import given, host, kind, product
from cluster.bed.cache import locked, root
from cluster.bed.run import BedError, CannotHost, say
from cluster.bed.tools import api_programs, tool_path


def up() -> None:
    """Have four nodes run."""
    require_host()
    with locked(kind.NAME):
        kind.start()
    say(f"export KUBECONFIG={kind.KUBECONFIG} PATH={tool_path()}:$PATH")


def sample() -> None:
    """Have four nodes run, and on them the operator and the recorded market's pipeline."""
    if not given.kubeconfig():
        up()
    product.sample()
    print(product.next_commands())


def load(*archives: str) -> None:
    """Give images' archives to the nodes."""
    with locked(kind.NAME):
        for archive in archives:
            kind.load(Path(archive).resolve())


def down() -> None:
    """Remove every trace but the cache."""
    if not host.missing() or host.engine() == "docker":
        with locked(kind.NAME):
            kind.delete()
    (root() / f"{kind.NAME}.lock").unlink(missing_ok=True)
    say(f"no trace is left but the cache in {root()}, which makes the next cluster quick, and Debian packages")


def tools() -> None:
    """Compile what tests need without a cluster."""
    if reason := host.reason_against_tools():
        raise CannotHost(reason)
    host.install("openssl")  # keys of the API server that runs without nodes
    api_programs()
    tool_path()


def prepare() -> None:
    """Build everything that takes long, start nothing."""
    tools()
    if given.kubeconfig():
        return
    require_host()
    if host.engine() == "podman":
        host.install()
        kind.node_archive()
    product.archive()


def hosts() -> None:
    """Say whether this machine can host a cluster, or may use one that was made elsewhere."""
    if not given.kubeconfig():
        require_host()
    elif reason := product.reason_to_spare():
        raise CannotHost(f"of the given cluster: {reason}")


def require_host() -> None:
    """Refuse with the reason if this machine cannot host a cluster."""
    if reason := host.reason_against():
        raise CannotHost(reason)


def main() -> int:
    """Run one command; an expected error is one line."""
    commands = {command.__name__: command for command in (up, sample, down, load, tools, prepare, hosts)}
    parser = argparse.ArgumentParser(prog="cluster.bed", description=__doc__)
    parser.add_argument("command", choices=commands)
    parser.add_argument("arguments", nargs="*", help="archives of images, for load")
    given = parser.parse_args()
    try:
        commands[given.command](*given.arguments)
    except CannotHost as trouble:
        print(f"no cluster can be hosted here, so nothing that needs one runs: {trouble}", file=sys.stderr)
        return 2
    except BedError as trouble:
        print(f"failed: {trouble}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
