"""The product's image for the nodes, and the chart and the sample on the cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from cluster.bed import given, kind
from cluster.bed.cache import digest, root
from cluster.bed.run import BedError, run, say
from cluster.bed.tools import log, tool_path

IMAGE = "localhost/sheetanchor:dev"
LOCK = ("requirements.lock", ".ci/locked.py")
SOURCES = ("pyproject.toml", *LOCK, "README.md", "LICENSE", "decoder", "operator", "workloads")
CHART = kind.CHECKOUT / "charts" / "sheetanchor"
SAMPLE = CHART / "examples" / "recorded-market.yaml"
NAMESPACE, RELEASE = "sheetanchor-system", "sheetanchor"
MARKET = "market"
DEFINITIONS = ("predictionpipelines.sheetanchor.dev", "reanchors.sheetanchor.dev")
IMAGE_WITHIN_S = 1200  # wheels and a Debian root from slow mirrors
INSTALL_WITHIN_S = 180
SAMPLE_WITHIN_S = 180


def environment() -> dict[str, str]:
    """What helm and kubectl must find to mean the cluster at hand."""
    named = given.kubeconfig()
    return {**kind.environment(), **({"KUBECONFIG": str(named)} if named else {})}


def archive() -> Path:
    """Return the archive of the product's image, built now if the sources have changed."""
    folder = root() / "image"
    folder.mkdir(exist_ok=True)
    path = folder / f"{kind.NAME}.tar"  # another checkout's image is another one
    made_from, sources = path.with_suffix(".made-from"), digest(*(kind.CHECKOUT / name for name in SOURCES))
    if path.exists() and made_from.exists() and made_from.read_text() == sources:
        return path
    say("building the product's image")
    made_from.unlink(missing_ok=True)
    script = kind.CHECKOUT / "workloads" / "image.sh"
    log("image").unlink(missing_ok=True)
    run("bash", script, IMAGE, path, within_s=IMAGE_WITHIN_S, folder=kind.CHECKOUT, log=log("image"))
    made_from.write_text(sources)
    return path


def image() -> str:
    """Have the product's image on the nodes and return its name; on a given cluster it is only named.

    The name changes with the contents: under the same name no running pod would be replaced by a newer one.
    """
    if given.kubeconfig():
        return given.image()
    path = archive()
    name = f"{IMAGE}-{digest(kind.contents(path))}"
    kind.load(path, IMAGE, name)
    return name


def helm(*arguments: str | Path, within_s: float = INSTALL_WITHIN_S) -> str:
    """Run helm on the cluster at hand."""
    return run(tool_path() / "helm", *arguments, within_s=within_s, extra_env=environment())


def kubectl(*arguments: str | Path, text_in: str | None = None, within_s: float = 60) -> str:
    """Run kubectl on the cluster at hand."""
    return run(tool_path() / "kubectl", *arguments, within_s=within_s, extra_env=environment(), text_in=text_in)


def install(name: str, *options: str) -> str:
    """Install the chart, or bring what is installed up to date, and wait until the operator is ready."""
    repository, _, tag = name.rpartition(":")
    say("installing the chart")
    command = ["upgrade", RELEASE, str(CHART), "--install", "--namespace", NAMESPACE, "--create-namespace"]
    # CRDs that were applied by hand, or belong to another release, become this release's.
    command.append("--take-ownership")
    values = ["--set", f"image.repository={repository}", "--set-string", f"image.tag={tag}"]
    limit = ["--wait", "--timeout", f"{INSTALL_WITHIN_S - 20}s"]
    return helm(*command, *values, *options, *limit)


def installed() -> bool:
    """Say whether the chart is installed, in any state."""
    releases = json.loads(helm("list", "--all", "--namespace", NAMESPACE, "-o", "json"))
    return any(release["name"] == RELEASE for release in releases)


def defined() -> bool:
    """Say whether the cluster has our kinds."""
    return bool(kubectl("get", "crd", *DEFINITIONS, "--ignore-not-found", "-o", "name").strip())


def reason_to_spare() -> str:
    """Say why a given cluster must be left alone; empty when nothing of ours is at work there.

    The tests install, upgrade and remove the chart, and an operator of theirs would take hold of every pipeline.
    """
    if installed():
        return f"the release {RELEASE} is installed in {NAMESPACE} there, and the tests would replace it"
    found = kubectl("get", "predictionpipelines", "-A", "-o", "name").split() if defined() else []
    if found:
        return f"there are PredictionPipelines ({', '.join(found[:3])}), and the tests' operator would run them"
    return ""


def make_namespace(name: str, labels: Mapping[str, str] | None = None) -> None:
    """Have a namespace that refuses every pod that is not restricted."""
    wanted = {"pod-security.kubernetes.io/enforce": "restricted", **(labels or {})}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": wanted}}
    kubectl("apply", "-f", "-", text_in=json.dumps(body))


def apply_sample(namespace: str, name: str) -> None:
    """Apply the sample of the recorded market; its exchange runs the image that was loaded."""
    text = SAMPLE.read_text()
    for line in text.splitlines():
        word, _, written = line.strip().removeprefix("- ").partition(": ")
        if word == "image" and "sheetanchor:" in written:
            text = text.replace(line, line.replace(written, name))
    kubectl("-n", namespace, "apply", "-f", "-", text_in=text)


def sample() -> None:
    """Have the sample run in a namespace of its own and wait until all of its pipeline is ready."""
    name = image()
    install(name)
    make_namespace(MARKET)
    say("applying the sample")
    apply_sample(MARKET, name)
    until = ["--for=jsonpath={.status.phase}=Running", f"--timeout={SAMPLE_WITHIN_S}s"]
    try:
        kubectl("-n", MARKET, "wait", "pp", "--all", *until, within_s=SAMPLE_WITHIN_S + 20)
    except BedError as trouble:
        say(kubectl("-n", MARKET, "get", "pp,pods"))
        raise BedError(f"the sample is not ready: {trouble}") from None
    print(kubectl("-n", MARKET, "get", "pp,pods").rstrip())


def next_commands() -> str:
    """Say what to do with a cluster on which the sample runs."""
    path = os.path.relpath(environment()["KUBECONFIG"], Path.cwd())
    return "\n".join(
        (
            "",
            f"export KUBECONFIG={Path(path).resolve()} PATH={tool_path()}:$PATH",
            f"kubectl -n {MARKET} get pp -o wide",
            f"kubectl -n {MARKET} describe pp btc",
            f"kubectl -n {MARKET} annotate pp btc sheetanchor.dev/reanchor=now",
            f"kubectl -n {MARKET} get reanchors",
            "make cluster-down    # removes it all",
        )
    )
