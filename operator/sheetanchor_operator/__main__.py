"""`sheetanchor-operator`: takes part in the leader election, and manages all pipelines while it leads.

Exit codes: 0 stopped by a signal, 1 the Lease or the watches were lost (restart it), 2 bad settings.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any, Final

from kubernetes.aio import config
from kubernetes.aio.client import Configuration

from sheetanchor import __version__
from sheetanchor.contract import EXIT_BAD_SETTINGS
from sheetanchor.errors import BadSettings
from sheetanchor.runtime import logs
from sheetanchor.runtime.command_line import add_flags, load
from sheetanchor.runtime.redis_url import without_passwords
from sheetanchor.runtime.stop_signals import stop_event
from sheetanchor.web.listeners import is_local, open_listeners, probes, serving
from sheetanchor_operator import metrics
from sheetanchor_operator.children.object_meta import Defaults
from sheetanchor_operator.controller.leader import Leader
from sheetanchor_operator.controller.pipeline_metrics import PipelineMetrics
from sheetanchor_operator.controller.reconcile import Reconciler
from sheetanchor_operator.controller.zones.actions import ZoneActions
from sheetanchor_operator.controller.zones.observer import ZoneObserver
from sheetanchor_operator.health import LastHealth, OperatorHealth, app
from sheetanchor_operator.kube.api_client import ApiError, Cluster
from sheetanchor_operator.kube.cache import Cache
from sheetanchor_operator.kube.event_recorder import Publisher
from sheetanchor_operator.kube.leader_election import Election
from sheetanchor_operator.kube.workload_probe import Workloads
from sheetanchor_operator.kube.zone_probe import ZoneProbe
from sheetanchor_operator.settings import OperatorSettings
from sheetanchor_operator.zones.judge import Bounds

log = logging.getLogger(__name__)

EXIT_LOST: Final = 1
CONNECTIONS: Final = 32


async def configuration(settings: OperatorSettings) -> Configuration:
    """Find the API server: by the pod's service account, else by the kubeconfig.

    Raises:
        BadSettings: There is neither a service account nor a usable kubeconfig.
    """
    found = Configuration()
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST") and settings.kubeconfig is None:
            config.load_incluster_config(client_configuration=found)
        else:
            path = str(settings.kubeconfig) if settings.kubeconfig else None
            await config.load_kube_config(config_file=path, client_configuration=found)
    except config.ConfigException as error:
        message = (
            f"kubeconfig = {str(settings.kubeconfig or '')!r}: {error}; set it to a kubeconfig file, or run in a pod"
        )
        raise BadSettings(message) from error
    found.connection_pool_maxsize = CONNECTIONS
    return found


class Operator:
    """One operator process: a candidate of the leader election, and everything that a leader needs.

    Args:
        settings: Settings of the process.
        cluster: The API server.
    """

    def __init__(self, settings: OperatorSettings, cluster: Cluster) -> None:
        loop = asyncio.get_running_loop()
        identity = f"{settings.pod_name}_{uuid.uuid4().hex[:8]}"
        self.cluster, self.settings = cluster, settings
        self.clock = loop.time
        self.election = Election(cluster, settings.pod_namespace, settings.operator_lease, identity, loop.time)
        self.cache = Cache()
        acting = cluster.fenced(self.election.holds)
        self.workloads = Workloads(acting, through_api_server=settings.operator_ask_through == "apiserver")
        defaults = Defaults(
            image=settings.operator_image,
            pull_policy=settings.operator_image_pull_policy,
            cluster_domain=settings.operator_cluster_domain,
            operator_namespace=settings.pod_namespace,
            monitoring_namespaces=tuple(settings.operator_monitoring_namespaces),
            api_server_ports=tuple(settings.operator_api_server_ports),
            dns_ports=tuple(settings.operator_dns_ports),
            dns_peers=tuple(settings.operator_dns_peers),
            listen_address=settings.operator_listen_address,
            pull_secrets=tuple(settings.operator_image_pull_secrets),
            assign_ids=settings.operator_assign_ids,
        )
        publisher = Publisher(acting, settings.pod_name)
        reconciler = Reconciler(
            acting, self.cache, self.workloads, publisher, PipelineMetrics(), defaults, settings.operator_resync_s
        )
        reconciler.installation = f"{settings.pod_namespace}/{settings.operator_lease}"
        self.leader = Leader(
            acting,
            self.cache,
            reconciler,
            settings.operator_namespaces,
            nodes=settings.operator_nodes,
            workers=settings.operator_workers,
        )
        self.zone_publisher = Publisher(cluster, settings.pod_name)
        self.probe = ZoneProbe()
        self.zones = ZoneObserver(cluster, self.probe, settings.operator_namespaces, settings.node_name, loop.time)
        self.zone_actions = ZoneActions(
            cluster,
            self.zones,
            self.probe,
            self.zone_publisher,
            reconciler.installation,
            self.election.unrenewed_s,
            loop.time,
        )
        self.zones.on_change = self.leader.zones_changed
        self.zones.on_round = self.zone_actions.after_round
        if self.judges_zones:
            reconciler.zone_verdicts = self.zones.verdicts

    @property
    def judges_zones(self) -> bool:
        """Whether this operator can: it reads nodes, runs on one, and asks pods at their own addresses."""
        settings = self.settings
        return settings.operator_nodes and bool(settings.node_name) and settings.operator_ask_through == "direct"

    async def observe_zones(self) -> None:
        """Judge zones until cancelled; nothing to do where that is not possible."""
        if not self.judges_zones:
            log.info("zones are not judged: this needs the right to read nodes, NODE_NAME, and direct requests to pods")
            await asyncio.Event().wait()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.zone_publisher.run())
                group.create_task(self.zones.run())
        finally:
            await self.zone_actions.aclose()

    def operator_health(self) -> OperatorHealth:
        """Give the health of this process."""
        age_s = self.clock() - self.election.checked_s
        verdicts = self.zones.verdicts(Bounds())
        return OperatorHealth(
            zones={zone: str(health) for zone, (health, _) in verdicts.items()} if self.judges_zones else None,
            abstains=self.zones.judgement.abstains,
            leading=self.election.leading.is_set(),
            synced=self.leader.synced,
            stale_watch=self.leader.stale_watch,
            lease_age_s=age_s,
            pipelines=len(self.cache.pipelines()),
            serves=self.leader.serves,
            refused={str(place): problem.message for place, problem in self.leader.problems.items()},
        )

    async def run(self, stop: asyncio.Event) -> int:
        """Wait for the Lease, lead, and stop; gives the exit code."""
        candidacy = asyncio.create_task(self.election.run(), name="election")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        elected = asyncio.create_task(self.election.leading.wait(), name="elected")
        observing = asyncio.create_task(self.observe_zones(), name="zones")
        await asyncio.wait({candidacy, stopping, elected, observing}, return_when=asyncio.FIRST_COMPLETED)
        code = 0 if stop.is_set() or elected.done() else EXIT_LOST
        if elected.done() and not stop.is_set():
            metrics.LEADER.set(1)
            leader_task = asyncio.create_task(self.leader.run(), name="leading")
            await asyncio.wait({candidacy, stopping, leader_task, observing}, return_when=asyncio.FIRST_COMPLETED)
            code = 0 if stop.is_set() else EXIT_LOST
            if leader_task.done() and leader_task.exception() is not None:
                log.error("the leader has failed, this operator exits: %s", _message_of(leader_task.exception()))
            # Nothing is written any more before the Lease is released.
            await _end(leader_task)
        metrics.LEADER.set(0)
        if candidacy.done() and (problem := candidacy.exception()) is not None:
            log.error("the leader election has failed, this operator exits: %s", _message_of(problem))
        if observing.done() and (problem := observing.exception()) is not None:
            log.error("judging zones has failed, this operator exits: %s", _message_of(problem))
        await _end(candidacy, stopping, elected, observing)
        if not self.election.lost.is_set():
            try:
                await self.election.release()
            except ApiError as error:
                log.warning("the Lease could not be released, the next leader waits until it expires: %s", error)
        return code


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _message_of(error: BaseException | None) -> str:
    """Describe an error, of a group the first one."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


@contextlib.asynccontextmanager
async def _served(operator: Operator, settings: OperatorSettings) -> AsyncIterator[None]:
    """Answer health and metrics, and the probes on a port of their own, while the block runs."""
    try:
        listeners = open_listeners(settings.http_host, settings.http_port)
    except OSError as error:
        raise BadSettings(
            f"http_port = {settings.http_port}: cannot listen on {settings.http_host}: {error}"
        ) from error
    answers = app(operator.operator_health)
    answers.state.answers.only_local = is_local(listeners)
    with contextlib.ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(listener)
        last = LastHealth(operator.operator_health, operator.clock)
        try:
            probe_port = stack.enter_context(probes(last.live, last.ready, settings.http_host, settings.probe_port))
        except OSError as error:
            text = f"probe_port = {settings.probe_port}: cannot listen on {settings.http_host}: {error}"
            raise BadSettings(text) from error
        async with serving(answers, listeners, answers.state.answers.bad_request), last.kept():
            ports = {"http_port": int(listeners[0].getsockname()[1]), "probe_port": probe_port}
            log.info("listening on %s, port %d", settings.http_host, ports["http_port"], extra=ports)
            yield


async def run(settings: OperatorSettings) -> int:
    """Serve health and metrics, and operate until SIGTERM or SIGINT."""
    metrics.LEADER.set(0)
    stop = stop_event()
    cluster = Cluster(await configuration(settings))
    operator = Operator(settings, cluster)
    try:
        async with _served(operator, settings):
            log.info("sheetanchor-operator %s as %s", __version__, operator.election.identity)
            return await operator.run(stop)
    finally:
        await operator.workloads.aclose()
        await operator.probe.aclose()
        await cluster.aclose()


def main(argv: list[str] | None = None) -> int:
    """Run the operator.

    Args:
        argv: Arguments after the program's name; default those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="sheetanchor-operator",
        description="Manage PredictionPipelines: create their objects, keep them as specified, and re-anchor them.",
        epilog="Every flag --some-name is also the variable SHEETANCHOR_SOME_NAME. POD_NAME and POD_NAMESPACE are "
        "the operator's own pod and its namespace.",
    )
    parser.add_argument("--version", action="version", version=f"sheetanchor-operator {__version__}")
    add_flags(parser, OperatorSettings)
    try:
        settings = load(OperatorSettings, vars(parser.parse_args(argv)), dict(os.environ))
        logs.set_up("sheetanchor-operator", settings.log_level)
        return asyncio.run(run(settings))
    except BadSettings as error:
        print(f"sheetanchor-operator: {without_passwords(str(error))}", file=sys.stderr)
        return EXIT_BAD_SETTINGS


if __name__ == "__main__":
    sys.exit(main())
