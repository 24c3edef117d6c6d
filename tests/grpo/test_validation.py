"""The policy is judged as its training goes; the best stays, and patience ends it."""

from types import SimpleNamespace

import pytest
from conftest import run
from test_scoring import EXAMPLE, OTHER, PAGE, FakeEngine, FakeJudge, rewards

from geo_utils.files import append_jsonl, read_jsonl
from geo_utils.grpo.figures import validation_figure
from geo_utils.grpo.groups import prefiltered
from geo_utils.grpo.params import Prefilter, Validation
from geo_utils.grpo.validation import Validator, best_checkpoint
from geo_utils.roles.engines import Answer
from geo_utils.roles.judges import Verdict
from geo_utils.roles.policies import PolicyCard

ROWS = [
    {"prompt": [], "query_id": name, "key_point_number": 1, "shown": -1} for name in ("q1", "q2")
]


class Says(FakeJudge):
    """Supports a page that says so."""

    async def judge(self, key_point, answer):
        return Verdict("supported" if "Landed" in answer else "omitted")


class Writer:
    """A trainer whose policy writes what it is told, step by step."""

    def __init__(self, *batches):
        self.batches, self.asked, self.saved = list(batches), [], []

    def write_now(self, rows, seed, before=False):
        self.asked.append((len(rows), seed))
        return self.batches.pop(0)

    def save_model(self, folder):
        self.saved.append(folder)


def pages(*landed):
    return [f"{PAGE} {'Landed.' if one else 'Missed.'}" for one in landed]


def validator(writer, folder, engine=None, **options):
    made = rewards(["key_point"], engine, Says(), examples=(EXAMPLE, OTHER))
    card = PolicyCard("key_point")
    return Validator(writer, ROWS, made, Validation(every=2, **options), folder, card)


def begin(judge, step):
    control = SimpleNamespace(should_training_stop=False)
    judge.on_step_begin(None, SimpleNamespace(global_step=step), control)
    return control.should_training_stop


class TestValidation:
    def test_it_judges_every_so_often_and_keeps_the_best(self, tmp_path, monkeypatch):
        monkeypatch.setattr("geo_utils.grpo.validation.profiling_context", no_timer)
        shares = [pages(0, 1), pages(1, 1), pages(0, 0)]
        judge = validator(writer := Writer(*shares), tmp_path)
        assert not any(begin(judge, step) for step in range(4))
        judge.judge(4)
        judge.judge(4)  # as at the end of a training that has just been judged
        rows = read_jsonl(tmp_path / "validation.jsonl")
        assert [(r["step"], r["mean"]) for r in rows] == [(0, 0.5), (2, 1.0), (4, 0.0)]
        assert writer.asked == [(2, 0), (2, 2), (2, 4)]  # a draw of its own each time
        best = best_checkpoint(tmp_path / "checkpoints")
        assert best.name == "best-2" and [path.rsplit("-")[-1] for path in writer.saved] == [
            "0",
            "2",
        ]
        assert len(list((tmp_path / "checkpoints").iterdir())) == 1
        title = " ".join(validation_figure(rows, "s").get_suptitle().split())
        assert "went from 0.50" in title and "it was best at step 2, 1.00" in title
        equal = " ".join(validation_figure([rows[0], rows[0] | {"step": 4, "low": None}], "s")
                         .get_suptitle().split())  # fmt: skip
        assert "best" not in equal and equal.endswith("of step 0, whose checkpoint is kept")
        once = " ".join(validation_figure(rows[:1], "s").get_suptitle().split())
        assert (
            once.startswith("On validation queries the key-point probability is 0.50")
            and "went" not in once
        )

    def test_a_training_on_visibility_is_judged_by_it_and_asks_no_judge(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("geo_utils.grpo.validation.profiling_context", no_timer)
        made = rewards(
            ["visibility"], judge=(judge := Says()), examples=(EXAMPLE, OTHER), figure="word"
        )
        own, card = Validation(every=2), PolicyCard("key_point")
        for step, replies in enumerate([pages(1, 1), [f"{PAGE} {PAGE}"] * 2, ["", ""]]):
            Validator(Writer(replies), ROWS, made, own, tmp_path, card).judge(step)
        once, twice, none = (row["mean"] for row in read_jsonl(tmp_path / "validation.jsonl"))
        assert none == 0.0 < once < twice < 1.0 and not judge.asked
        figure = validation_figure(read_jsonl(tmp_path / "validation.jsonl"), "s", "word")
        assert "On validation queries the word count went" in figure.get_suptitle()
        assert best_checkpoint(tmp_path / "checkpoints").name == "best-1"

    def test_patience_ends_the_training_also_of_one_that_goes_on(self, tmp_path, monkeypatch):
        monkeypatch.setattr("geo_utils.grpo.validation.profiling_context", no_timer)
        judge = validator(Writer(*[pages(1, 0)] * 3), tmp_path, patience=2)
        assert [begin(judge, step) for step in range(5)] == [False] * 4 + [True]
        again = validator(Writer(), tmp_path, patience=2)
        assert begin(again, 4)  # and judges nothing twice

    def test_no_page_has_failed_and_no_answer_has_not(self, tmp_path, monkeypatch):
        monkeypatch.setattr("geo_utils.grpo.validation.profiling_context", no_timer)
        engine = FakeEngine({"blocked": Answer("", "blocked: SAFETY")})
        replies = ["", f"{PAGE} blocked"]
        validator(Writer(replies), tmp_path, engine).judge(0)
        (row,) = read_jsonl(tmp_path / "validation.jsonl")
        assert (row["mean"], row["n_samples"], row["abstentions"]) == (0.0, 1, 1)

    def test_what_could_not_be_judged_is_no_best(self, tmp_path, monkeypatch):
        monkeypatch.setattr("geo_utils.grpo.validation.profiling_context", no_timer)
        engine = FakeEngine({"": Answer("", "503: down")})
        validator(Writer(pages(1, 1)), tmp_path, engine).judge(0)
        (row,) = read_jsonl(tmp_path / "validation.jsonl")
        assert row["mean"] is None and best_checkpoint(tmp_path / "checkpoints") is None
        assert validation_figure([row], "s") is None

    def test_a_checkpoint_without_its_card_is_none(self, tmp_path):
        (tmp_path / "best-3").mkdir()
        PolicyCard().write(tmp_path / "best-1")
        assert best_checkpoint(tmp_path).name == "best-1"


def no_timer(*_):
    from contextlib import nullcontext

    return nullcontext()


class TestPrefilter:
    def kept(self, folder, *landed, writer=None, **options):
        made = rewards(["key_point"], judge=Says(), examples=(EXAMPLE, OTHER))
        writer = writer or Writer(pages(*landed))
        found = prefiltered(writer, ROWS, made, Prefilter(trials=4, **options), 0, folder)
        return [row["query_id"] for row in found]

    def test_prompts_of_middling_success_are_kept(self, tmp_path):
        assert self.kept(tmp_path / "a", 1, 1, 1, 1, 1, 0, 0, 0) == ["q2"]
        assert self.kept(tmp_path / "b", 1, 1, 1, 0, 0, 0, 0, 0) == ["q1"]
        lines = read_jsonl(tmp_path / "b" / "prefilter.jsonl")
        assert [line["success"] for line in lines] == [0.75, 0.0]

    def test_a_run_that_goes_on_asks_for_nothing_again(self, tmp_path):
        first = self.kept(tmp_path, 1, 0, 0, 0, 1, 1, 1, 0)
        assert self.kept(tmp_path, writer=Writer()) == first == ["q1", "q2"]

    def test_only_some_are_tried(self, tmp_path):
        found = self.kept(tmp_path, 1, 0, 0, 0, pairs=1)
        assert found == [row["query_id"] for row in read_jsonl(tmp_path / "prefilter.jsonl")]

    def test_none_left_is_an_error_with_a_way_out(self, tmp_path):
        with pytest.raises(ValueError, match="no prompt succeeds in 20% to 80% of 4 trials; widen"):
            self.kept(tmp_path, *[1] * 8)


def test_best_of_n_is_chosen_by_the_reward_on_answers_of_its_own(tmp_path):
    from geo_utils.grpo.params import RewardOptions
    from geo_utils.grpo.rewards import Rewards
    from geo_utils.grpo.rivals import FILE, BestOf, draw_rivals
    from geo_utils.roles.by_model import RewriteTask
    from geo_utils.runs import Run

    engine, task = FakeEngine(), RewriteTask("key_point")
    options = RewardOptions(funcs=["key_point", "negative_length"], weights=[1.0, 0.01])
    made = Rewards((EXAMPLE, OTHER), task, engine, Says(), options)
    final = SimpleNamespace(best_of=2)
    params = SimpleNamespace(evaluation=final, reward=options, seed=0, generation_size=6)
    own = Run(tmp_path)
    own.update()
    append_jsonl(tmp_path / "metrics.jsonl", [{"reward/engine_calls": 3.0}] * 2)
    short, long = pages(1, 1)[0], pages(1)[0] + " And so on."
    writer = Writer(
        [pages(0)[0], short, long, *pages(0, 0, 0)],  # six calls, two prompts: three each
        [*pages(0, 1), "", pages(0)[0]],
    )
    draw_rivals(writer, made, params, own, ROWS, ROWS)
    rows = read_jsonl(tmp_path / FILE)
    assert [(row["part"], row["n"]) for row in rows] == [("train", 3)] * 2 + [("held_out", 2)] * 2
    assert rows[0]["reply"] == rows[2]["reply"] == short and rows[0]["rewards"]["key_point"] == 1
    assert {index for _, _, index in engine.asked} == {1000}
    draw_rivals(Writer(), made, params, own, ROWS, ROWS)  # nothing is made again
    assert read_jsonl(tmp_path / FILE) == rows
    page = run(BestOf(tmp_path).rewrite("any", EXAMPLE, EXAMPLE.key_points[0]))
    assert "Landed" in page.text
