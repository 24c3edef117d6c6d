"""A record stands in for its model: the same answers, no call, and what is missing stops."""

import asyncio
import json

import pandas as pd
import pytest
from conftest import PROJECT, run
from headless import command, sets
from test_caller import QUICK, Scripted, ask
from test_models import Replica

from geo_utils.certificate import certificate, correct, load_labels, with_labels
from geo_utils.corpus import load_corpus
from geo_utils.key_point_prompt.studies import STUDIES, make_studies
from geo_utils.key_point_prompt.study import Setting
from geo_utils.models.base import Completion, FatalError, UnusableError
from geo_utils.models.cache import AnswerCache
from geo_utils.models.caller import Caller
from geo_utils.models.loops import run_sync
from geo_utils.models.record import Record, Recorded, write_record
from geo_utils.models.usage import Usage
from geo_utils.notebooks import read_parameters
from geo_utils.plan import quiet
from geo_utils.prompts import load_template
from geo_utils.roles.make import make_roles
from geo_utils.roles.methods import PREVIOUS, label, pooled
from geo_utils.roles.simulated_gemini import reply
from geo_utils.show.tables import intervals
from geo_utils.summary import summarise

METHODS = ["original", "key_point"]
SHIPPED = PROJECT / "geo_utils" / "data" / "record"
LABELS = SHIPPED / "labels.jsonl"


@pytest.fixture
def recorded(tmp_path):
    """Answers to two requests, recorded."""
    cache = AnswerCache(tmp_path / "cache")
    model = Scripted(*(Completion(t, tokens_out=2, served_by="scripted") for t in ("one", "two")))
    caller = Caller(model, cache)
    asked = [ask("a", template="t"), ask("b", template="t")]
    for request in asked:
        run(caller.complete(request))
    about = {"date": "2026-11-29", "gpu": "one H200", "templates": {"engine_answer": "t"}}
    write_record(tmp_path / "cache", tmp_path / "record", about)
    return tmp_path / "record", asked


def test_it_gives_what_was_answered_and_nothing_is_called(recorded):
    folder, asked = recorded
    record = Record(folder)
    caller = Caller(Recorded("scripted", record), record)
    assert [run(caller.complete(request)).text for request in asked] == ["one", "two"]
    report = caller.usage.report()["engine"]
    assert (report["calls"], report["cached"]) == (0, 2)
    assert record.about["models"] == ["scripted"] and record.about["answers"] == 2


@pytest.mark.parametrize(
    ("model", "changes", "why"),
    [
        ("scripted", {"prompt": "c"}, "its query, pages, sampling or repeat were not recorded"),
        ("scripted", {"sample_index": 1}, "its query, pages, sampling or repeat were not recorded"),
        ("scripted", {"template": "u"}, "its prompt template was changed since"),
        ("another", {}, "it holds answers of scripted"),
    ],
)
def test_what_it_lacks_stops_the_run_and_says_why(recorded, model, changes, why):
    record = Record(recorded[0])
    caller = Caller(Recorded(model, record), record)
    with pytest.raises(FatalError, match=f"no answer of {model} to this engine's request: {why}"):
        run(caller.complete(ask(**({"prompt": "a", "template": "t"} | changes))))


def test_a_call_that_failed_fails_as_it_did(tmp_path):
    ledger, cache = tmp_path / "usage.jsonl", AnswerCache(tmp_path / "cache")
    blocked = UnusableError("prompt blocked", "blocked")
    torn = UnusableError("cut off", "truncated", again=True)
    caller = Caller(Scripted(blocked, torn), cache, QUICK, Usage(ledger=ledger))
    with pytest.raises(UnusableError):
        run(caller.complete(ask("one")))
    run(caller.complete(ask("two")))  # whose second try did better
    write_record(tmp_path / "cache", tmp_path / "record", {}, [ledger])
    record = Record(tmp_path / "record")
    again = Caller(Recorded("scripted", record), record)
    with pytest.raises(UnusableError, match="as when the record was made") as caught:
        run(again.complete(ask("one")))
    assert caught.value.kind == "blocked"
    assert run(again.complete(ask("two"))).text == "answer to two"


def test_a_folder_without_one_and_a_torn_file_are_named(recorded, tmp_path):
    with pytest.raises(ValueError, match="holds no record"):
        Record(tmp_path / "nowhere")
    (part,) = recorded[0].glob("*.xz")
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(ValueError, match="holds no record"):
        Record(recorded[0])


def test_files_stay_below_a_megabyte_and_an_older_record_goes(tmp_path, monkeypatch):
    monkeypatch.setattr("geo_utils.models.record._PART", 4_000)
    cache = AnswerCache(tmp_path / "cache")
    caller = Caller(Scripted(), cache)
    for i in range(30):
        run(caller.complete(ask(f"question {i}")))
    folder = tmp_path / "record"
    folder.mkdir()
    (folder / "99.answers.jsonl.xz").write_bytes(b"old")
    written = write_record(tmp_path / "cache", folder, {})
    assert len(written) > 3 and {path.name for path in folder.iterdir()} == {
        path.name for path in written
    }
    assert sum(1 for _ in Record(folder)._answers) == 30


def test_an_evaluation_is_replayed_to_the_same_table(gemini_server, tmp_path):
    """All roles by a model on a real server; then the same without server, key or address."""
    server = gemini_server()
    model = "gemini/gemini-2.5-flash-lite"
    pairs = {
        "engine": model, "judge": model, "rewriter": model, "corpus.limit": "3", "repeats": "2",
        "servers": json.dumps(dict.fromkeys(("engine", "judge", "rewriter"), server.url)),
        "methods": json.dumps(METHODS), "paths.cache": str(tmp_path / "cache"),
    }  # fmt: skip
    asked = read_parameters("02", "smoke", [*pairs.items()])[2]
    examples = load_corpus(**asked.corpus_options)
    live = make_roles(asked).evaluate(examples, METHODS)
    # As a record of the service itself: a stand-in's answers have keys of their own.
    cache = AnswerCache(tmp_path / "cache")
    assert len(list(cache.entries())) == len(server.entries())
    write_record(tmp_path / "cache", tmp_path / "record", {"date": "2026-11-29"})
    replayed = asked.model_copy(update={"record": str(tmp_path / "record")})
    roles = make_roles(replayed)
    for caller in roles.callers.values():
        caller.model.cache_id = "gemini-2.5-flash-lite at another address"
    pd.testing.assert_frame_equal(roles.evaluate(examples, METHODS), live)
    assert roles.source().startswith("recorded 2026-11-29, nothing was called: ")
    assert not sum(role["calls"] for role in roles.usage.report().values())


@pytest.fixture(scope="module")
def recorded_03():
    """The samples of notebook 03 on the record, and their seed."""
    params = read_parameters("03", "recorded")[2]
    samples = make_roles(params).evaluate(load_corpus(**params.corpus_options), params.methods)
    return samples, params.seed


class TestShipped:
    def test_its_templates_are_the_shipped_ones(self):
        """Where one was changed on purpose, `geo record` makes the record anew."""
        told = Record(SHIPPED).about["templates"]
        assert told == {name: load_template(name).hash for name in told}

    def test_it_answers_all_that_the_recorded_parameters_ask(self):
        params = read_parameters("03", "recorded", [("corpus.limit", "4")])[2]
        roles = make_roles(params)
        samples = roles.evaluate(load_corpus(**params.corpus_options), params.methods)
        assert len(samples) == 4 * len(params.methods) * params.repeats
        lost = samples["abstention"].dropna()
        assert lost.str.startswith("rewriter: short").all()
        assert not sum(role["calls"] for role in roles.usage.report().values())
        assert "recorded 2026-11-29 on one NVIDIA H200, nothing was called" in roles.source()

    # Of all queries: one reply that is cleaned another way is another page, which was not recorded.
    @pytest.mark.parametrize(("judge", "limit"), [("offline", "null"), ("offline/strict", "4")])
    def test_it_answers_the_studies_whatever_the_judge_says(self, judge, limit):
        params = read_parameters("03", "recorded", [("corpus.limit", limit), ("judge", judge)])[2]
        roles, examples = make_roles(params), load_corpus(**params.corpus_options)
        for name, made in make_studies(params, roles).made.items():
            setting = Setting(params, getattr(params.studies, name), made, examples, pd.DataFrame())
            assert name == "power" or STUDIES[name].ask(setting, quiet)["answer"].notna().any()
        assert not sum(role["calls"] for role in roles.usage.report().values())

    def test_the_readmes_tables_are_what_it_says(self, recorded_03):
        samples, seed = recorded_03
        summary, found = summarise(samples, seed=seed), correct(samples, load_labels(str(LABELS)))
        readme = (PROJECT / "README.md").read_text()

        def told(head):
            rows = readme.partition(head)[2].partition("\n\n")[0].splitlines()[2:]
            return [[cell.strip() for cell in row.strip("| ").split("|")] for row in rows]

        def line(table, kind, name, signed=False):
            return intervals(table, kind, signed=signed).get(name, "–")

        rows = told("| key-point probability |")
        assert len(rows) == 5
        for name, *cells in rows:
            (method,) = (str(m) for m in summary.index if label(str(m)) == name)
            row, own, lifts = summary.loc[method], found.probabilities, found.lifts
            assert cells == [
                *(line(own, kind, method) for kind in ("raw", "corrected")),
                *(line(lifts, kind, method, signed=True) for kind in ("raw", "corrected")),
                f"{row['n_samples']} samples of {row['n_examples']} queries, "
                f"{row['abstentions']} abstentions, {own.loc[method, 'n_labels']} labels",
            ]
            assert own.loc[method, "raw"] == pytest.approx(row["key_point_probability"])
        for method in (pooled(10), "key_point"):
            left = summary.loc[method, "unchanged"]
            assert f"{left:.0%} of its pages are the original" in readme

    def test_the_judge_holds_on_labels_that_it_was_not_tuned_on(self, recorded_03):
        read = with_labels(recorded_03[0], load_labels(str(LABELS)))
        assert certificate(read)["kappa"]["all arms"] >= 0.78
        for made in (("key_point", "paste_key_point"), ("original", *PREVIOUS)):
            both = certificate(read[read["method"].isin(made)]).iloc[-1]
            assert both["recall"] >= 0.7 and both["specificity"] >= 0.98

    def test_a_changed_prompt_stops_before_any_figure(self, tmp_path):
        template = load_template("engine_answer")
        (tmp_path / "engine_answer.md").write_text(f"{template.text}\nBe brief.")
        params = read_parameters("03", "recorded", [("paths.prompts", str(tmp_path))])[2]
        roles = make_roles(params)
        with pytest.raises(FatalError, match="its prompt template was changed since"):
            roles.evaluate(load_corpus(**params.corpus_options), ["original"])

    def test_files_are_small(self):
        sizes = [path.stat().st_size for path in SHIPPED.iterdir()]
        assert max(sizes) < 1e6 and sum(sizes) < 6e6


class Answering(Replica):
    """An OpenAI-compatible server with the look-alike's answers."""

    async def chat(self, request):
        body = await request.json()
        self.bodies.append(body)
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        text = await reply(body["messages"][0]["content"], schema, len(self.bodies))
        self.reply = {"message": {"role": "assistant", "content": text}}
        return await super().chat(request)


def test_one_command_records_and_another_replays(tmp_path):
    few = sets(
        ("engine", "openai/m"), ("rewriter", "openai/m"), ("corpus.limit", 3), ("repeats", 1),
        ("paths.output", tmp_path),
    )  # fmt: skip
    folder = tmp_path / "record"

    async def scene():
        async with Answering() as server:
            address = {"engine": server.url, "rewriter": server.url}
            work = ("record", folder, *few, *sets(("servers", json.dumps(address))))
            return await asyncio.to_thread(command, "geo_utils", *work, "--about", "gpu=none")

    made = run_sync(scene())
    assert made.returncode == 0, made.stderr
    assert not folder.with_name("record.cache").exists()
    assert Record(folder).about["gpu"] == "none"
    given = {"engine": "openai/m", "rewriter": "openai/m", "corpus.limit": "3", "repeats": "1"}
    params = read_parameters("02", "recorded", [*given.items(), ("record", str(folder))])[2]
    roles = make_roles(params)
    samples = roles.evaluate(load_corpus(**params.corpus_options), params.methods)
    assert samples["answer"].notna().mean() > 0.9
    assert not sum(role["calls"] for role in roles.usage.report().values())


def test_a_record_needs_no_address(tmp_path):
    pairs = {"engine": "openai/m", "record": str(tmp_path)}
    assert read_parameters("02", "smoke", [*pairs.items()])[2].recorded == tmp_path
    with pytest.raises(ValueError, match="needs an address"):
        read_parameters("02", "smoke", [("engine", "openai/m")])
