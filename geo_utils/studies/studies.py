"""The studies of notebook 03 as one run: what they need, call, find and leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from geo_utils.corpus import Example, KeyPoint, choose_key_points, draw_queries
from geo_utils.files import resolve_path, write_atomic
from geo_utils.key_point_params import KeyPointPromptParams
from geo_utils.loops import gather_all, run_sync
from geo_utils.models.planner import Planner
from geo_utils.parameter_errors import ParameterError
from geo_utils.params import NO_ID_NEEDED
from geo_utils.plan import Rehearsal
from geo_utils.progress import Progress
from geo_utils.prompts import load_template
from geo_utils.roles import Roles
from geo_utils.runs import Run
from geo_utils.statistics import paired_difference
from geo_utils.studies.adoption import (
    AdoptionCase,
    adoption_change,
    adoption_samples,
    adoption_table,
)
from geo_utils.studies.agreement import judge_again, judges_of, kappa_table
from geo_utils.studies.hand_labels import (
    Correction,
    accuracy_table,
    corrected_lift,
    label_sheet,
    with_labels,
)
from geo_utils.studies.headroom import headroom_samples, headroom_strata, headroom_table
from geo_utils.studies.power import Planned, load_pilot, pilot_variance, power_table
from geo_utils.studies.results import StudyTables
from geo_utils.studies.source_points import source_points
from geo_utils.studies.transfer import (
    TransferRoles,
    transfer_loss,
    transfer_roles,
    transfer_samples,
    transfer_table,
)
from geo_utils.summary import PAIR


@dataclass(frozen=True)
class Studies:
    """The studies that a run's parameters ask for, with the roles that they need.

    Attributes:
        params: The run's parameters.
        roles: The run's roles.
        transfer: Those of the transfer matrix.
    """

    params: KeyPointPromptParams
    roles: Roles
    transfer: TransferRoles | None

    def rehearsals(self) -> dict[str, Rehearsal]:
        """Return what `plan.plan_calls` runs to count the calls of the studies."""
        models = bool(self.roles.callers)
        options, found = self.params.studies, dict[str, Rehearsal]()
        if models and options.headroom:
            found["headroom"] = self._rehearse_headroom
        if models and options.adoption:
            found["adoption"] = self._rehearse_adoption
        if self.transfer and any(made.callers for made in self.transfer.made):
            found["transfer"] = self._rehearse_transfer
        if models and options.judges:
            found["judges"] = self._rehearse_judges
        return found

    def template_hashes(self) -> dict[str, str]:
        """Return the hashes of the prompt templates that the run has in use, studies included."""
        options, names = self.params.studies, []
        if options.adoption and self.roles.extractor is not None:
            names.append("extract_key_points")
        if options.judges and "judge" in self.roles.callers:
            names += ["judge_verdict", "judge_all_points"]
            names += ["judge_soft"] if self.params.judge not in NO_ID_NEEDED else []
        own = {name: load_template(name, self.roles.prompts).hash for name in names}
        return self.roles.template_hashes() | own

    def run(self, examples: Sequence[Example], samples: pd.DataFrame, run: Run) -> StudyTables:
        """Run the studies, keep their samples in the run folder, and compute their tables.

        Args:
            examples: The corpus.
            samples: Of the comparison.
            run: `headroom.parquet`, `adoption.parquet`, `transfer.parquet`, `judges.parquet` and
                `label_sheet.csv` are written to its folder.
        """
        params, options = self.params, self.params.studies
        found: dict[str, Any] = {}
        kept: dict[str, pd.DataFrame] = {}
        notes: dict[str, str] = {}
        if options.headroom:
            kept["headroom"] = run.save_table(self._headroom(examples, self.roles), "headroom")
            groups = options.headroom.groups
            found["headroom"] = headroom_table(kept["headroom"], groups)
            found["strata"] = headroom_strata(kept["headroom"])
            notes["headroom"] = _rewrites_note(params)
        if options.adoption:
            kept["adoption"] = run.save_table(self._adoption(examples, self.roles), "adoption")
            found["adoption"] = adoption_table(kept["adoption"])
            found["adoption_change"] = adoption_change(kept["adoption"])
            sources = kept["adoption"].drop_duplicates(["query_id", "key_point_number", "source"])
            found["origins"] = sources["origin"].value_counts().to_dict()
        if self.transfer and options.transfer:
            kept["transfer"] = run.save_table(self._transfer(examples, self.transfer), "transfer")
            found["transfer"] = transfer_table(kept["transfer"], params.seed)
            found["transfer_loss"] = transfer_loss(kept["transfer"], params.seed)
            named = (f"{name}: {what}" for name, what in self.transfer.labels.items())
            notes["transfer"] = "; ".join(named)
        if options.judges:
            table = self._judges(examples, samples, self.roles)
            sheet = run.folder / "label_sheet.csv"
            write_atomic(sheet, label_sheet(table, sheet))
            if options.judges.labels is not None:
                table = with_labels(table, resolve_path(options.judges.labels))
            kept["judges"] = run.save_table(table, "judges")
            found["kappa"] = kappa_table(kept["judges"])
            found["accuracy"] = accuracy_table(kept["judges"])
            found["correction"] = self._correction(samples, kept["judges"])
        if options.power:
            pilot = pilot_variance(samples, params.method, params.seed)
            found["pilot"] = pilot
            found["power"] = None if pilot is None else power_table(pilot, options.power)
        return StudyTables(**found, notes=notes, samples=kept)

    def power_before(self, plan: pd.DataFrame, examples: Sequence[Example]) -> pd.DataFrame | None:
        """Say, before the first call, how many queries each lift needs and what they cost.

        Args:
            plan: As `plan.plan_calls` returns it.
            examples: The corpus.

        Returns:
            As `power.power_table`; None where the study is off.
        """
        options = self.params.studies.power
        if options is None:
            return None
        pilot = None
        if options.pilot is not None:
            earlier = load_pilot(options.pilot)
            if self.params.method not in set(earlier["method"]):
                raise ParameterError(
                    f"studies.power.pilot={options.pilot!r}: has no samples of "
                    f"method={self.params.method!r}; it has {', '.join(set(earlier['method']))}"
                )
            pilot = pilot_variance(earlier, self.params.method, self.params.seed)
        if pilot is None:  # the bound is the same for any number of answers
            options = options.model_copy(update={"repeats": [self.params.repeats]})
        pairs = choose_key_points(examples, self.params.key_points, self.params.seed)
        queries = max(len({example.query_id for example, _ in pairs}), 1)
        planned = Planned(queries, max(len(pairs), 1) / queries, self.params.repeats)
        return power_table(pilot, options, plan, planned)

    def _headroom(
        self, examples: Sequence[Example], roles: Roles, progress: Progress | None = None
    ) -> pd.DataFrame:
        params, options = self.params, self.params.studies.headroom
        assert options is not None
        drawn = draw_queries(examples, options.queries, params.seed)
        pairs = choose_key_points(drawn, params.key_points, params.seed)
        return headroom_samples(
            pairs, params.method, roles.engine, roles.judge, roles.rewriter, options,
            params.seed, progress,
        )  # fmt: skip

    def _adoption(
        self, examples: Sequence[Example], roles: Roles, progress: Progress | None = None
    ) -> pd.DataFrame:
        params, options = self.params, self.params.studies.adoption
        assert options is not None
        drawn = draw_queries(examples, options.queries, params.seed)
        pairs = choose_key_points(drawn, params.key_points, params.seed)
        counting = isinstance(roles.extractor, Planner)

        async def case(example: Example, chosen: KeyPoint) -> AdoptionCase:
            points = await source_points(
                example, chosen, roles.extractor, roles.prompts, params.seed,
                counting,
            )  # fmt: skip
            return AdoptionCase(example, chosen, tuple(points))

        cases = run_sync(gather_all(case(example, point) for example, point in pairs))
        return adoption_samples(
            cases, params.method, roles.engine, roles.judge, roles.rewriter, options.repeats,
            params.seed, progress,
        )  # fmt: skip

    def _transfer(
        self, examples: Sequence[Example], roles: TransferRoles, progress: Progress | None = None
    ) -> pd.DataFrame:
        params, options = self.params, self.params.studies.transfer
        assert options is not None
        drawn = draw_queries(examples, options.queries, params.seed)
        methods = options.methods or [params.method]
        return transfer_samples(
            roles, drawn, methods, options.repeats, params.key_points, params.seed, progress
        )

    def _judges(
        self, examples: Sequence[Example], samples: pd.DataFrame, roles: Roles
    ) -> pd.DataFrame:
        options = self.params.studies.judges
        assert options is not None
        judges = judges_of(roles.judge, options, self.params.judge not in NO_ID_NEEDED)
        return judge_again(samples, examples, judges, options.answers, self.params.seed)

    def _correction(self, samples: pd.DataFrame, judged: pd.DataFrame) -> Correction | str:
        """Correct the lift of the method under study for the errors of the run's own judge."""
        own = "lexical"
        if self.params.judge != "offline":
            own = "soft" if self.params.judge_mode == "soft" else "verdict"
        wide = samples.pivot(index=PAIR, columns="method", values="supported")
        lift = paired_difference(
            wide[self.params.method].to_numpy(float), wide["original"].to_numpy(float),
            wide.index.get_level_values("query_id").tolist(), self.params.seed,
        )  # fmt: skip
        return corrected_lift(lift, judged, own)

    def _rehearse_headroom(
        self, planned: Roles, examples: list[Example], samples: pd.DataFrame
    ) -> Sequence[Roles]:
        self._headroom(examples, planned, _quiet)
        return ()

    def _rehearse_adoption(
        self, planned: Roles, examples: list[Example], samples: pd.DataFrame
    ) -> Sequence[Roles]:
        self._adoption(examples, planned, _quiet)
        return ()

    def _rehearse_transfer(
        self, planned: Roles, examples: list[Example], samples: pd.DataFrame
    ) -> Sequence[Roles]:
        assert self.transfer is not None and self.params.studies.transfer is not None
        roles = self.transfer.planned(planned, self.params.studies.transfer)
        self._transfer(examples, roles, _quiet)
        return roles.made[1:]

    def _rehearse_judges(
        self, planned: Roles, examples: list[Example], samples: pd.DataFrame
    ) -> Sequence[Roles]:
        self._judges(examples, samples, planned)
        return ()


def make_studies(params: KeyPointPromptParams, roles: Roles) -> Studies:
    """Make what the studies need, and check that their models are there, before any call.

    Raises:
        FatalError: A model of the transfer matrix cannot be had.
    """
    options = params.studies.transfer
    return Studies(params, roles, transfer_roles(roles, options) if options else None)


def check_studies(params: KeyPointPromptParams, examples: Sequence[Example]) -> None:
    """Refuse studies that this corpus, or this machine, has nothing for.

    Raises:
        ParameterError: Which, and the way out.
    """
    options = params.studies
    if options.adoption and max((len(e.sources) for e in examples), default=0) < 2:
        raise ParameterError(
            f"studies.adoption: every query of corpus={params.corpus!r} has one source; adoption "
            "needs at least two, set studies.adoption=null"
        )
    if options.judges and options.judges.labels is not None:
        path = resolve_path(options.judges.labels)
        if not path.is_file():
            raise ParameterError(f"studies.judges.labels={options.judges.labels!r}: no such file")
    if options.power and options.power.pilot is not None:
        load_pilot(options.power.pilot)


def _rewrites_note(params: KeyPointPromptParams) -> str:
    """Say how the k rewrites of a page come about."""
    if params.rewriter == "offline":
        return "the k rewrites are seeded forms of one edit, no model's"
    return f"the k rewrites are sampled at temperature {params.temperature:g}"


def _quiet(done: int, total: int) -> None:
    """Show nothing: a rehearsal."""
