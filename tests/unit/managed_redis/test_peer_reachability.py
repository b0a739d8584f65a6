"""What a Sentinel reports about its peers, for the operator's judgement of zones."""

from __future__ import annotations

from sheetanchor.managed_redis.peer_reachability import parse_reachability


def instance(name: str, flags: str, port: str = "6379", waits_ms: int = 0) -> dict[str, str]:
    ip = f"{name}.redis.market.svc.cluster.local."
    return {"name": f"{name}:{port}", "ip": ip, "port": port, "flags": flags, "last-ping-sent": str(waits_ms)}


def test_down_is_what_the_sentinel_itself_does_not_reach() -> None:
    """By host and port; other flags, such as a lost link of the replica's, say nothing about reaching it."""
    found = parse_reachability(
        {"sentinel_tilt": 0},
        [instance("n0", "master"), instance("n1", "s_down,slave,disconnected"), instance("n2", "slave,disconnected")],
        [instance("n1", "s_down,sentinel", "26379"), instance("n2", "sentinel", "26379")],
    )

    here = "redis.market.svc.cluster.local"
    assert {f"n0.{here}:6379": True, f"n1.{here}:6379": False, f"n2.{here}:6379": True} == found.servers
    assert {f"n1.{here}:26379": False, f"n2.{here}:26379": True} == found.sentinels
    assert 1500 == found.to_json(1.5)["age_ms"]


def test_a_server_that_has_not_answered_yet_is_neither() -> None:
    """After a failover a Sentinel starts over with all servers, and the lost one counts as down some seconds later."""
    found = parse_reachability({"sentinel_tilt": 0}, [instance("n0", "slave", waits_ms=900)], [])

    assert [None] == [*found.servers.values()]


def test_tilt_is_passed_on() -> None:
    """As a number from redis-py, or as text."""
    assert [True, True, False, False] == [
        parse_reachability({"sentinel_tilt": value}, [], []).tilt for value in (1, "1", 0, "0")
    ]
