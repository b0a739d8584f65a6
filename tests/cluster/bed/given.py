"""A given cluster, named by its kubeconfig; and commands that run against whichever cluster is used."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cluster.bed import kind
from cluster.bed.run import CannotHost

# The first is for this suite only; the second is what kubectl and helm would follow too.
VARIABLES = ("SHEETANCHOR_TEST_CLUSTER", "KUBECONFIG")


def kubeconfig() -> Path | None:
    """Return the kubeconfig of the cluster that the environment names; none means the bed's own.

    Raises:
        CannotHost: The environment names a file that is not there.
    """
    for variable in VARIABLES:
        named = os.environ.get(variable, "").partition(":")[0]
        if not named or Path(named).resolve() == kind.KUBECONFIG:
            continue
        if not Path(named).is_file():
            raise CannotHost(f"{variable}={named}, and there is no such file")
        return Path(named).resolve()
    return None


def image() -> str:
    """Name the image that a given cluster can pull.

    Raises:
        CannotHost: No image is named.
    """
    named = os.environ.get("SHEETANCHOR_IMAGE", "")
    if not re.fullmatch(r"\S+:\S+", named):
        raise CannotHost(
            "this cluster was not made here: SHEETANCHOR_IMAGE=REGISTRY/NAME:TAG must name an image for it"
        )
    return named
