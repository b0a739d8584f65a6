"""What ends up in a cluster, rendered: the chart with several values, the children of several pipelines."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from cluster.bed.tools import program
from sheetanchor_operator.children.manifests import children
from sheetanchor_operator.children.pod_template import WorkloadRole, pod_template
from sheetanchor_operator.names import Component
from sheetanchor_operator.observation import Observed
from support.pipeline_parts import DEFAULTS, NOW_US, OWN_EXCHANGE, ZONES, password, pipeline

CHART = Path(__file__).parents[2] / "charts" / "sheetanchor"
Manifest = dict[str, Any]

EVERYTHING: dict[str, Any] = {
    "symbols": ["BTCUSDT", "ETHUSDT"],
    "image": "registry.example/own:1",
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry"}],
    "logLevel": "debug",
    "exchange": {**OWN_EXCHANGE, "apiKeySecret": {"name": "exchange", "key": "key"}},
    "zones": ["zone-a", "zone-b"],
    "processor": {"replicas": 3, "gaps": {"suppress": ["volume_anomaly"]}},
    "inference": {
        "replicas": 4,
        "model": {"persistentVolumeClaim": {"claimName": "models", "path": "prod"}},
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
    },
    "redis": {
        "managed": {
            "maxMemory": "1Gi",
            "storage": {"size": "5Gi", "storageClassName": "fast"},
            "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "2560Mi"}},
        }
    },
    "reanchor": {"schedule": "0 3 * * *"},
    "scheduling": {
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "market", "operator": "Exists"}],
    },
}
EXTERNAL: dict[str, Any] = {
    "redis": {
        "external": {
            "url": "rediss://cache.example:6380/1",
            "username": "sheet",
            "passwordSecret": {"name": "cache"},
            "caSecret": {"name": "cache-ca"},
        }
    }
}
PIPELINES: dict[str, dict[str, Any]] = {
    "sample": {},
    "everything": EVERYTHING,
    "external-redis": EXTERNAL,
    "model-map": {"inference": {"model": {"configMap": {"name": "momentum"}}}},
    "maintenance": {"maintenance": {"enabled": True, "reason": "new nodes"}},
}
SYSTEM = "rendered-restricted"
"""Where the chart is installed; a namespace that enforces Pod Security "restricted"."""

CHARTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {
        "image": {"repository": "registry.example/sheetanchor", "digest": f"sha256:{'0' * 64}"},
        "imagePullSecrets": [{"name": "registry"}],
        "workloadImage": "registry.example/workloads:1",
        "replicas": 3,
        "logLevel": "debug",
        "monitoring": {
            "podMonitor": True,
            "prometheusRule": True,
            "labels": {"release": "prometheus"},
            "namespaces": ["monitoring"],
        },
        "podAnnotations": {"example.com/team": "market"},
        "nodeSelector": {"disk": "fast"},
    },
    "namespaced": {"watchNamespaces": [SYSTEM], "crds": {"keep": False}},
    "bare": {
        "crds": {"install": False},
        "monitoring": {"annotations": False, "podMonitor": False, "prometheusRule": False},
        "networkPolicy": {"enabled": False},
    },
}


def manifests_of(spec: dict[str, Any], namespace: str = "market") -> list[Manifest]:
    """Render all children of a pipeline, and the Job of a re-anchor as its pod."""
    one = pipeline(spec, namespace=namespace)
    observed = Observed(NOW_US, zones=ZONES)
    role = WorkloadRole(Component.REANCHOR, one.spec.reanchor.resources, served=False)
    template = pod_template(one, observed, DEFAULTS, role)
    template["spec"]["restartPolicy"] = "Never"
    job: Manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "btc-reanchor", "namespace": namespace, "labels": template["metadata"]["labels"]},
        "spec": {"backoffLimit": 0, "template": template},
    }
    return [*children(one, observed, DEFAULTS, password), job]


def rendered_chart(values: dict[str, Any], *flags: str) -> list[Manifest]:
    """Render the chart with values on top of its own."""
    command = [
        program("helm"),
        "template",
        "sheetanchor",
        CHART,
        "-n",
        SYSTEM,
        "-f",
        "-",
        "--kube-version",
        "1.34.0",
        *flags,
    ]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def pod_specs(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Give the pod templates of workloads, and pods, by kind and name."""
    found = {}
    for one in manifests:
        name = f"{one['kind']}/{one['metadata']['name']}"
        if one["kind"] == "Pod":
            found[name] = one
        elif "template" in (one.get("spec") or {}):
            found[name] = _with_claims(one["spec"])
    return found


def _with_claims(spec: Manifest) -> Manifest:
    """Give a workload's template with the volumes that a StatefulSet adds."""
    template: Manifest = spec["template"]
    claims = [one["metadata"]["name"] for one in spec.get("volumeClaimTemplates", ())]
    added = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims]
    volumes = [*template["spec"].get("volumes", ()), *added]
    return {**template, "spec": {**template["spec"], "volumes": volumes}}
