"""More than sixty bad inputs: each gets one line with the way out, and leaves nothing behind."""

import json

import pytest
from conftest import make_row

from geo_utils.cli import app

ROW = make_row()
POINT = {"point_number": 1, "point_content": "The Moon pulls."}


def corpus(**changes):
    return json.dumps(make_row(**changes))


BAD = [  # notebook, file, NAME=VALUE, what is said of it
    # names
    ("02", "smoke", "repeat=3", "'repeat' is no parameter; did you mean 'repeats'?"),
    ("02", "smoke", "cals.x=3", "'cals' is no parameter; did you mean 'calls'?"),
    ("02", "smoke", "calls.max_concurency=3", "did you mean 'max_concurrency'? Known are"),
    ("02", "smoke", "corpus.lmit=3", "'corpus.lmit' is no parameter; did you mean 'limit'?"),
    ("04", "smoke", "max_steps=3", "'max_steps' is no parameter"),
    ("04", "smoke", "grpo.max_stepps=3", "grpo.max_stepps: no such field; did you mean 'max_"),
    ("04", "smoke", "grpo.vllm_server_hots=h", "did you mean 'vllm_server_host'?"),
    ("04", "smoke", "lora.rank=3", "lora.rank: no such field"),
    ("04", "smoke", "reward.func=[key_point]", "did you mean 'funcs'?"),
    ("01", "smoke", "work.completion=3", "'work.completion' is no parameter; did you mean"),
    ("02_baseline", "smoke", "", "unknown notebook '02_baseline'; did you mean '02_baseline_rewr"),
    ("06", "smoke", "", "unknown notebook '06'"),
    ("02", "smok", "", "no parameter file"),
    ("02", "../02_baseline_rewrites/nothing.yaml", "", "no parameter file"),
    ("02", "smoke", "servers={engine: 'http://me:secret@host/v1'}", "holds no name, password or"),
    ("02", "smoke", "servers={engine: 'http://host/v1?key=a'}", "holds no name, password or"),
    ("02", "smoke", "servers={engine: 'http://host/v1;key=a'}", "holds no name, password or"),
    ("02", "smoke", "servers={engine: 'http://me%3Aa%40host/v1'}", "holds no name, password or"),
    ("02", "smoke", "servers={engine: 'http://h/sk-aaaaaaaaaaaaaaaa1/v1'}", "holds no name, passw"),
    # forms
    ("02", "smoke", "methods", "'methods': write NAME=VALUE, such as repeats=3"),
    ("02", "smoke", "=3", "'=3': write NAME=VALUE"),
    ("02", "smoke", "methods=[original", "methods=[original: not YAML"),
    ("02", "smoke", "calls={max_calls: 1, max_calls: 2}", "'max_calls' is given twice"),
    ("02", "smoke", "calls={<<: {max_calls: 1}, <<: {max_calls: 2}}", "'<<' is given twice"),
    ("02", "smoke", "methods=&a [*a]", "not YAML: found unconstructable recursive node"),
    ("02", "smoke", "repeats=!!int ''", "not YAML"),
    ("02", "smoke", "methods=" + "[" * 2000, "not YAML"),
    ("02", "smoke", 'corpus.path="a\\0b"', "corpus.path='a\\x00b': no line breaks, other control"),
    ("02", "smoke", 'methods=[original, "a\\nb"]', "methods[1]='a\\nb': no line breaks"),
    ("02", "smoke", "paths.cache=' '", "paths.cache=' ': no line breaks, other control"),
    # depths
    ("02", "smoke", "repeats.x=3", "repeats.x: 'x' is no entry of 3, which is no mapping"),
    ("02", "smoke", "corpus=sample", "corpus='sample': input should be a valid dictionary"),
    ("02", "smoke", "calls.prices.m.tokens_in=1", "calls.prices.m.tokens_out is missing"),
    ("02", "smoke", 'calls.prices."m-2.5".tokens_in=1', "calls.prices.m-2.5.tokens_out is missing"),
    ("04", "smoke", "grpo=3", "grpo=3"),
    ("03", "smoke", "studies.headroom.queries.x=1", "is no mapping"),
    # types and ranges
    ("02", "smoke", "repeats=0", "repeats=0: input should be greater than or equal to 1"),
    ("02", "smoke", "repeats='3'", "repeats='3': input should be a valid integer (a quoted numb"),
    ("02", "smoke", "repeats=2.5", "repeats=2.5: input should be a valid integer"),
    ("02", "smoke", "repeats=yes", "repeats=True: input should be a valid integer (YAML reads yes"),
    ("02", "smoke", "repeats=", "repeats=None: input should be a valid integer"),
    ("02", "smoke", "seed=-1", "seed=-1: input should be greater"),
    ("02", "smoke", "seed=1:30", "seed='1:30': input should be a valid integer"),
    ("02", "smoke", "seed=017", "seed='017': input should be a valid integer"),
    ("02", "smoke", "calls.timeout_s=.inf", "calls.timeout_s=inf: input should be a finite number"),
    ("02", "smoke", "corpus.limit=0", "corpus.limit=0: input should be greater"),
    ("02", "smoke", "calls.timeout_s=0", "calls.timeout_s=0: input should be greater than 0"),
    ("02", "smoke", "calls.prices={m: {tokens_in: .inf, tokens_out: 1}}", "m.tokens_in=inf: input"),
    ("02", "smoke", "calls.max_cost=0", "calls.max_cost=0: input should be"),
    ("02", "smoke", "calls.max_calls='3'", "calls.max_calls='3': input should be a valid int"),
    ("02", "smoke", "dry_run='yes'", "dry_run='yes': input should be a valid boolean"),
    ("02", "smoke", "variant=../x", "variant='../x': string should match"),
    ("02", "smoke", "sampling.temperature=3", "sampling.temperature=3: input should be less"),
    ("02", "smoke", "corpus.key_points=both", "key_points='both': choose from one, all, exclus"),
    ("04", "smoke", "grpo.num_generations=1", "num_generations=1: a group needs at least 2"),
    ("04", "smoke", "grpo.learning_rate='1e-5'", "grpo.learning_rate='1e-5': a number is needed"),
    ("04", "smoke", "grpo.learning_rate=.nan", "grpo.learning_rate=nan: a finite number is needed"),
    ("04", "smoke", "grpo.use_cpu=maybe", "grpo.use_cpu='maybe': bool is needed"),
    ("04", "smoke", "lora.r=x", "lora.r='x': int is needed"),
    ("01", "smoke", "recipe.use_gpu=true", "grpo.use_gpu: no such field; did you mean 'use_cpu'"),
    ("01", "smoke", "recipe.max_steps=0", "grpo.max_steps=0: a whole number of at least 1 is n"),
    ("01", "smoke", "recorded=[nowhere]", "recorded='nowhere': no such folder; name one th"),
    ("04", "smoke", "reward.funcs=[format, format]", "one is named more than once"),
    ("04", "smoke", "reward.weights=[1, 2, 3]", "rewards need as many weights"),
    ("05", "default", "since=last week", "since: 'last week' is no date; write 2026-01-31"),
    # methods
    ("02", "smoke", "methods=original", "methods='original': input should be a valid list"),
    ("02", "smoke", "methods=[original, 3]", "methods[1]=3: input should be a valid string"),
    ("02", "smoke", "methods=[original, paste]", "unknown method 'paste'; did you mean"),
    ("02", "smoke", "methods=[original, fluency]", "method 'fluency' needs a model; rewriter='of"),
    ("02", "smoke", "methods=[key_point, paste_key_point]", "'original' must be among"),
    ("02", "smoke", "methods=[original]", "methods=['original']: name a method to compare"),
    ("02", "smoke", "methods=[]", "methods=[]: name a method to compare"),
    ("02", "smoke", "methods=[original, original]", "original named more than once"),
    # strings for roles
    ("02", "smoke", "engine=ofline", "'ofline' names no model; did you mean 'offline'? Write"),
    ("02", "smoke", "engine=gpt-5", "'gpt-5' names no model"),
    ("02", "smoke", "engine=gemini", "'gemini' lacks the model's id"),
    ("02", "smoke", "engine=openai/", "'openai/' lacks the model's id"),
    ("02", "smoke", "engine=gemini/x@cuda:1", "lacks the model's id, or its GPU is none"),
    ("02", "smoke", "engine=vllm/x@cuda:a", "lacks the model's id, or its GPU is none"),
    ("02", "smoke", "engine=offline/x", "'offline/x': offline roles take no id"),
    ("02", "smoke", "engine=offline/strict", "engine='offline/strict': only a judge is strict"),
    ("02", "smoke", "engine=entailment/x", "engine='entailment/x': an entailment model writes"),
    ("02", "smoke", "judge={a: 1}", "judge={'a': 1}: input should be a valid string"),
    ("02", "smoke", "sampling.judge_mode=soft", "judge='offline' gives no log-probabilities"),
    ("02", "smoke", "labels=no.jsonl", "labels: 'no.jsonl': no such file; make it by `geo labels"),
    # addresses
    ("02", "smoke", "engine=openai/m", "engine='openai/m' needs an address"),
    ("02", "smoke", "servers={egine: 'http://h'}", "'egine' is no role; did you mean 'engine'?"),
    ("02", "smoke", "servers.engine=127.0.0.1", "servers.engine: '127.0.0.1' is no address; write"),
    ("02", "smoke", "servers.engine=[1]", "servers.engine: [1] is no address; write one such"),
    ("02", "smoke", "servers=http://h", "servers='http://h': input should be a valid dictionary"),
    # corpora
    ("02", "smoke", "corpus.name=smaple", "corpus.name='smaple': choose from sample"),
    ("02", "smoke", "corpus={name: jsonl}", "path=None: name='jsonl' needs the path"),
    ("02", "smoke", "corpus.path=x", "path='x': name='sample' takes no path"),
    ("02", "smoke", "corpus={name: jsonl, path: /no/such.jsonl}", "/no/such.jsonl: no such file"),
]  # fmt: skip
ROWS = [  # of a file of one row, what is said of it
    ("", "is empty"),
    ('{"query_id": "q1", "que', "line 1: not a JSON object"),
    ("[1, 2]", "line 1: list instead of a JSON object"),
    (corpus(target_id=9), "line 1: target_id=9; allowed are 0 to 2"),
    (corpus(text_list=[]), "no sources"),
    (corpus(query=""), "query='' must be a text"),
    (corpus(key_points=["The Moon pulls."]), "key_points is no"),
    (corpus(ori_keypoint_dict={"points": ["a"]}), "without point_content: 'a'"),
    (corpus(ori_keypoint_dict={"points": [POINT | {"spans": "x"}]}), "must be a list, not 'x'"),
]


def refused(capsys, tmp_path, *arguments):
    """The one line that `geo run` says of arguments that it refuses, having left nothing."""
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        app(["run", *arguments, f"paths.output={out}"])
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out
    (line,) = said.err.strip().splitlines()
    assert not out.exists()
    return line


@pytest.mark.parametrize(("notebook", "file", "given", "message"), BAD)
def test_a_bad_parameter(capsys, tmp_path, notebook, file, given, message):
    assert message in refused(capsys, tmp_path, notebook, file, *[given] * bool(given))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ofline"], "'ofline' names no model; did you mean 'offline'?"),
        (["offline"], "offline: no model is asked"),
        (["openai/m"], "openai/m needs its server's address, such as http://127.0.0.1:8000/v1"),
        (["openai/m", "--server", "127.0.0.1:1"], "['127.0.0.1:1'] is no address; write one such"),
        (["openai/m", "--server", "http://127.0.0.1:1/v1"], "is it up?"),
        (["gemini/m"], "no Gemini key: set GEMINI_API_KEY"),
    ],
)
def test_a_model_that_cannot_be_asked(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        app(["models", "check", *arguments])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and message in line


@pytest.mark.parametrize(("content", "message"), ROWS, ids=range(len(ROWS)))
def test_a_bad_row(capsys, tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    said = refused(capsys, tmp_path, "02", "smoke", f"corpus={{name: jsonl, path: {path}}}")
    assert message in said and str(path) in said
