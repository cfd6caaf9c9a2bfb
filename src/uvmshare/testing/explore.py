"""A search through every order in which the events of a small asyncio world can happen.

    found = explore(MyWorld)
    print(found)    # so many orders of events through so many states

What lives here: `explore`, the `World` that it drives, and what makes two states of a world the same. What
must not: the event loop (that is `uvmshare.testing.schedule`), or anything of shares.
"""

from __future__ import annotations

import asyncio
import enum
import gc
import hashlib
import types
from collections import deque
from contextvars import Context
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol

from uvmshare.testing.schedule import Noise, VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Explored", "World", "explore", "fingerprint"]


class World(Protocol):
    """What `explore` drives: a small world, built anew for every order that is tried.

    It must be deterministic: the same choices lead to the same state.
    """

    loop: VirtualLoop

    def events(self) -> Sequence[tuple[str, Callable[[], None]]]:
        """Return what may happen now besides the next callback, with a name for each.

        Equal states must give equal names in the same order.
        """

    def state(self) -> object:
        """Return the object that leads to all that decides how it goes on."""

    def check(self) -> None:
        """Raise AssertionError if what must always hold does not."""

    def check_end(self) -> None:
        """Raise AssertionError if what must hold when nothing can happen any more does not."""


@dataclass(frozen=True, slots=True)
class Explored:
    """How much `explore` has tried."""

    orders: int
    """Different orders of events, from beginning to end."""
    states: int
    """Different states that they lead through."""
    steps: int
    """Different steps between those states. Each was made and checked."""

    def __str__(self) -> str:
        return f"{self.orders:,} orders of events through {self.states:,} states ({self.steps:,} steps, each checked)"


def explore(make_world: Callable[[], World]) -> Explored:
    """Try every order of the world's events and of the loop's callbacks among them.

    At every moment the choice is between the callback that is first in the queue and each of the world's
    events; when no callback is ready, the clock may jump to the next timer too.

    Two orders that lead to the same state go on in the same way, so that what follows is tried once. States
    are the same when everything reachable from `World.state` and from the loop's queue is: coroutines with
    their position and variables, tasks, futures, and every object, by what they are and how they hang
    together and not by where they are in memory. `Explored.orders` counts the orders as if none had been merged.

    Raises what a check raised, with a note of the order that led there. Raises ValueError when the orders never end.
    """
    return _Search(make_world).run()


_CALLBACK = "callback"
_CLOCK = "clock"


class _Search:
    """Depth first. A world cannot be copied, so it is made anew and led back to where a branch begins."""

    def __init__(self, make_world: Callable[[], World]) -> None:
        self._make_world = make_world
        self._ids: dict[bytes, int] = {}
        self._next: list[list[int]] = []
        """By state: the states that its choices lead to."""

    def run(self) -> Explored:
        branches: list[tuple[list[int], int]] = [([], -1)]
        while branches:
            path, origin = branches.pop()
            self._follow(path, origin, branches)
        return Explored(
            orders=self._count_orders(), states=len(self._ids), steps=sum(len(following) for following in self._next)
        )

    def _follow(self, path: list[int], origin: int, branches: list[tuple[list[int], int]]) -> None:
        """Lead a new world along the path, and then on until it comes to a state that is known."""
        world = self._make_world()
        taken: list[str] = []
        try:
            for choice in path:
                if choice == 0 and world.loop.ready:  # most are: a tenth of a search went into listing the others
                    name, act = _CALLBACK, world.loop.step
                else:
                    name, act = _choices(world)[choice]
                taken.append(name)
                act()
            while True:
                world.check()
                if world.loop.noise:
                    raise Noise("; ".join(world.loop.noise))
                state, is_new = self._identify(world)
                if origin >= 0:
                    self._next[origin].append(state)
                if not is_new:
                    return
                choices = _choices(world)
                if not choices:
                    world.check_end()
                    return
                branches.extend((([*path, other]), state) for other in range(len(choices) - 1, 0, -1))
                origin = state
                path = [*path, 0]
                name, act = choices[0]
                taken.append(name)
                act()
        except Exception as error:
            error.add_note("after: " + ", ".join(taken))
            raise
        finally:
            _abandon(world)

    def _identify(self, world: World) -> tuple[int, bool]:
        key = fingerprint(world.state(), world.loop.pending)
        state = self._ids.get(key)
        if state is not None:
            return state, False
        self._ids[key] = state = len(self._next)
        self._next.append([])
        return state, True

    def _count_orders(self) -> int:
        """Count the paths from the first state to those where nothing follows."""
        counts: dict[int, int] = {}
        begun: set[int] = set()
        stack = [0]
        while stack:
            state = stack[-1]
            begun.add(state)
            missing = [following for following in self._next[state] if following not in counts]
            if missing:
                if not begun.isdisjoint(missing):
                    msg = "the world can come back to a state it was in, so that its orders never end: bound its events"
                    raise ValueError(msg)
                stack.extend(missing)
            else:
                counts[state] = sum(counts[following] for following in self._next[state]) or 1
                stack.pop()
        return counts[0]


def _choices(world: World) -> list[tuple[str, Callable[[], None]]]:
    choices: list[tuple[str, Callable[[], None]]] = []
    if world.loop.ready:
        choices.append((_CALLBACK, world.loop.step))
    elif world.loop.next_timer is not None:
        choices.append((_CLOCK, world.loop.tick))
    choices.extend(world.events())
    return choices


def _abandon(world: World) -> None:
    """End what still runs in a world that is no longer needed, quietly."""
    while tasks := asyncio.all_tasks(world.loop):
        for task in tasks:
            task.cancel()
        world.loop.settle()
    world.loop.close()


# ---------------------------------------------------------------------- what makes two states the same


def fingerprint(*roots: object) -> bytes:
    """Return a digest of everything reachable from the roots: equal if they would go on in the same way.

    Objects are numbered in the order in which they are reached, so that only how they hang together
    counts. Digests of one process can be compared, no others. Raises TypeError for an object that it cannot look
    into, rather than take two states for one.
    """
    seen: dict[int, int] = {}
    alive: list[object] = []  # an id is an object's own only while the object lives
    out: list[object] = []
    todo: list[object] = [roots]
    while todo:
        item = todo.pop()
        kind = type(item)
        if kind in _PLAIN:
            out.append(item)
            continue
        identity = id(item)
        if identity in seen:
            out.append((seen[identity],))
            continue
        seen[identity] = len(seen)
        look = _looker(kind)  # type: ignore[arg-type]  # mypy: the class of object would have no hash
        if look is None:
            out.append(identity)
            continue
        contents = look(item)
        alive.append(item)
        alive.append(contents)
        out.append(id(kind))
        out.append(len(contents))
        todo += contents
    return hashlib.blake2b(repr(out).encode(), digest_size=16).digest()


_PLAIN = frozenset({type(None), bool, int, float, str, bytes})

_FIXED = (type, types.ModuleType, types.CodeType, enum.Enum)
"""What does not change while a world runs, and outlives it: told apart by identity."""

_IGNORED = (Context, VirtualLoop, types.FrameType)
"""What does not decide how a world goes on. Of the loop, `explore` gives what is ready and the timers."""

_TRANSPARENT = ("FutureIter", "TaskStepMethWrapper")
"""Types of asyncio's C part whose objects are nothing but what the garbage collector sees of them."""


@cache
def _looker(kind: type) -> Callable[[Any], Sequence[object]] | None:
    """Return what gives the contents of objects of a type; None for those that have none to look at."""
    if issubclass(kind, _FIXED):
        return None
    for base, look in _LOOKERS.items():
        if issubclass(kind, base):
            return look
    if any("__slots__" in vars(base) for base in kind.__mro__) or kind.__name__ in _TRANSPARENT:
        return gc.get_referents
    if kind.__dictoffset__:
        return _of_instance
    msg = f"cannot tell states apart by a {kind.__qualname__}: keep it out of World.state"
    raise TypeError(msg)


def _of_instance(item: object) -> list[object]:
    attributes = vars(item)
    return [*attributes, *attributes.values()]


def _of_dict(item: dict[object, object]) -> list[object]:
    return [*item, *item.values()]


def _of_set(item: set[object] | frozenset[object]) -> list[object]:
    return sorted(item, key=repr)


def _of_error(error: BaseException) -> list[object]:
    return [str(error), *getattr(error, "__notes__", ())]


def _of_partial(item: partial[object]) -> list[object]:
    return [item.func, item.args, item.keywords]


def _of_function(item: types.FunctionType) -> list[object]:
    return [item.__code__, item.__closure__, item.__defaults__, item.__kwdefaults__]


def _of_method(item: types.MethodType) -> list[object]:
    return [item.__self__, item.__func__]


def _of_builtin(item: types.BuiltinFunctionType) -> list[object]:
    return [item.__name__, item.__self__]


def _of_handle(handle: asyncio.Handle) -> list[object]:
    if handle.cancelled():
        return []
    return [handle._callback, handle._args]  # type: ignore[attr-defined]  # noqa: SLF001  typeshed leaves them out


def _of_future(future: asyncio.Future[object]) -> list[object]:
    contents: list[object] = [future._state]  # noqa: SLF001  nothing public tells all of these
    if future.done():
        contents += [None if future.cancelled() else future._exception or future._result]  # type: ignore[attr-defined]  # noqa: SLF001
    elif isinstance(future, asyncio.Task):
        contents += [future._must_cancel, future.cancelling(), future.get_coro(), future._fut_waiter]  # type: ignore[attr-defined]  # noqa: SLF001
    return contents + [callback for callback, _ in future._callbacks or ()]  # noqa: SLF001


def _of_coroutine(coroutine: types.CoroutineType[object, object, object]) -> list[object]:
    return _of_suspended(coroutine, coroutine.cr_frame)


def _of_generator(generator: types.GeneratorType[object, object, object]) -> list[object]:
    return _of_suspended(generator, generator.gi_frame)


def _of_iterator(item: Any) -> list[object]:
    return list(item.__reduce__()[1:])  # what it goes through, and how far it is


def _of_suspended(coroutine: object, frame: types.FrameType | None) -> list[object]:
    if frame is None:
        return []
    # Beside the local variables, the garbage collector sees what the coroutine is in the middle of evaluating.
    return [frame.f_lasti, *gc.get_referents(coroutine)]


def _of_nothing(_: object) -> tuple[()]:
    return ()


_LOOKERS: dict[Any, Callable[[Any], Sequence[object]]] = {
    **dict.fromkeys(_IGNORED, _of_nothing),
    list: list,
    tuple: tuple,
    deque: list,
    dict: _of_dict,
    set: _of_set,
    frozenset: _of_set,
    BaseException: _of_error,
    partial: _of_partial,
    types.FunctionType: _of_function,
    types.MethodType: _of_method,
    types.BuiltinFunctionType: _of_builtin,
    types.CellType: gc.get_referents,
    type(iter([])): _of_iterator,
    type(iter(())): _of_iterator,
    asyncio.Handle: _of_handle,
    asyncio.Future: _of_future,
    types.CoroutineType: _of_coroutine,
    types.GeneratorType: _of_generator,
}
