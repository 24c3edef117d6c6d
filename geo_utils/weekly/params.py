"""Parameters of notebook 05: which runs the week's deck is made from."""

from __future__ import annotations

from datetime import UTC, date, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from geo_utils.files import resolve_path
from geo_utils.parameters import NotebookParams
from geo_utils.records import Record, find_records, named_records

MOST_SLIDES = 15


class WeeklyParams(NotebookParams):
    """Parameters of notebook 05.

    Attributes:
        title: First line of the deck.
        runs: Run folders or run ids; empty for the newest finished run of each notebook and
            variant.
        since: An ISO date instead: everything that was started then or later, in UTC.
        notes: Markdown file with open questions and next steps, a section a heading; relative to
            the project's root.
        day: The deck's day, an ISO date; by default the day on which it is started, in UTC. On one
            day the same parameters write the same deck anew.
        most_slides: Most slides; figures that do not fit are counted on the first one.
        trials: Take trials too: smoke variants, a limited corpus, random weights or a simulated
            service, few queries. Runs that are named are always taken.
        least_queries: A comparison over fewer is a trial.
        pdf: Print the deck as PDF, where there is a browser.
        pptx: Write the deck as PowerPoint too, to be edited; needs the extra `pptx`.
    """

    notebook: ClassVar[str] = "05_weekly"

    title: Annotated[str, Field(min_length=1, max_length=80)]
    runs: list[str]
    since: str | None
    day: str
    notes: Annotated[str, Field(min_length=1)]
    most_slides: Annotated[int, Field(ge=6, le=MOST_SLIDES)]
    trials: bool
    least_queries: Annotated[int, Field(ge=1)]
    pdf: bool
    pptx: bool

    @property
    def settled(self) -> dict[str, Any]:
        """The day: a deck that is made over midnight stays the deck of the day before."""
        return {"day": self.day}

    @property
    def root(self) -> Path:
        """The folder of the runs, absolute."""
        return resolve_path(self.paths.output)

    @property
    def records(self) -> list[Record]:
        """All runs but the decks' own, oldest first."""
        return [r for r in find_records(self.root) if r.notebook != self.notebook]

    @field_validator("day", mode="before")
    @classmethod
    def _today(cls, day: Any) -> Any:
        return datetime.now(UTC).date().isoformat() if day is None else day

    @field_validator("since", "day", mode="before")
    @classmethod
    def _iso(cls, given: Any) -> Any:
        """Take a date that YAML has read as one, and refuse what is none."""
        if isinstance(given, date):
            return given.isoformat()[:10]
        if isinstance(given, str):
            try:
                return date.fromisoformat(given).isoformat()
            except ValueError:
                raise ValueError(f"{given!r} is no date; write 2026-01-31") from None
        return given

    @field_validator("notes")
    @classmethod
    def _readable(cls, notes: str) -> str:
        path = resolve_path(notes)
        if not path.is_file():
            raise ValueError(
                f"{notes!r}: no such file; copy params/05_weekly/notes.md and fill it in"
            )
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{notes!r} is no text in UTF-8") from None
        return notes

    @field_validator("pptx")
    @classmethod
    def _installed(cls, pptx: bool) -> bool:
        if pptx and find_spec("pptx") is None:
            raise ValueError(
                "python-pptx is not installed; type .venv/bin/pip install -e '.[pptx]', or leave "
                "pptx out"
            )
        return pptx

    @model_validator(mode="after")
    def _check_runs(self) -> Self:
        if self.runs and self.since is not None:
            raise ValueError(
                f"runs={self.runs!r} and since={self.since!r} choose differently: give one of them"
            )
        try:
            known = self.records
            named = named_records(self.runs, known)
        except ValueError as error:
            raise ValueError(f"runs: {error}") from None
        if any(record.notebook == self.notebook for record in named):
            raise ValueError(f"runs={self.runs!r}: a deck cannot be made from decks")
        return self


PARAMS = WeeklyParams
