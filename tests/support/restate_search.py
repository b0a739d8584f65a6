"""A search of every order in which processors, observers, rebuilds and failovers can meet. Nothing of Redis in it.

A data set, the copy of it that a replica has (any earlier one), two processors' memories, and what is really wrong: the
contents whose mark as suspect was acknowledged, or in which the owner knows a missing range. A fault is a final state,
with no step of the protocol left, in which such contents count as anchored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import NamedTuple

FENCES = {
    "cas": "what was seen must be what is stored",
    "max": "the new epoch is above the stored one and every known one",
    "doubt": "refused while a doubt is stored that is not the failover's own",
    "keep": "a processor keeps its doubt, and repeats it, until a rebuild",
    "lineage": "writes name the receipt that they build on",
    "obskeep": "an observer repeats its doubt until a rebuild",
    "obsroot": "a doubt names the root, which a restatement keeps",
    "sawA": "what is restated was anchored when it was last heard of",
    "reload": "whoever takes over and holds another state loads before it writes",
}


class Data(NamedTuple):
    """What a server holds; a book is left alone while the state is suspect."""

    epoch: int
    content: int
    anchored: bool
    term: int
    writer: int
    lineage: int
    root: int
    book: int


class Processor(NamedTuple):
    """What a processor knows; `finding` is not declared yet, `holed` is known for good."""

    alive: bool
    content: int
    epoch: int
    lineage: int
    finding: bool
    writes: bool
    term: int
    history: int
    holed: bool
    saw_anchored: bool
    root: int


class State(NamedTuple):
    """Everything, and the ghost of what is wrong."""

    data: Data
    replica: Data
    first: Processor
    second: Processor
    history: int
    wrong: frozenset[int]
    next_receipt: int
    failovers: int
    budget: int
    observed: frozenset[int]
    line_holed: bool


Step = tuple[str, State, bool]
"""What happens, what is then, and whether it comes from outside."""


def start(budget: int) -> State:
    """Anchored by a rebuild, the first processor writes, the second stands by."""
    data = Data(1, 100, True, 1, 1, 1, 1, 100)
    first = Processor(True, 100, 1, 1, False, True, 1, 0, False, True, 1)
    second = first._replace(writes=False)
    return State(data, data, first, second, 0, frozenset(), 2, 0, budget, frozenset(), False)


def who(state: State, number: int) -> Processor:
    """Give a processor."""
    return state.first if number == 1 else state.second


def put(state: State, number: int, processor: Processor) -> State:
    """Change a processor."""
    return state._replace(first=processor) if number == 1 else state._replace(second=processor)


def loaded(state: State, processor: Processor) -> Processor:
    """Load the stored book and replay the lines; a missing range that is in the lines is found again."""
    data, holed = state.data, state.line_holed
    content = data.book + 5000 if holed else data.book
    return processor._replace(
        content=content,
        epoch=data.epoch,
        lineage=data.lineage,
        finding=holed,
        holed=holed,
        saw_anchored=data.anchored,
        root=data.root,
    )


def holed(state: State, which: tuple[int, ...]) -> State:
    """Lose an update: the memories that it is missing from are wrong, and their holders know."""
    after = state
    for number in which:
        one = who(after, number)
        if one.alive and not one.holed:
            content = 200 + one.content
            after = put(after, number, one._replace(content=content, finding=True, holed=True))
            after = after._replace(wrong=after.wrong | {content})
    return after


def from_outside(state: State, fences: Collection[str]) -> list[Step]:
    """Give what may go wrong, as long as the budget lasts, and what a replica may get at any time."""
    found: list[Step] = []
    data = state.data
    if state.replica != data:
        found.append(("replicate", state._replace(replica=data), True))
    if state.budget <= 0:
        return found
    less = state._replace(budget=state.budget - 1)
    for which in ((1,), (1, 2)):
        after = holed(less, which)
        if after != less:
            found.append((f"hole {which}", after._replace(line_holed=less.line_holed or which == (1, 2)), True))
    if data.anchored:
        observed = less.observed | {data.root} if "obskeep" in fences else less.observed
        doubted = less._replace(
            data=data._replace(anchored=False), wrong=less.wrong | {data.content}, observed=observed
        )
        found.append(("observer doubts", doubted, True))
    if state.failovers < 2:
        failed = less._replace(data=state.replica, history=state.history + 1, failovers=state.failovers + 1)
        found.append(("failover", failed, True))
    for number in (1, 2):
        if state.first.alive and state.second.alive:
            found.append((f"crash {number}", put(less, number, who(less, number)._replace(alive=False)), True))
    return found


def protocol(state: State, fences: Collection[str]) -> list[Step]:
    """Give the steps that are left to make."""
    found: list[Step] = []
    data = state.data
    if not data.anchored:
        content, receipt = 1000 + state.next_receipt, state.next_receipt
        fresh = data._replace(
            epoch=data.epoch + 1, content=content, book=content, anchored=True, lineage=receipt, root=receipt
        )
        observed = state.observed if "obsroot" in fences else frozenset()
        rebuilt = state._replace(data=fresh, line_holed=False, next_receipt=receipt + 1, observed=observed)
        found.append(("rebuild", rebuilt, False))
    elif (data.root if "obsroot" in fences else data.lineage) in state.observed:
        again = state._replace(data=data._replace(anchored=False), wrong=state.wrong | {data.content})
        found.append(("observer repeats", again, False))
    for number in (1, 2):
        if who(state, number).alive:
            found += step_of(state, number, fences)
    return found


def step_of(state: State, number: int, fences: Collection[str]) -> list[Step]:
    """Give the next step of a processor."""
    data, one, other = state.data, who(state, number), who(state, 3 - number)
    mine = data.term == one.term and data.writer == number and one.writes
    another = "lineage" in fences and data.epoch == one.epoch and data.lineage != one.lineage
    if not one.writes and (data.epoch > one.epoch or another) and one.history == state.history:
        return [(f"{number} loads", put(state, number, loaded(state, one)), False)]
    if one.history != state.history:
        return [after_failover(state, number, mine=mine, another=another, fences=fences)]
    if one.writes and not mine:
        return [(f"{number} is fenced", put(state, number, one._replace(writes=False)), False)]
    if not one.writes and not (other.alive and other.writes):
        term = max(one.term, data.term) + 1
        taken = state._replace(data=data._replace(term=term, writer=number))
        after = put(taken, number, one._replace(writes=True, term=term))
        if "reload" in fences and data.lineage != one.lineage and data.epoch >= one.epoch:
            after = put(after, number, loaded(after, who(after, number)))
        return [(f"{number} takes", after, False)]
    return writing(state, number, another=another, fences=fences) if mine else []


def after_failover(state: State, number: int, *, mine: bool, another: bool, fences: Collection[str]) -> Step:
    """Notice that the replication history is another one, and restate, load or ask for a rebuild."""
    data, one, other = state.data, who(state, number), who(state, 3 - number)
    seen = one._replace(history=state.history)
    if not one.writes:
        return (f"{number} notices", put(state, number, seen), False)
    if not mine:
        if data.term <= one.term and not (other.alive and other.writes and other.term >= one.term):
            term = max(one.term, data.term) + 1
            taken = state._replace(data=data._replace(term=term, writer=number))
            return (f"{number} takes again", put(taken, number, one._replace(term=term)), False)
        return (f"{number} is fenced", put(state, number, seen._replace(writes=False)), False)
    allowed = not one.finding and data.epoch <= one.epoch and not another
    allowed = allowed and not ("keep" in fences and one.holed)
    allowed = allowed and not ("sawA" in fences and not one.saw_anchored)
    allowed = allowed and not ("doubt" in fences and not data.anchored)
    allowed = allowed and not ("cas" in fences and data.epoch < one.epoch and "max" not in fences)
    if allowed:
        epoch = (max(data.epoch, one.epoch) if "max" in fences else data.epoch) + 1
        receipt = state.next_receipt
        restated = data._replace(
            epoch=epoch, content=one.content, book=one.content, anchored=True, lineage=receipt, root=one.root
        )
        after = put(
            state._replace(data=restated, next_receipt=receipt + 1),
            number,
            seen._replace(epoch=epoch, lineage=receipt, saw_anchored=True),
        )
        return (f"{number} restates", after, False)
    replaced = ("lineage" in fences or "reload" in fences) and data.epoch == one.epoch and data.lineage != one.lineage
    if data.epoch > one.epoch or replaced:
        return (f"{number} loads again", put(state, number, loaded(state, seen)), False)
    asked = state._replace(data=data._replace(anchored=False, epoch=max(data.epoch, one.epoch)))
    return (f"{number} asks for a rebuild", put(asked, number, seen), False)


def writing(state: State, number: int, *, another: bool, fences: Collection[str]) -> list[Step]:
    """Declare what was found, write, or load what is newer."""
    data, one = state.data, who(state, number)
    repeats = "keep" in fences and one.holed and data.anchored and data.epoch == one.epoch
    if one.finding or repeats:
        doubted = data._replace(anchored=False, epoch=max(data.epoch, one.epoch))
        after = put(
            state._replace(data=doubted, wrong=state.wrong | {one.content}),
            number,
            one._replace(finding=False, saw_anchored=False),
        )
        return [(f"{number} declares", after, False)]
    if data.epoch == one.epoch and not another:
        if data.content == one.content and one.saw_anchored == data.anchored:
            return []
        book = one.content if data.anchored else data.book
        written = state._replace(data=data._replace(content=one.content, book=book))
        return [(f"{number} applies", put(written, number, one._replace(saw_anchored=data.anchored)), False)]
    if data.epoch >= one.epoch:
        return [(f"{number} loads", put(state, number, loaded(state, one)), False)]
    older = state._replace(data=data._replace(anchored=False, epoch=one.epoch))
    return [(f"{number} finds an older epoch", older, False)]


def fault(
    fences: Collection[str], *, budget: int, states_max: int, without: Collection[str] = (), depth: int = 14
) -> tuple[str, ...]:
    """Search breadth first for a wrong state at rest, and give the shortest way to one; () if there is none.

    Args:
        fences: Those that stand.
        budget: How many things may go wrong.
        states_max: After so many states the search ends.
        without: First words of steps from outside that do not happen.
        depth: Longest way.
    """
    first = start(budget)
    queue: deque[tuple[State, tuple[str, ...]]] = deque([(first, ())])
    seen = {first}
    while queue and len(seen) < states_max:
        state, path = queue.popleft()
        own = protocol(state, fences)
        if not own and state.data.anchored and state.data.content in state.wrong:
            return path
        if len(path) >= depth:
            continue
        for label, after, _ in from_outside(state, fences) + own:
            if label.split()[0] not in without and after not in seen:
                seen.add(after)
                queue.append((after, (*path, label)))
    return ()
