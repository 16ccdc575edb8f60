"""What transfers cost that run beside other work: time passes for all of them while instructions run, and what is left is waited for."""

from typing import NamedTuple


class _Transfer(NamedTuple):
    """Under way: what carries it, for which executions of the program's loops, its class, and the seconds of it that are left."""

    carrier: str
    times: int
    of_class: str
    left: float


class Timeline:
    """Runs a program's instructions one after the other and its transfers beside them.

    A carrier ("network", "slices", "memory", "host", "compute") serves transfers in the order in which they began. An instruction that
    uses a carrier itself leaves it to transfers for the rest of its time only. `now`: seconds since the start, of all executions.
    """

    def __init__(self):
        self.now = 0.0
        self._under_way: dict[str, _Transfer] = {}

    def start(self, key: str, carrier: str, times: int, of_class: str, seconds: float):
        """A transfer of `seconds` begins, in each of `times` executions; one that is under way under this key takes so much longer."""
        begun = self._under_way.get(key, _Transfer(carrier, times, of_class, 0.0))
        self._under_way[key] = begun._replace(left=begun.left + seconds * times / begun.times)

    def run(self, times: int, seconds: float, busy: dict[str, float]):
        """An instruction of `seconds` runs `times`, and uses carriers for some of them."""
        self.now += times * seconds
        free: dict[str, float] = {}
        for key, transfer in self._under_way.items():
            left = free.setdefault(transfer.carrier, times * max(0.0, seconds - busy.get(transfer.carrier, 0.0)))
            # Where a loop turns between its start and its end, one execution of the transfer sees several of the instruction.
            done = min(left / transfer.times, transfer.left)
            free[transfer.carrier] -= done * transfer.times
            self._under_way[key] = transfer._replace(left=transfer.left - done)

    def finish(self, key: str) -> tuple[float, str]:
        """Waits for a transfer and for what its carrier serves before it: (seconds of all executions, its class), nothing for one that
        never began."""
        if key not in self._under_way:
            return 0.0, ""
        transfer, waits = self._under_way[key], 0.0
        for other, ahead in self._under_way.items():
            if ahead.carrier == transfer.carrier:
                waits += ahead.left * ahead.times / transfer.times  # of each execution of the one that is waited for
                self._under_way[other] = ahead._replace(left=0.0)
            if other == key:
                break
        del self._under_way[key]
        self.run(transfer.times, waits, {transfer.carrier: waits})
        return transfer.times * waits, transfer.of_class
