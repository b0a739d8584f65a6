"""What happens to a finding of the gap rules: the state is made suspect, the gap is published, a rebuild is requested.

A finding is kept until Redis has taken it, whatever happens meanwhile, and one doubt is published once however often a
rule finds it again. A doubt is kept until a rebuild has answered it: Redis may lose it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from sheetanchor.contract import Gap
from sheetanchor.policy.gap_rules import CONSEQUENCES, GAP_DETECTION_RULES, VALIDATION, Finding, gap_of
from sheetanchor.runtime import metrics
from sheetanchor.store.hot_records import SuspectReply
from sheetanchor.store.hot_state import HotState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WriteOwnership:
    """What a write of this processor is fenced with.

    Attributes:
        term: Term under which it writes.
        name: Its name.
        epoch: The epoch of what it holds.
    """

    term: int
    name: str
    epoch: int


class GapReporter:
    """Keeps one symbol's findings until Redis has them.

    Args:
        hot: Where doubts are written.
        symbol: Trading pair.
        request_rebuild: Called with rule and reason of a finding that asks for a rebuild.
    """

    def __init__(self, hot: HotState, symbol: str, request_rebuild: Callable[[str, str], None]) -> None:
        self._hot = hot
        self._symbol = symbol
        self._request_rebuild = request_rebuild
        self._findings: list[Finding] = []
        self._reported: set[str] = set()
        self._doubts: dict[str, tuple[Finding, str]] = {}

    @property
    def next(self) -> Finding | None:
        """The oldest finding that Redis does not have yet."""
        return self._findings[0] if self._findings else None

    def add(self, finding: Finding) -> None:
        """Keep a finding until Redis has it: one of each rule, with the highest id that cures them all."""
        for at, known in enumerate(self._findings):
            if known.rule == finding.rule:
                self._findings[at] = replace(known, cure_id=max(known.cure_id, finding.cure_id))
                return
        self._findings.append(finding)

    def clear(self) -> None:
        """Forget all findings: they were about a market that is no longer held."""
        self._findings.clear()

    def doubt_about(self, root: str) -> str:
        """Say which doubt about a rebuild no later rebuild has answered, "" if none: Redis may have lost it."""
        known = [finding for finding, about in self._doubts.values() if about == root]
        doubts = [finding for finding in self._findings if GAP_DETECTION_RULES[finding.rule].suspects] + known
        return doubts[0].reason if doubts else ""

    def repeat_doubts_about(self, root: str) -> None:
        """Find once more what made the state suspect: Redis says that it is anchored, so it has lost that."""
        for finding, about in self._doubts.values():
            if about == root:
                self.add(finding)

    def forget_doubts_before(self, root: str) -> None:
        """Forget the doubts that a later rebuild has answered."""
        self._doubts = {rule: kept for rule, kept in self._doubts.items() if kept[1] == root}

    def forget_reported(self) -> None:
        """Publish the next doubt even if its rule was published before: that doubt is over, or was another writer's."""
        self._reported.clear()

    async def suspect(self, finding: Finding, owner: WriteOwnership) -> SuspectReply | None:
        """Make the state suspect if the finding's rule says so; None if it does not.

        Raises:
            RedisError: If Redis did not take it.
        """
        if not GAP_DETECTION_RULES[finding.rule].suspects:
            return None
        token = f"{finding.rule}:{owner.name}"
        reply = await self._hot.suspect(
            owner.term, owner.name, owner.epoch, finding.cure_id, finding.reason, doubt=token
        )
        if reply.ok:
            self._doubts[finding.rule] = (finding, reply.root or reply.receipt)
        return reply

    async def publish(self, finding: Finding, owner: WriteOwnership, now_us: int) -> Gap | None:
        """Append the finding to the stream of gaps and forget it; None if it is a doubt that was published already.

        Raises:
            RedisError: If Redis did not take it; the finding is kept.
        """
        rule = GAP_DETECTION_RULES[finding.rule]
        known = finding.rule in self._reported or (bool(self._reported) and finding.rule in CONSEQUENCES)
        if rule.suspects and known:  # still the same doubt; it has only grown
            self._findings.remove(finding)
            return None
        gap = gap_of(finding, self._symbol, "process", now_us, owner.epoch)
        await self._hot.add_gap(gap)
        self._findings.remove(finding)
        log.warning("%s: %s: %s", self._symbol, finding.rule, finding.reason)
        metrics.GAPS.labels(self._symbol, finding.rule, rule.action).inc()
        if rule.suspects:
            self._reported.add(finding.rule)
        if rule.action != VALIDATION:
            self._request_rebuild(finding.rule, finding.reason)
        return gap
