"""An operator may die after any of its actions: its successor does what it would have done."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from support.reanchor_world import World

_MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("gap"), st.integers(0, 3)),
        st.tuples(st.just("suspect"), st.just(0)),
        st.tuples(st.just("end"), st.sampled_from(["swapped", "failed", "superseded", "lock_held"])),
        st.tuples(st.just("kill"), st.just(0)),
        st.tuples(st.just("pass"), st.integers(0, 40)),
        st.tuples(st.just("dry"), st.just(0)),
        st.tuples(st.just("annotate"), st.integers(0, 3)),
    ),
    max_size=25,
)


def play(moves: list[tuple[str, Any]], crashes: list[int]) -> World:
    """Play moves on a world; after each the operator acts, at first cut short as often as there are crashes."""
    world = World(spec={"reanchor": {"history": {"successful": 2, "failed": 1}}})
    left = list(crashes)
    for number, (move, value) in enumerate(moves):
        if move == "gap":
            world.add(f"gap-{number}", epoch=value, trigger="sequence_gap" if value else "manual", force=value == 3)
        elif move == "suspect":
            world.suspect()
        elif move in ("end", "kill"):
            for job in world.at_work():
                world.ends(job, result=value) if move == "end" else world.dies(job, 137)
        elif move == "pass":
            world.passes(value)
        elif move == "dry":
            world.add(f"dry-{number}", dryRun=True, trigger="manual")
        else:
            world.annotations["sheetanchor.dev/reanchor"] = f"value {value}"
        if left:
            world.step(actions=left.pop(0))
        world.settle()
        assert len(world.at_work()) <= 1
    return world


@settings(max_examples=150, deadline=None)
@given(_MOVES, st.lists(st.integers(0, 4), max_size=25))
def test_crashes_in_between_change_nothing(moves: list[tuple[str, Any]], crashes: list[int]) -> None:
    """An operator that dies after any of its actions leaves its successor to start the same runs at the same times."""
    undisturbed = play(moves, [])

    disturbed = play(moves, crashes)

    assert undisturbed.started == disturbed.started
    assert stands(undisturbed) == stands(disturbed)


def stands(world: World) -> dict[str, tuple[Any, ...]]:
    """How each request stands, without the words for people."""
    names = ("phase", "result", "attempts", "answeredBy", "startedAt", "finishedAt", "exitCode", "epochAfter")
    return {name: tuple(world.of(name).get(field) for field in names) for name in world.reanchors}
