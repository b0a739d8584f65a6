"""When to re-anchor: requests and observations become one decision; budget, cool-down and pauses with their defaults.

Pure: the same rules serve the local supervisor and the operator. The state is a value that the caller keeps:

    state, skipped = ask(state, request, policy)          # a gap record or a person's request came in
    state, decision = decide(state, seen, now_us, policy) # again and again; a Skip says why a request changed nothing
    state = started(state, start, now_us)                 # after a Start was acted upon
    state = ended(state, ...)                             # when that run is over

One run per symbol at a time. Requests of the same urgency become one; those that come during a run lead to at most one
more run, and only if the state is suspect afterwards or they are newer than what the run was built from.

One module, since every rule of waiting, merging and skipping reads the same state: apart they could contradict each
other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal

from sheetanchor.contract import EXIT_LOCK_HELD, EXIT_SUPERSEDED, Gap
from sheetanchor.policy.gap_rules import EMERGENCY as EMERGENCY
from sheetanchor.policy.gap_rules import IMMEDIATE as IMMEDIATE
from sheetanchor.policy.gap_rules import SCHEDULED as SCHEDULED
from sheetanchor.policy.gap_rules import VALIDATION as VALIDATION

Kind = Literal["rebuild", "validate"]
WaitKind = Literal["idle", "running", "lock", "grace", "debounce", "backoff", "cooldown", "budget"]

SECOND_US: Final = 1_000_000
HOUR_US: Final = 3600 * SECOND_US
IDS_KEPT_US: Final = 24 * HOUR_US
IDS_MAX: Final = 1_000

URGENCY: Final = {EMERGENCY: 0, IMMEDIATE: 1, SCHEDULED: 2, VALIDATION: 3}
"""What each action of a gap rule means for the order: lower goes first."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How often is too often.

    Attributes:
        debounce_us: A scheduled request waits this long for others to join its run; one prediction slot.
        cooldown_us: Least time between the end of a rebuild and the next one of a state that is not suspect.
        validation_cooldown_us: Least time between the end of any run and a validation.
        suspect_grace_us: A suspect state is rebuilt without a request after this time; the record that says why it is
            suspect normally comes first.
        rebuilds_per_hour: Most rebuilds that succeeded within an hour; at 279 units of request weight each, 60 are a
            twentieth of what the exchange allows.
        suspect_interval_us: A suspect state is rebuilt this often even when the budget is used up: what would otherwise
            be wrong for up to an hour is worth the request weight.
        backoff_us: Delay before the first retry of a failed run; doubles.
        backoff_max_us: Longest such delay.
        tries_max: Failed runs after which a request is given up; a suspect state is retried for ever.
        lock_wait_us: When to try again while another run holds the lock.
        suppressed: Gap rules to ignore.
        enabled: False starts nothing but what a person forces.
    """

    debounce_us: int = 2 * SECOND_US
    cooldown_us: int = 10 * SECOND_US
    validation_cooldown_us: int = 60 * SECOND_US
    suspect_grace_us: int = SECOND_US // 2
    rebuilds_per_hour: int = 60
    suspect_interval_us: int = 60 * SECOND_US
    backoff_us: int = SECOND_US
    backoff_max_us: int = 30 * SECOND_US
    tries_max: int = 5
    lock_wait_us: int = SECOND_US
    suppressed: frozenset[str] = frozenset()
    enabled: bool = True


DEFAULT_POLICY: Final = Policy()


@dataclass(frozen=True, slots=True)
class Request:
    """A re-anchor is asked for.

    Attributes:
        action: One of the four actions of the gap rules.
        trigger: Name of the gap rule, or start, annotation, schedule, failover, manual.
        at_us: When what it is about happened.
        epoch: Epoch of the state that is in doubt; 0 where that is not known.
        id: Requests of the same id count once in 24 hours; "" for none.
        force: A person insists: cool-down, budget and freshness do not hold it up.
        asked: How many requests were merged into this one.
        first_us: `at_us` of the first of them.
        tries: Runs for it that failed.
    """

    action: str
    reason: str
    trigger: str
    at_us: int
    epoch: int = 0
    id: str = ""
    force: bool = False
    asked: int = 1
    first_us: int = 0
    tries: int = 0

    @classmethod
    def of_gap(cls, gap: Gap) -> Request:
        """Make the request that a gap record stands for."""
        return cls(gap.action, gap.reason, gap.rule, gap.at_us, gap.epoch)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is observed of a symbol.

    Attributes:
        state: anchored or suspect.
        fresh: The last market event is recent enough.
        lock_held: A run holds the lock of the symbol.
        suspect_since_us: When the state became suspect; 0 if it is not or that is not known.
    """

    state: str
    epoch: int
    fresh: bool
    lock_held: bool
    suspect_since_us: int = 0

    @property
    def suspect(self) -> bool:
        """Say whether what the hot keys hold may be wrong."""
        return self.state != "anchored"


@dataclass(frozen=True, slots=True)
class Start:
    """Start a run."""

    kind: Kind
    reason: str
    trigger: str
    request: Request


@dataclass(frozen=True, slots=True)
class Skip:
    """A request changes nothing; the reason is for people."""

    reason: str
    request: Request


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now; decide again at `until_us`, or when something changes if it is None.

    Attributes:
        kind: idle, running, lock, grace, debounce, backoff, cooldown or budget; the reason says the same for people.
    """

    until_us: int | None
    reason: str
    kind: WaitKind = field(default="idle", compare=False)


Decision = Start | Skip | Wait


@dataclass(frozen=True, slots=True)
class Run:
    """A run in progress."""

    start: Start
    started_us: int


@dataclass(frozen=True, slots=True)
class State:
    """What the coordinator of one symbol remembers.

    Attributes:
        pending: At most one request per action, all forced ones as one.
        running: The run in progress.
        rebuilt_us: Ends of the rebuilds of the last hour.
        others_us: Ends of other runs that share the budget: rebuilds of other symbols, and comparisons.
        covered_us: Requests about moments up to this one are answered by the last successful run.
        ended_us: End of the last run of any kind and result.
        failures: Failed runs in a row.
        retry_us: Not before this time after failures.
        ids: Requests of the last 24 hours that had an id, with the time they were made.
    """

    pending: tuple[Request, ...] = ()
    running: Run | None = None
    rebuilt_us: tuple[int, ...] = ()
    others_us: tuple[int, ...] = ()
    covered_us: int = 0
    ended_us: int = 0
    failures: int = 0
    retry_us: int = 0
    ids: tuple[tuple[str, int], ...] = ()


def ask(state: State, request: Request, policy: Policy = DEFAULT_POLICY) -> tuple[State, Skip | None]:
    """Take a request in; whether and when it leads to a run is for `decide` to say.

    Raises:
        ValueError: If the action is none of the four.
    """
    if request.action not in URGENCY:
        raise ValueError(f"action = {request.action!r}: expected one of {', '.join(URGENCY)}")
    if request.id and any(request.id == known for known, _ in state.ids):
        return state, Skip(f"request {request.id} was made before", request)
    if not request.force and request.trigger in policy.suppressed:
        return state, Skip(f"rule {request.trigger} is suppressed by the settings", request)
    if not request.force and not policy.enabled:
        return state, Skip("re-anchoring is disabled by the settings", request)
    ids = tuple((known, at_us) for known, at_us in state.ids if at_us > request.at_us - IDS_KEPT_US)
    if request.id:
        ids = (*ids, (request.id, request.at_us))[-IDS_MAX:]
    return replace(state, pending=_merged(state.pending, request), ids=ids), None


def _merged(pending: tuple[Request, ...], request: Request) -> tuple[Request, ...]:
    """Keep one request per urgency: the first one's reason and time, the newest one's moment and epoch."""
    same = next((p for p in pending if _rank(p) == _rank(request)), None)
    if same is None:
        first = replace(request, first_us=request.first_us or request.at_us)
        return tuple(sorted((*pending, first), key=_rank))
    merged = replace(
        same,
        at_us=max(same.at_us, request.at_us),
        epoch=max(same.epoch, request.epoch) if same.epoch and request.epoch else 0,
        asked=same.asked + request.asked,
        tries=min(same.tries, request.tries),
        force=same.force or request.force,
    )
    return tuple(merged if p is same else p for p in pending)


def _rank(request: Request) -> tuple[int, bool]:
    """Order requests: an emergency first, then what a person insists on."""
    if request.force and request.action != EMERGENCY:
        return URGENCY[IMMEDIATE], False
    return URGENCY[request.action], True


def decide(state: State, seen: Seen, now_us: int, policy: Policy = DEFAULT_POLICY) -> tuple[State, Decision]:
    """Say what to do now.

    Args:
        state: What is remembered.
        seen: What is observed.
        now_us: The clock that requests and observations are stamped with.
        policy: How often is too often.

    Returns:
        The state to go on with, and the decision. After a Skip ask again at once: one request was dropped.
    """
    for request in state.pending:
        moot = _moot(state, request, seen)
        if moot:
            rest = tuple(p for p in state.pending if p is not request)
            return replace(state, pending=rest), Skip(moot, request)
    if state.running is not None:
        return state, Wait(None, "a run is in progress", "running")
    request = state.pending[0] if state.pending else _own_request(seen, now_us)
    if not state.pending and not (policy.enabled and seen.suspect):
        return state, Wait(None, "no re-anchor is requested")
    waits = _waits(state, request, seen, policy)
    later = [wait for wait in waits if wait.until_us is not None and wait.until_us > now_us]
    if later:
        return state, max(later, key=lambda wait: wait.until_us or 0)
    if seen.lock_held:
        return state, Wait(now_us + policy.lock_wait_us, "another run holds the lock", "lock")
    kind: Kind = "validate" if request.action == VALIDATION and not request.force else "rebuild"
    return state, Start(kind, _words(request), request.trigger, request)


def _moot(state: State, request: Request, seen: Seen) -> str:
    """Say why a request need not lead to a run, "" if it has to."""
    if request.force:
        return ""
    if seen.suspect:
        return "a rebuild is due anyway" if request.action == VALIDATION else ""
    if 0 < request.epoch < seen.epoch:
        return f"the state that it is about, epoch {request.epoch}, has been rebuilt since"
    if request.at_us <= state.covered_us:
        return "the last run is newer than what it is about"
    if request.action == EMERGENCY and seen.fresh:
        return "another line is live: the state is anchored and fresh"
    return ""


def _own_request(seen: Seen, now_us: int) -> Request:
    """Make the request that a suspect state is by itself, even if no record asks for it."""
    since_us = seen.suspect_since_us or now_us
    if seen.epoch == 0:
        return Request(EMERGENCY, "there is no state yet", "start", since_us, first_us=since_us)
    return Request(IMMEDIATE, "the state is suspect", "suspect", since_us, epoch=seen.epoch, first_us=since_us)


def _waits(state: State, request: Request, seen: Seen, policy: Policy) -> list[Wait]:
    """List what a request has to wait for, each with its end."""
    backoff = Wait(state.retry_us, f"{state.failures} runs in a row failed: backing off", "backoff")
    if not state.failures:
        backoff = Wait(state.retry_us, "another run held the lock a moment ago", "lock")
    if request.force:
        return [backoff] if request.tries else []
    waits = [backoff]
    if not state.pending and seen.epoch and seen.suspect_since_us:
        waits.append(Wait(request.at_us + policy.suspect_grace_us, "the state has only just become suspect", "grace"))
    if request.action == VALIDATION:
        until_us = state.ended_us + policy.validation_cooldown_us if state.ended_us else 0
        waits.append(Wait(until_us, "a validation waits until some time after the last run", "cooldown"))
        spent = budget_wait(state, policy)
        return [*waits, spent] if spent is not None else waits
    if request.action == SCHEDULED:
        waits.append(Wait(request.first_us + policy.debounce_us, "a scheduled re-anchor waits for others", "debounce"))
    if state.rebuilt_us and not seen.suspect and request.action != EMERGENCY:
        waits.append(Wait(state.rebuilt_us[-1] + policy.cooldown_us, "cooling down after the last rebuild", "cooldown"))
    spent = budget_wait(state, policy)
    if spent is not None:
        own_us = state.rebuilt_us[-1] + policy.suspect_interval_us if state.rebuilt_us else 0
        free_us = spent.until_us or 0
        waits.append(replace(spent, until_us=min(free_us, own_us) if seen.suspect else free_us))
    return waits


def budget_wait(state: State, policy: Policy = DEFAULT_POLICY) -> Wait | None:
    """Say until when no run that asks the exchange for a whole state fits into the budget; None if one does."""
    spent_us = sorted((*state.rebuilt_us, *state.others_us))
    if len(spent_us) < policy.rebuilds_per_hour:
        return None
    free_us = spent_us[-policy.rebuilds_per_hour] + HOUR_US
    return Wait(free_us, f"the budget of {policy.rebuilds_per_hour} rebuilds an hour is used up", "budget")


def _words(request: Request) -> str:
    more = f" (and {request.asked - 1} more)" if request.asked > 1 else ""
    return request.reason + more


def started(state: State, start: Start, now_us: int) -> State:
    """Note that a run has been started; a rebuild takes every waiting request along, a validation its own."""
    if start.kind == "rebuild":
        pending: tuple[Request, ...] = ()
    else:
        pending = tuple(p for p in state.pending if p.action != VALIDATION)
    return replace(state, pending=pending, running=Run(start, now_us))


def ended(
    state: State,
    exit_code: int,
    *,
    rebuilt: bool,
    now_us: int,
    jitter: float,
    snapshot_us: int | None = None,
    policy: Policy = DEFAULT_POLICY,
) -> State:
    """Note how the run in progress ended.

    Args:
        state: What is remembered.
        exit_code: Exit code of `sheetanchor reanchor`; negative if a signal ended it.
        rebuilt: The receipt says that a new state was swapped in.
        now_us: When it ended.
        jitter: Random number in [0, 1) that spreads retries.
        snapshot_us: When the snapshot was asked for; None takes the start of the run.
        policy: How often is too often.
    """
    run = state.running
    if run is None:
        return state
    state = replace(state, running=None, ended_us=now_us)
    rebuilds = tuple(at_us for at_us in state.rebuilt_us if at_us > now_us - HOUR_US)
    others = tuple(at_us for at_us in state.others_us if at_us > now_us - HOUR_US)
    if exit_code in (0, EXIT_SUPERSEDED):
        covered_us = snapshot_us if snapshot_us is not None else run.started_us
        return replace(
            state,
            rebuilt_us=(*rebuilds, now_us) if rebuilt else rebuilds,
            others_us=others if rebuilt or exit_code == EXIT_SUPERSEDED else (*others, now_us),
            covered_us=max(state.covered_us, covered_us) if exit_code == 0 else state.covered_us,
            failures=0,
            retry_us=0,
        )
    again = run.start.request
    if exit_code == EXIT_LOCK_HELD:
        return replace(
            state,
            rebuilt_us=rebuilds,
            pending=_merged(state.pending, again),
            retry_us=now_us + policy.lock_wait_us,
        )
    failures = state.failures + 1
    again = replace(again, tries=again.tries + 1)
    pending = state.pending if again.tries >= policy.tries_max else _merged(state.pending, again)
    retry_us = now_us + backoff_us(failures, jitter, policy)
    return replace(state, rebuilt_us=rebuilds, pending=pending, failures=failures, retry_us=retry_us)


def backoff_us(failures: int, jitter: float, policy: Policy = DEFAULT_POLICY) -> int:
    """Give the delay before the next try: doubling, bounded, and spread by 20 % to either side.

    Args:
        failures: Failed runs in a row, at least 1.
        jitter: Random number in [0, 1).
        policy: First and longest delay.
    """
    delay_us = min(policy.backoff_us * 2 ** min(failures - 1, 30), policy.backoff_max_us)
    return int(delay_us * (0.8 + 0.4 * jitter))
