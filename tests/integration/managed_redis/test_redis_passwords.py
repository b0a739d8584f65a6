"""Passwords of a managed Redis stay out of the folder that outlives a pod."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from conftest import free_port_number
from sheetanchor.managed_redis.command import NodeProcess
from sheetanchor.managed_redis.topology import SentinelReport
from sheetanchor.runtime.settings import REDIS_USERS, RedisSettings
from sheetanchor.web.server import Health
from support.patience import patience


@pytest.mark.parametrize("sentinel", [False, True], ids=["server", "sentinel"])
async def test_no_password_is_on_the_volume(tmp_path: Path, sentinel: bool) -> None:
    """Nor one of a version that wrote it there; what a Sentinel must know again is, without any."""
    passwords, data, config = tmp_path / "passwords", tmp_path / "data", tmp_path / "config"
    passwords.mkdir()
    data.mkdir()
    for user in REDIS_USERS:
        (passwords / user).write_text(f"secret-of-{user}")
    for name in ("redis.conf", "users.acl", "sentinel.conf"):
        (data / name).write_text("sentinel auth-pass sheetanchor secret-of-sentinel\n")
    own = f"127.0.0.1:{free_port_number()}:{free_port_number()}"
    settings = RedisSettings(
        nodes=[own],
        node=own,
        bind="127.0.0.1",
        data_dir=data,
        config_dir=config,
        password_dir=passwords,
        persistent=True,
        sentinel=sentinel,
        quorum=1,
        min_replicas_to_write=0,
        hand_over_s=0,
    )
    process = NodeProcess(settings, Health("test", []))
    await process.start()
    watch = asyncio.create_task(process.watch())
    async with patience():
        while process.state.watched is None and process.state.replication is None:
            await asyncio.sleep(0.1)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    await process.stop()

    own_files = {"sentinel.conf"} if sentinel else {"redis.conf", "users.acl"}
    assert own_files <= {path.name for path in config.iterdir()}
    left = [path for path in data.rglob("*") if path.is_file() and path.name not in _others(sentinel)]
    assert left
    assert [] == [path for path in left if b"secret-of" in path.read_bytes()]
    if sentinel:
        for path in config.iterdir():
            path.unlink()
        host, port, _ = own.split(":")
        assert SentinelReport((host, int(port)), 0) == NodeProcess(settings, Health("test", []))._read_notes()


def _others(sentinel: bool) -> set[str]:
    """Files that the node's other container removes, in a folder of its own."""
    return {"redis.conf", "users.acl"} if sentinel else {"sentinel.conf"}
