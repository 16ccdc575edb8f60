"""Compiles the most promising of many things that could be planned, several at a time, until no other can win or the means are used up.

What is promising is told by bounds (`lm.plan.analytic`), which cost microseconds; compiled plans then say how far the bounds were off for
things like them. A thing that is given is only left out where its bounds prove that it cannot fit or cannot be the best.
"""

import collections
import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable, Hashable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from lm.errors import ConfigError, PlanError
from lm.plan.analytic import Bound
from lm.plan.topology import Topology

# What a plan must promise more for each that is compiled already and is like it, or for the same topology: it tells less that is new.
ALIKE, SAME_TOPOLOGY = 0.03, 0.25


@dataclasses.dataclass(frozen=True)
class Item:
    """A thing to plan: how its config is made, for which topology, its bound, what a second of a step costs, and what others it is like.

    `limit` are the bytes of a device, `slowest` the seconds that a step may take. `needed` ones are compiled whatever their bounds say.
    `leaner` gives what to try where it does not fit.
    """

    name: str
    config: Callable[[], object]
    topology: Topology
    bound: Bound
    limit: float
    price: float = 1.0
    slowest: float = math.inf
    kinds: tuple[Hashable, ...] = ()
    needed: bool = False
    leaner: Callable[[], "Item | None"] = lambda: None

    @property
    def least_cost(self) -> float:
        """It cannot cost less."""
        return self.price * self.bound.seconds

    @property
    def possible(self) -> bool:
        """Whether it may fit, and be fast enough."""
        return self.bound.memory <= self.limit and self.bound.seconds <= self.slowest


@dataclasses.dataclass
class Tried:
    """An item with its plan, or with why there is none."""

    item: Item
    plan: dict | None
    error: str = ""

    @property
    def cost(self) -> float:
        """What a step costs; infinite where it does not fit, is too slow, or has no plan."""
        if not self.plan or not self.plan["fits"] or self.plan["estimated_step_seconds"] > self.item.slowest:
            return math.inf
        return self.item.price * self.plan["estimated_step_seconds"]


@dataclasses.dataclass
class Outcome:
    """What was tried, in the order in which it was done; why no more was; seconds that it took."""

    tried: list[Tried]
    stopped: str
    seconds: float

    def best(self) -> Tried | None:
        """The cheapest that fits; of equal ones the first."""
        return min((each for each in self.tried if each.cost < math.inf), key=lambda each: each.cost, default=None)


class Ranking:
    """Orders items by what those tried so far say of them."""

    def __init__(self, items: list[Item]):
        """`items` in the order in which equal ones are preferred."""
        self.items, self.chosen = items, 0  # needed ones are not chosen
        self._names = {item.name for item in items}
        self._times: dict[Hashable, list[float]] = {}
        self._sizes: dict[Hashable, list[float]] = {}
        self._seen: collections.Counter = collections.Counter()

    def started(self, item: Item):
        """It is being compiled: others like it tell less."""
        self.items.remove(item)
        self.chosen += not item.needed
        self._seen.update((item.kinds, item.topology))

    def learn(self, tried: Tried):
        """How far its bounds were off."""
        if not tried.plan:
            return
        item, plan = tried.item, tried.plan
        leaner = None if plan["fits"] else item.leaner()
        if leaner and leaner.name not in self._names:
            self._names.add(leaner.name)
            self.items.append(leaner)
        devices = item.topology.devices_per_chip
        for kind in (None, *item.kinds):
            self._sizes.setdefault(kind, []).append(plan["hbm_bytes_per_chip"] / devices / item.bound.likely)
            if plan["estimated_step_seconds"]:
                self._times.setdefault(kind, []).append(plan["estimated_step_seconds"] / item.bound.serial)

    def cost(self, item: Item) -> float:
        """What it may cost: at least its bound."""
        return max(item.least_cost, item.price * item.bound.serial * self._off(self._times, item))

    def bytes(self, item: Item) -> float:
        """What it may hold: at least its bound."""
        return max(item.bound.memory, item.bound.likely * self._off(self._sizes, item))

    def _off(self, learned, item) -> float:
        known = next((learned[kind] for kind in (*item.kinds, None) if kind in learned), [1.0])
        return statistics.geometric_mean(known)

    def next(self, best: float) -> Item | None:
        """What to compile next, where `best` is the least cost so far; None when nothing left can cost less."""
        open_items = [item for item in self.items if item.needed or (item.possible and item.least_cost < best)]

        def order(item):
            alike = 1 + ALIKE * self._seen[item.kinds] + SAME_TOPOLOGY * self._seen[item.topology]
            return not item.needed, self.bytes(item) > item.limit, self.cost(item) * alike

        return min(open_items, key=order, default=None)


def best_first(items: list[Item], plan: Callable[[Item], dict], *, most: int, seconds: float, workers: int,
               close: Callable[[], None] = lambda: None, say: Callable[[str], None] | None = None) -> Outcome:
    """Plans at most `most` items (those that are `needed` beside), at most `workers` at a time, for at most `seconds`.

    `plan` may be called from several threads; ConfigError and PlanError of it are an answer. `close` makes running calls end early.
    """
    start, ranking, tried, running = time.monotonic(), Ranking(list(items)), [], {}
    say = say or tell
    threads = ThreadPoolExecutor(workers)
    try:
        while True:
            best = min((each.cost for each in tried), default=math.inf)
            left = seconds - (time.monotonic() - start)
            stopped = _fill(ranking, running, best, lambda item: threads.submit(plan, item), workers, most, left)
            if not running:
                return Outcome(tried, stopped, time.monotonic() - start)
            done, _ = wait(running, timeout=max(0.0, left), return_when=FIRST_COMPLETED)
            if not done:
                return Outcome(tried, f"the time was used up ({seconds:g} s); {len(running)} not finished", time.monotonic() - start)
            for future in done:
                each = _result(running.pop(future), future)
                tried.append(each)
                ranking.learn(each)
                say(_line(len(tried), each, time.monotonic() - start))
    finally:
        close()
        threads.shutdown(wait=True, cancel_futures=True)


def _fill(ranking: Ranking, running: dict[Future, Item], best, submit, workers, most, left) -> str:
    """Starts what there is a free worker for; why nothing more is started, "" where all workers are busy."""
    while len(running) < workers:
        item = ranking.next(best)
        if item is None:
            return "nothing else that looked promising can be better"
        if left <= 0:
            return "the time was used up"
        if ranking.chosen >= most and not item.needed:
            return f"{most} were chosen"
        ranking.started(item)
        running[submit(item)] = item
    return ""


def _result(item: Item, future: Future) -> Tried:
    try:
        return Tried(item, future.result())
    except (ConfigError, PlanError) as error:
        return Tried(item, None, str(error))


def _line(number: int, tried: Tried, seconds: float) -> str:
    if not tried.plan:
        found = f"failed: {tried.error}"
    elif tried.plan["fits"]:
        found = f"{tried.plan['estimated_step_seconds']:.4g} s a step, {tried.plan['hbm_bytes_per_chip'] / 2**30:.2f} GiB"
    else:
        found = f"does not fit: {tried.plan['hbm_bytes_per_chip'] / 2**30:.2f} GiB"
    return f"compiled {number} ({seconds:.0f} s)  {tried.item.name}: {found}"


def tell(text: str):
    """A line of progress on standard error."""
    print(text, file=sys.stderr, flush=True)
