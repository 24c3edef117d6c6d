"""Terminated once and killed with -9 thrice, a run ends as one left alone; see kill_many."""

import signal

import pytest
from kill_many import Case, undisturbed

from geo_utils.runs import Run


@pytest.mark.parametrize(
    ("what", "log"), [("evaluations", "usage.jsonl"), ("trainings", "metrics.jsonl")]
)
def test_ended_four_times_it_ends_as_if_never(tmp_path, what, log):
    expected = undisturbed(what, tmp_path / "undisturbed")
    whole = 16 if what == "trainings" else len(expected["calls"])
    case = Case(what, tmp_path / "killed")
    after = lambda share: lambda _: len(case.rows(log)) >= share * whole  # noqa: E731
    with case.server:
        case.kill("parent", after(0.1), signal.SIGTERM)
        assert len(case.rows(log)) < whole
        for share, kind in ((0.25, "all"), (0.5, "kernel"), (0.75, "parent")):
            told = case.kill(kind, after(share))
            assert " killed " in told, told
        case.finish()
    assert not case.problems(expected)
    (manifest,) = case.files("manifest.json")
    assert len(Run(manifest.parent).manifest["attempts"]) == 1 + len(case.lost)
