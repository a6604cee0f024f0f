"""One measured figure, and the two ways in which it stands beside another."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Scale:
    """How much is measured: how often, and on how many people.

    people: so many records are compared with other ways to load them; sizes: what takes ten times as many records is compared.
    """

    quick: bool = False
    long: bool = False

    @property
    def times(self) -> int:
        """Return how often what takes long is repeated."""
        return 1 if self.quick else 3

    @property
    def times_of_short(self) -> int:
        """Return how often what takes a second is repeated."""
        return 1 if self.quick else 5

    @property
    def repeats(self) -> int:
        """Return how often cross-validation is repeated: as train does where nothing else is said."""
        return 1 if self.quick else 10

    @property
    def people(self) -> int:
        """Return of how many people a delivery is."""
        return 2_000 if self.quick else 1_000_000

    @property
    def sizes(self) -> tuple[int, int]:
        """Return two numbers of people, of whom one is `people`."""
        return (self.people, self.people * 10) if self.long else (self.people // 10, self.people)


@dataclass(frozen=True)
class Figure:
    """A measurement: its value, what it is compared with, and the most that ratio or difference may be.

    ratio: value / compared value; difference: value minus compared value, in the value's unit. A target belongs to the one that
    is given, to the value itself where neither is.
    """

    name: str
    value: float
    unit: str
    compared_with: str = ""
    ratio: float | None = None
    difference: float | None = None
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """Return whether the target is reached; None where there is none."""
        judged = next(v for v in (self.ratio, self.difference, self.value) if v is not None)
        return None if self.target is None else judged <= self.target

    def as_dict(self) -> dict[str, object]:
        """Return the figure for bench.json."""
        return asdict(self) | {"met": self.met}

    def cells(self) -> list[str]:
        """Return the figure as the cells of a table's row."""
        beside = f"{self.ratio:.2f} ×" if self.ratio is not None else ""
        if self.difference is not None:
            beside = f"{self.difference:+.2f} {self.unit}"
        target = "" if self.target is None else f"≤ {self.target:g}{' ×' if self.ratio is not None else f' {self.unit}'}"
        met = {True: "yes", False: "**no**", None: ""}[self.met]
        return [self.name, f"{self.value:.2f} {self.unit}" if self.value < 100 else f"{self.value:.0f} {self.unit}",
                self.compared_with, beside, target, met]  # fmt: skip


def seconds(work: Callable[[], object], times: int) -> float:
    """Return the median wall time of some repetitions, in seconds."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
