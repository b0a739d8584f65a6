"""A pipeline on a Redis that the operator does not run: with a user, a password in a Secret, and no Sentinel."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from support.cluster_parts import GROUP, Running, reading

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]

PASSWORD = "sesame-of-a-test"


USER = f"cache on >{PASSWORD} ~* &* +@all"
SERVE = """
import os, sys
from sheetanchor.managed_redis.server_binary import find_binary
program = find_binary().path
os.execv(program, [program, *sys.argv[1:]])
"""
ASK = f"""
import asyncio, sys
from sheetanchor.store.redis_client import redis_client
async def main():
    redis = redis_client("redis://cache:{PASSWORD}@127.0.0.1:6379")
    print((await redis.execute_command(*sys.argv[1:])).decode())
    await redis.aclose()
asyncio.run(main())
"""


def server(image: str) -> list[dict[str, Any]]:
    """A Redis of its own out of the product's image, with one user, and the Secret with that user's password."""
    words = ["--port", "6379", "--save", "", "--dir", "/tmp", "--protected-mode", "no"]
    words += ["--user", *USER.split(), "--user", "default", "off"]
    container = {
        "name": "server",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", SERVE, *words],
        "readinessProbe": {"tcpSocket": {"port": 6379}, "periodSeconds": 1},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    labels = {"app": "cache"}
    template = {"metadata": {"labels": labels}, "spec": pod}
    workload = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    ports = {"selector": labels, "ports": [{"port": 6379}]}
    named = {"metadata": {"name": "cache"}}
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", **named, "spec": workload},
        {"apiVersion": "v1", "kind": "Service", **named, "spec": ports},
        {"apiVersion": "v1", "kind": "Secret", **named, "stringData": {"password": PASSWORD}},
    ]


def test_an_external_redis_is_used(btc: Running, image: str) -> None:
    """Ready, re-anchored and predicting on it, with nothing of Redis made; a run that is cut off leaves no lock."""
    external = {
        "url": "redis://cache:6379",
        "username": "cache",
        "passwordSecret": {"name": "cache", "key": "password"},
    }
    spec = {name: btc.resource["spec"][name] for name in ("symbols", "exchange")}
    body = {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "PredictionPipeline",
        "metadata": {"name": "outside"},
        "spec": {**spec, "zones": ["a", "b"], "redis": {"external": external}},
    }
    outside = Running(btc.cluster, btc.namespace, "outside")
    outside.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(server(image)))
    outside.kubectl("rollout", "status", "deployment/cache", "--timeout=60s")

    def lock() -> str:
        return outside.kubectl("exec", "deploy/cache", "--", "python3", "-c", ASK, "TYPE", "reanchor:{BTCUSDT}").strip()

    try:
        outside.kubectl("apply", "-f", "-", input=yaml.safe_dump(body))
        took_s = outside.until_sound(120)
        print(f"on an external Redis: sound after {took_s:.0f} s")

        assert ("True", "External") == tuple(outside.condition("RedisHealthy")[name] for name in ("status", "reason"))
        assert [] == outside.pods("redis")
        with reading(outside.api, outside.namespace, outside.name):
            epoch = outside.status["epoch"]
            outside.kubectl("annotate", "pp", "outside", "sheetanchor.dev/reanchor=now")
            outside.wait(lambda: outside.status["epoch"] == epoch + 1, 30, "it is rebuilt there")

        fault = outside.fault(kind="slow_rest", n=100, seconds=5)
        try:
            outside.kubectl("annotate", "pp", "outside", "sheetanchor.dev/reanchor=again", "--overwrite")
            outside.wait(lambda: lock() == "string", 30, "a run holds the lock")
            outside.kubectl("delete", "pp", "outside", "--timeout=60s")
            outside.wait(lambda: lock() == "none", 60, "the lock of the run that was cut off is gone")
        finally:
            outside.clear(fault)
    finally:
        outside.kubectl("delete", "pp,deployment,service,secret", "outside", "cache", "--ignore-not-found")
    selector = "sheetanchor.dev/pipeline=outside"
    outside.wait(
        lambda: not json.loads(outside.kubectl("get", "pods,jobs", "-l", selector, "-o", "json"))["items"],
        60,
        "nothing of it is left",
    )
