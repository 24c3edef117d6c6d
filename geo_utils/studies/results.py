"""What the studies of notebook 03 found, in one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from geo_utils.studies.hand_labels import Correction
from geo_utils.studies.power import PilotVariance


@dataclass(frozen=True)
class StudyTables:
    """What the studies found; a table of a study that is off, or had nothing, is None.

    Attributes:
        headroom: As `headroom.headroom_table`.
        strata: As `headroom.headroom_strata`.
        adoption: As `adoption.adoption_table`.
        adoption_change: As `adoption.adoption_change`.
        origins: How many sources have their key point from where.
        transfer: As `transfer.transfer_table`.
        transfer_loss: As `transfer.transfer_loss`.
        kappa: As `agreement.kappa_table`.
        accuracy: As `hand_labels.accuracy_table`; without rows where there are no labels.
        correction: As `hand_labels.corrected_lift`, of the method under study: or why there is
            none.
        power: As `power.power_table`, with this run as the pilot.
        pilot: What that rests on.
        notes: What a caption has to say, by study.
        samples: The samples of each study, by its name.
    """

    headroom: pd.DataFrame | None = None
    strata: pd.DataFrame | None = None
    adoption: pd.DataFrame | None = None
    adoption_change: Mapping[str, float] | None = None
    origins: Mapping[str, int] | None = None
    transfer: pd.DataFrame | None = None
    transfer_loss: pd.DataFrame | None = None
    kappa: pd.DataFrame | None = None
    accuracy: pd.DataFrame | None = None
    correction: Correction | str | None = None
    power: pd.DataFrame | None = None
    pilot: PilotVariance | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def headline(self) -> dict[str, Any]:
        """Return the numbers that the manifest records."""
        found: dict[str, Any] = {}
        if self.headroom is not None:
            wanted = self.headroom[["mean", "low", "high", "n_queries"]].to_dict("index")
            found["headroom"] = {str(name): _plain(row) for name, row in wanted.items()}
        if self.adoption is not None:
            rows = self.adoption.to_dict("index")
            found["adoption"] = {str(n): _plain(row) for n, row in rows.items()}
        if self.kappa is not None:
            table = self.kappa.rename(columns={"kappa": "mean"})
            rows = table[["mean", "low", "high", "n_queries"]].to_dict("index")
            found["kappa"] = {str(name): _plain(row) for name, row in rows.items()}
        return {"studies": found} if found else {}


def _plain(row: Mapping[Any, Any]) -> dict[str, float | int | None]:
    whole = ("n_", "abstentions")
    return {
        str(name): None if pd.isna(value)
        else int(value) if str(name).startswith(whole) else float(value)
        for name, value in row.items()
    }  # fmt: skip
