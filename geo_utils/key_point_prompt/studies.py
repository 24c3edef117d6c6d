"""The studies beside notebook 03's comparison: counted before, run, and read, each alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import pandas as pd

from geo_utils.corpus import Example
from geo_utils.earlier import Levels
from geo_utils.key_point_prompt import adoption, headroom, judges, power, transfer
from geo_utils.key_point_prompt.params import KeyPointPromptParams
from geo_utils.key_point_prompt.study import Found, Setting
from geo_utils.parameters import ParameterError
from geo_utils.plan import Rehearsal, quiet
from geo_utils.roles.make import Roles
from geo_utils.runs import Run

# Each has `ask(setting, progress)`, which makes every call of the study and, with planned roles,
# only counts them, and `read(setting, asked, run)`, which keeps what was asked in the run folder
# and returns what was found; None for nothing.
STUDIES: dict[str, ModuleType] = {
    "headroom": headroom,
    "adoption": adoption,
    "transfer": transfer,
    "judges": judges,
    "power": power,
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

        def rehearse(
            name: str, planned: Roles, examples: list[Example], samples: pd.DataFrame
        ) -> Sequence[Roles]:
            others = [roles.planned() for roles in self.made[name][1:]]
            options = getattr(self.params.studies, name)
            setting = Setting(self.params, options, [planned, *others], examples, samples)
            STUDIES[name].ask(setting, quiet)
            return others

        calling = [name for name, made in self.made.items() if any(r.callers for r in made)]
        return {name: partial(rehearse, name) for name in calling}

    def run(self, examples: Sequence[Example], samples: pd.DataFrame, run: Run) -> dict[str, Found]:
        """Run the studies, keep their samples in the run folder, and compute their tables.

        Args:
            examples: The corpus.
            samples: Of the comparison.
            run: `headroom.parquet`, `adoption.parquet`, `transfer.parquet` and `judges.parquet`
                are written to its folder.

        Returns:
            What each study found, by its name, or that it is off, or found nothing.
        """
        settings = {
            name: Setting(self.params, getattr(self.params.studies, name), made, examples, samples)
            for name, made in self.made.items()
        }
        # All are asked before any is read: which models have served is part of every caption.
        asked = {name: STUDIES[name].ask(setting) for name, setting in settings.items()}
        read = {name: STUDIES[name].read(settings[name], asked[name], run) for name in asked}
        off = "*Not run here: `studies.{}` is null, or found nothing to work on.*"
        return {name: read.get(name) or Found(off.format(name)) for name in STUDIES}


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
    if options.power and options.power.pilot is not None:
        power.load_pilot(options.power.pilot)


def study_levels(found: Mapping[str, Found], samples: pd.DataFrame) -> dict[str, Levels]:
    """Return what the studies ran more than once: judges on the same answers, engines.

    Args:
        found: As `Studies.run` returns it.
        samples: Of the comparison.
    """
    levels: dict[str, Levels] = {}
    judged = found["judges"].tables.get("samples", pd.DataFrame())
    for judge in judges.judges_in(judged):
        if judge.startswith("reader "):  # of hand labels, which most answers lack
            continue
        name = f"verdict: {judge}"
        own = samples.merge(judged[["query_id", "key_point", "answer", name]], how="left")
        supported = own[name].eq("supported").astype(float).where(own[name].notna())
        levels.setdefault("judge", {})[judge] = own.assign(supported=supported)
    moved = found["transfer"].tables.get("samples", pd.DataFrame())
    if len(moved):
        own = moved[moved["rewriter"] == transfer.OWN]
        levels["engine"] = {str(name): part for name, part in own.groupby("engine", sort=False)}
    return levels


def study_headline(found: Mapping[str, Found]) -> dict[str, Any]:
    """Return the numbers of the studies that the manifest records."""
    numbers = {name: value for study in found.values() for name, value in study.headline.items()}
    return {"studies": numbers} if numbers else {}
