"""Sittings: what was measured in one go, and which of them may be shown together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from geo_utils.efficiency.measurements import Measurement

SAME = 1.05  # two measurements of one setting may differ by so much


@dataclass(frozen=True)
class Sitting:
    """One machine, one process tree, with the same setting measured first and last.

    Attributes:
        name: Of the sitting.
        bench: Name of the first sitting that it agrees with; its own if there is none.
        device: Kind of hardware.
        date: Of its first row.
        settings: How many were measured.
        reference: The setting that was measured first and last; None if none was.
        first_s: Seconds per step of the first measurement, median.
        last_s: Likewise of the last; None if the sitting was cut short.
    """

    name: str
    bench: str
    device: str
    date: str
    settings: int
    reference: str | None = None
    first_s: float | None = None
    last_s: float | None = None

    @property
    def drift(self) -> float | None:
        """The last over the first measurement of the reference, less 1."""
        return self.last_s / self.first_s - 1 if self.first_s and self.last_s else None


def sittings(rows: Sequence[Measurement]) -> list[Sitting]:
    """Return the sittings that rows come from, in order of time.

    Two sittings agree where both measured the same reference, under the same conditions, and the
    medians of it differ by no more than `SAME`. One without a reference agrees with no other.
    """
    found: list[Sitting] = []
    known: list[tuple[tuple[object, ...], float, str]] = []
    by_name: dict[str, list[Measurement]] = {}
    for row in sorted(rows, key=lambda r: r.measured_at or ""):
        by_name.setdefault(row.sitting, []).append(row)
    for name, group in by_name.items():
        measured = [row for row in group if row.measured]
        ends = {row.reference: row for row in measured if row.reference}
        first, last, bench = ends.get("first"), ends.get("last"), name
        if first is not None:
            alone = first.model_copy(update={"sitting": "", "bench": ""})
            seconds = median([s for row in ends.values() for s in row.step_s_all or ()])
            near = [b for condition, other, b in known if condition == alone.condition
                    and max(seconds, other) <= SAME * min(seconds, other)]  # fmt: skip
            bench = near[0] if near else name
            known.append((alone.condition, seconds, bench))
        found.append(Sitting(
            name, bench, measured[0].device if measured else group[0].device,
            (group[0].measured_at or "")[:10], len({row.setting for row in measured}),
            first.setting if first else None, first.seconds if first else None,
            last.seconds if last else None,
        ))  # fmt: skip
    return found


def placed(rows: Sequence[Measurement]) -> list[Measurement]:
    """Return rows that know which other sittings they are shown together with."""
    benches = {sitting.name: sitting.bench for sitting in sittings(rows)}
    return [row.model_copy(update={"bench": benches[row.sitting]}) for row in rows]
