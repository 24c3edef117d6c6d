"""What a dry run of a training says it will call, beside what a batch did call."""

import json

import pytest
from conftest import GEMINI, run
from train_many import SMALL

from geo_utils.corpus import load_corpus
from geo_utils.evaluate import evaluate
from geo_utils.grpo.comparison import plan_training
from geo_utils.grpo.data import split_queries
from geo_utils.grpo.rewards import Rewards
from geo_utils.notebooks import read_parameters
from geo_utils.roles.by_model import RewriteTask
from geo_utils.roles.make import make_roles

MODEL = "gemini-2.5-flash-lite"


def recipe(server, root, funcs, repeats):
    servers = {"engine": [server.url], "judge": [server.url]}
    changes = {
        "engine": GEMINI, "judge": GEMINI, "servers": json.dumps(servers),
        "grpo.max_steps": "1", "reward.funcs": json.dumps(funcs), "reward.weights": "null",
        "reward.repeats": str(repeats), "paths.cache": str(root / "cache"),
        "calls.prices": json.dumps({MODEL: {"tokens_in": 1, "tokens_out": 1}}),
    }  # fmt: skip
    return read_parameters("04_grpo", "smoke", list((SMALL | changes).items()))[2]


@pytest.mark.parametrize(
    ("funcs", "repeats", "judged"),
    [(["key_point"], 1, 8), (["visibility", "format"], 1, 0),
     (["visibility", "key_point", "fidelity"], 2, 16 + 8)],
)  # fmt: skip
def test_a_rollout_is_a_page_of_its_own(gemini_server, tmp_path, funcs, repeats, judged):
    params = recipe(gemini_server(), tmp_path, funcs, repeats)
    roles = make_roles(params)
    final = make_roles(params.for_evaluation(), roles)
    corpus = load_corpus(**params.corpus_options)
    split = split_queries(corpus, params)
    plan = plan_training(params, roles, final, split)
    spent = plan.loc["reward's engine", ["tokens_in", "tokens_out", "cost_usd"]]

    # what is held of the original pages is of no use to a rollout
    evaluate(corpus, ["original"], roles.engine, roles.judge, repeats, rewriter=roles.rewriter)
    again = plan_training(params, roles, final, split).loc["reward's engine"]
    assert again["calls"] == plan.loc["reward's engine", "calls"]
    assert again[spent.index].tolist() == spent.tolist()

    before, (example, point) = roles.usage.report(), split.train[0]
    made = Rewards([example], RewriteTask("key_point"), roles.engine, roles.judge, params.reward)
    replies = [f"{example.target} Copy {i}." for i in range(params.rollouts)]
    same = {"query_id": example.query_id, "key_point_number": point.number, "shown": -1}
    batch = {name: [value] * len(replies) for name, value in same.items()}
    run(made.score(completions=replies, **batch))
    after = roles.usage.report()
    for role, wanted in (("engine", 8 * repeats), ("judge", judged)):
        called = after[role]["answered"] - before[role]["answered"]
        planned = plan["calls"][plan.index.str.startswith(f"reward's {role}")].sum()
        assert called == planned == wanted, role
    asked = after["engine"]["tokens_in"] - before["engine"]["tokens_in"]
    assert spent["tokens_in"] == pytest.approx(asked, rel=0.5)
    assert spent["cost_usd"] == pytest.approx(
        (spent["tokens_in"] + spent["tokens_out"]) / 1e6, rel=0.01
    )
