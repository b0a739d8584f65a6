"""The API server that other tests rest on."""

from __future__ import annotations

from support.apiserver import ApiServer


def test_it_validates_strictly(apiserver: ApiServer) -> None:
    """A field that no schema knows is refused, with its name."""
    manifest = '{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "odd"}, "dota": {}}'

    said = apiserver.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", text_in=manifest, check=False)

    assert 'unknown field "dota"' in said


def test_it_keeps_what_is_applied(apiserver: ApiServer) -> None:
    """What is applied server-side is read back, with its field manager."""
    kept = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}, "data": {"answer": "42"}}

    apiserver.apply(kept, namespace="default")

    found = apiserver.json("configmap/kept", "-n", "default", "--show-managed-fields")
    assert {"answer": "42"} == found["data"]
    assert "Apply" == found["metadata"]["managedFields"][0]["operation"]
    apiserver.kubectl("delete", "configmap/kept", "-n", "default")
