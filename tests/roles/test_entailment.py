"""The entailment judge, on cross-encoders of random weights."""

import pytest
import torch
from conftest import run
from tiny_model import make_tiny_classifier
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from geo_utils.cli import app
from geo_utils.models.base import FatalError, UnusableError
from geo_utils.models.local import entailment_local
from geo_utils.notebooks import read_parameters
from geo_utils.roles.by_model import EntailmentJudge
from geo_utils.roles.make import make_roles

POINT = "The moon pulls the water."
ANSWER = " ".join(f"The tide rises {word} a day." for word in ["once", "twice", "thrice", "often"])
NLI = ["contradiction", "entailment", "neutral"]


def params_of(tmp_path, folder, **changes):
    given = {"judge": f"entailment/{folder}", "paths.cache": str(tmp_path / "cache")} | changes
    return read_parameters("02", "smoke", list(given.items()))[2]


def test_it_says_what_the_model_says_of_each_passage_and_asks_nothing_twice(tmp_path):
    folder = make_tiny_classifier(tmp_path / "nli", NLI, [0.0, 0.0, 0.0])
    roles = make_roles(params_of(tmp_path, folder))
    answer = f"{ANSWER} [1] {POINT} Nothing else."
    found = run(roles.judge.judge(POINT, answer))
    # four sentences, then four from the third on: by Transformers itself, one at a time
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    split = [*ANSWER.replace(". ", ".|").split("|"), POINT, "Nothing else."]
    chances = []
    for passage in (" ".join(split[:4]), " ".join(split[2:])):
        with torch.inference_mode():
            logits = model(**tokenizer(passage, POINT, return_tensors="pt")).logits[0]
        chances.append(torch.softmax(logits, 0)[1].item())
    assert found.score == pytest.approx(max(chances), abs=1e-5)
    assert split[0 if chances[0] > chances[1] else -1] in found.explanation
    again = make_roles(params_of(tmp_path, folder))
    assert run(again.judge.judge(POINT, answer)) == found
    assert again.usage.report()["judge"]["calls"] == 0
    assert "judge" not in str(roles.template_hashes()) and roles.extractor is None


@pytest.mark.parametrize(
    ("labels", "label"),
    [
        (["contradiction", "entailment", "neutral"], "contradicted"),
        (["ENTAILMENT", "NEUTRAL", "CONTRADICTION"], "supported"),
        (["neutral", "entailment", "contradiction"], "omitted"),
        (["entailment", "not_entailment"], "supported"),
        (["not_entailment", "entailment"], "omitted"),
    ],
)
def test_the_models_config_says_which_label_is_which(tmp_path, labels, label):
    bias = [50.0] + [0.0] * (len(labels) - 1)
    model = entailment_local(str(make_tiny_classifier(tmp_path, labels, bias)), device="cpu")
    assert run(EntailmentJudge(model).judge(POINT, ANSWER)).label == label


def test_an_answer_without_a_sentence_supports_nothing_and_a_failure_is_no_verdict():
    class Broken:
        async def complete(self, request):
            raise UnusableError("no room", "memory")

    assert run(EntailmentJudge(Broken()).judge(POINT, " [1] ")).label == "omitted"
    verdict = run(EntailmentJudge(Broken()).judge(POINT, ANSWER))
    assert verdict.label is None and verdict.abstention == "memory: no room"


def test_a_model_that_knows_no_entailment_is_refused_before_the_first_call(tmp_path):
    folder = make_tiny_classifier(tmp_path / "mood", ["LABEL_0", "LABEL_1"], [0.0, 0.0])
    with pytest.raises(FatalError, match=r"tells LABEL_0, LABEL_1 apart.*`id2label` of its config"):
        make_roles(params_of(tmp_path, folder))
    with pytest.raises(FatalError, match="'/no/such' cannot be loaded"):
        make_roles(params_of(tmp_path, "/no/such"))
    make_roles(params_of(tmp_path, "/no/such", dry_run="true"))  # loads nothing
    with pytest.raises(ValueError, match="gives no log-probabilities"):
        params_of(tmp_path, folder, **{"sampling.judge_mode": "soft"})


def test_the_command_line_checks_it(tmp_path, capsys):
    folder = make_tiny_classifier(tmp_path, NLI, [0.0, 50.0, 0.0])
    with pytest.raises(SystemExit) as ended:
        app(["models", "check", f"entailment/{folder}"])
    assert ended.value.code == 0 and "'entailment'" in capsys.readouterr().out
