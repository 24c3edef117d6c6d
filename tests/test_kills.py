"""Killed with -9 at three moments, a run ends as one that nobody killed; see kill_many."""

import pytest
from kill_many import Case, undisturbed


@pytest.mark.parametrize(
    ("what", "log"), [("evaluations", "usage.jsonl"), ("trainings", "metrics.jsonl")]
)
def test_killed_three_times_it_ends_as_if_never(tmp_path, what, log):
    expected = undisturbed(what, tmp_path / "undisturbed")
    whole = 16 if what == "trainings" else len(expected["calls"])
    case = Case(what, tmp_path / "killed")
    with case.server:
        for share, kind in ((0.25, "all"), (0.5, "kernel"), (0.75, "parent")):
            told = case.kill(kind, lambda _, share=share: len(case.rows(log)) >= share * whole)
            assert " killed " in told, told
        case.finish()
    assert not case.problems(expected)
