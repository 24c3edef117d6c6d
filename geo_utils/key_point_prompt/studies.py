"""The studies beside notebook 03's comparison: counted before, run, and read, each alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from geo_utils.corpus import Example
from geo_utils.files import resolve_path
from geo_utils.key_point_prompt import adoption, headroom, judges, power, transfer
from geo_utils.key_point_prompt.params import KeyPointPromptParams
from geo_utils.key_point_prompt.study import Found, Off, Setting, Study
from geo_utils.parameters import ParameterError
from geo_utils.plan import Rehearsal, quiet
from geo_utils.roles.make import Roles
from geo_utils.runs import Run

STUDIES: dict[str, Study] = {
    "headroom": headroom,
    "adoption": adoption,
    "transfer": transfer,
    "judges": judges,
}


@dataclass(frozen=True)
class Studies:
    """The studies that a run's parameters ask for, with the roles that they need.

    Attributes:
        params: The run's parameters.
        made: The roles of each study that is on, by its name: the run's own first.
    """

    params: KeyPointPromptParams
    made: Mapping[str, Sequence[Roles]]

    def rehearsals(self) -> dict[str, Rehearsal]:
        """Return what `plan.plan_calls` runs to count the calls of the studies."""
        return {
            name: partial(self._rehearse, name)
            for name, made in self.made.items()
            if any(roles.callers for roles in made)
        }

    def _rehearse(
        self, name: str, planned: Roles, examples: list[Example], samples: pd.DataFrame
    ) -> Sequence[Roles]:
        others = [roles.planned() for roles in self.made[name][1:]]
        STUDIES[name].ask(self._setting(name, [planned, *others], examples, samples), quiet)
        return others

    def _setting(
        self,
        name: str,
        made: Sequence[Roles],
        examples: Sequence[Example],
        samples: pd.DataFrame,
    ) -> Setting:
        options = getattr(self.params.studies, name)
        return Setting(self.params, options, made, examples, samples)

    def run(self, examples: Sequence[Example], samples: pd.DataFrame, run: Run) -> dict[str, Any]:
        """Run the studies, keep their samples in the run folder, and compute their tables.

        Args:
            examples: The corpus.
            samples: Of the comparison.
            run: `headroom.parquet`, `adoption.parquet`, `transfer.parquet`, `judges.parquet` and
                `label_sheet.csv` are written to its folder.

        Returns:
            What each study found, by its name; `Off` for one that is off, or found nothing.
        """
        found: dict[str, Found | None] = dict.fromkeys([*STUDIES, "power"])
        for name, made in self.made.items():
            setting = self._setting(name, made, examples, samples)
            found[name] = STUDIES[name].read(setting, STUDIES[name].ask(setting), run)
        if self.params.studies.power:
            found["power"] = power.read(self.params, samples)
        return {name: one or Off(name) for name, one in found.items()}


def make_studies(params: KeyPointPromptParams, roles: Roles) -> Studies:
    """Make what the studies need, and check that their models are there, before any call.

    Raises:
        FatalError: A model of the transfer matrix cannot be had.
    """
    made = {name: [roles] for name in STUDIES if getattr(params.studies, name) is not None}
    if params.studies.transfer is not None:
        made["transfer"] = transfer.transfer_roles(roles, params.studies.transfer)
    return Studies(params, made)


def check_studies(params: KeyPointPromptParams, examples: Sequence[Example]) -> None:
    """Refuse studies that this corpus, or this machine, has nothing for.

    Raises:
        ParameterError: Which, and the way out.
    """
    options = params.studies
    if options.adoption and max((len(e.sources) for e in examples), default=0) < 2:
        raise ParameterError(
            f"studies.adoption: every query of corpus {params.corpus.name!r} has one source; "
            "adoption needs at least two, set studies.adoption=null"
        )
    labels = options.judges.labels if options.judges else None
    if labels is not None and not resolve_path(labels).is_file():
        raise ParameterError(f"studies.judges.labels={labels!r}: no such file")
    if options.power and options.power.pilot is not None:
        power.load_pilot(options.power.pilot)


def more_findings(found: Mapping[str, Found], source: str) -> str:
    """Say in Markdown whether the lift would hold: transfer, judges and power."""
    about = {"transfer": "engines", "judges": "judges", "power": "queries"}
    parts = (f"**Other {what}.**\n\n{found[name].findings(source)}" for name, what in about.items())
    return "\n\n".join(parts)


def study_views(found: Mapping[str, Found], source: str) -> list[Styler]:
    """Return the tables of all studies that were run."""
    return [view for study in found.values() for view in study.views(f"Source: {source}.")]


def study_headline(found: Mapping[str, Found]) -> dict[str, Any]:
    """Return the numbers of the studies that the manifest records."""
    numbers = {name: value for study in found.values() for name, value in study.headline().items()}
    return {"studies": numbers} if numbers else {}
