"""What a training needs of its machine, its server and the folders that it goes on from."""

import http.server
import json
import os
import shutil
import socket
import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest

from geo_utils.cluster.servers import free_port
from geo_utils.grpo import params as grpo_params
from geo_utils.grpo.checkpoints import (
    checkpoint_step,
    newest_complete,
)
from geo_utils.grpo.params import check_machine, check_server
from geo_utils.grpo.weight_sync import base_checksum, keep_base_exact
from geo_utils.models.base import FatalError
from geo_utils.models.local import weights_id
from geo_utils.notebooks import read_parameters
from geo_utils.parameters import ParameterError
from geo_utils.roles.methods import policy_problem
from geo_utils.roles.policies import (
    CARD,
    PolicyCard,
    policy_rewriter,
    read_card,
    same_card,
    torn_file,
)

BASE = "Qwen/Qwen3-1.7B"


def recipe(name, **values):
    own = {"base": "policy.base", "r": "lora.r"}
    overrides = [(own.get(key, f"grpo.{key}"), json.dumps(v)) for key, v in values.items()]
    return read_parameters("04_grpo", name, overrides)[2]


def vllm_is_here(monkeypatch, here):
    types = grpo_params.field_types

    def found(section):
        if section == "vllm_engine":
            return {"seed": "int"} if here else {}
        return types(section)

    monkeypatch.setattr(grpo_params, "field_types", found)


def refused(message):
    return pytest.raises(ParameterError, match=message)


def make_checkpoint(folder, step, state=None, **config):
    """Write the files of an adapter's checkpoint, as far as they are read, each a real one."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    adapter = {"base_model_name_or_path": BASE, "r": 16} | config
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    save_file({"lora_B": torch.full((16, 16), float(step))}, folder / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": torch.full((16, 16), step)}, folder / name)
    text = json.dumps({"global_step": step}) if state is None else state
    (folder / "trainer_state.json").write_text(text)
    return folder


class TestMachine:
    def test_vllm_that_is_not_installed(self, monkeypatch):
        vllm_is_here(monkeypatch, False)
        with refused(r"use_vllm=True: vllm is not installed; pip install -e '.\[gpu\]', or set"):
            check_machine(recipe("colocate"))

    @pytest.mark.parametrize("name", ["default", "colocate", "gemini", "visibility"])
    def test_no_gpu_for_a_recipe_that_needs_one(self, name, monkeypatch):
        import torch

        vllm_is_here(monkeypatch, True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with refused("use_cpu=False: this recipe needs a GPU .* or set use_cpu: true"):
            check_machine(recipe(name))

    def test_the_smoke_recipe_runs_anywhere(self, tmp_path):
        check_machine(recipe("smoke"))
        check_machine(recipe("smoke", base=str(tmp_path)))  # where it will be made

    def test_a_folder_without_a_model(self, tmp_path):
        params = recipe("default", use_cpu=True, base=str(tmp_path))
        with refused(rf"policy.base='{tmp_path}': .* \(config.json is missing\)"):
            check_machine(params)
        (tmp_path / "config.json").write_text("{}")
        check_machine(params)

    @pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "../nowhere"])
    def test_a_folder_that_is_not_there_is_not_looked_up_on_the_hub(self, name):
        with refused("holds no model"):
            check_machine(recipe("default", use_cpu=True, base=name))

    def test_an_id_of_the_hub_is_left_to_the_hub(self):
        check_machine(recipe("default", use_cpu=True))


@contextmanager
def models_server(body):
    """Answer `/v1/models` on loopback with a body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/v1/models" else 404)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def serving(*names):
    return json.dumps({"data": [{"id": name} for name in names]})


class TestServer:
    @pytest.fixture(autouse=True)
    def proxy(self, monkeypatch):
        """Nothing is asked of it, which is not there."""
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    @pytest.mark.parametrize("served", [BASE, "/models/Qwen3-1.7B"])
    def test_one_that_serves_the_policy(self, served):
        with models_server(serving("another", served)) as url:
            check_server(recipe("gemini", vllm_server_base_url=url))
            check_server(recipe("gemini", vllm_server_base_url=url + "/"))

    def test_host_and_port_are_an_address_too(self):
        with models_server(serving(BASE)) as url:
            port = int(url.rpartition(":")[2])
            found = {"vllm_server_host": "127.0.0.1", "vllm_server_port": port}
            check_server(recipe("gemini", vllm_server_base_url=None, **found))

    def test_one_that_serves_another_model(self):
        with models_server(serving("Qwen/Qwen3-4B")) as url:
            port = url.rpartition(":")[2]
            with refused(
                f"{url} serves Qwen/Qwen3-4B, not policy.base='{BASE}'; start one that "
                f"does:\n  VLLM_SERVER_DEV_MODE=1 vllm serve {BASE} --port {port} "
            ):
                check_server(recipe("gemini", vllm_server_base_url=url))

    @pytest.mark.parametrize("body", ["", "<html>", "[]", "{}", '{"data": [3]}'])
    def test_one_that_is_no_vllm(self, body):
        with models_server(body) as url, refused(f"{url}: no vLLM server answers there"):
            check_server(recipe("gemini", vllm_server_base_url=url))

    def test_one_that_is_down(self):
        url = f"http://127.0.0.1:{free_port()}"
        with refused(f"(?s){url}: no vLLM server answers there .*vllm serve {BASE} --port"):
            check_server(recipe("gemini", vllm_server_base_url=url))

    def test_one_that_speaks_no_http(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"http://127.0.0.1:{server.getsockname()[1]}"

            def greet():
                connection, _ = server.accept()
                with connection:
                    connection.recv(1024)
                    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

            thread = threading.Thread(target=greet)
            thread.start()
            with refused(f"{url}: no vLLM server answers there"):
                check_server(recipe("gemini", vllm_server_base_url=url))
            thread.join()

    @pytest.mark.parametrize("url", ["127.0.0.1:8001", "http://127.0.0.1:eight"])
    def test_an_address_that_is_none(self, url):
        with refused(f"{url}: no vLLM server answers there"):
            check_server(recipe("gemini", vllm_server_base_url=url))

    def test_the_machine_check_asks_the_server(self, monkeypatch):
        vllm_is_here(monkeypatch, True)
        with models_server(serving("other")) as url, refused(f"{url} serves other, not"):
            check_machine(recipe("gemini", use_cpu=True, vllm_server_base_url=url))


class TestNewestComplete:
    @pytest.mark.parametrize(
        ("states", "newest"),
        [
            ({}, None),
            ({5: "good"}, 5),
            ({9: "good", 10: "good", 100: "good", 20: "good"}, 100),  # by number, not by letter
            ({10: "good", 20: "missing"}, 10),
            ({10: "good", 20: '{"global_st'}, 10),
            ({10: "good", 20: ""}, 10),
            ({10: "good", 20: "{}"}, 10),
            ({10: "good", 20: "[]"}, 10),
            ({10: "missing", 20: "{"}, None),
            ({10: "good", 20: '{"global_step": Infinity}'}, 10),
            ({10: "good", 20: '{"global_step": NaN}'}, 10),
            ({10: "good", 20: '{"global_step": -3}'}, 10),
        ],
    )
    def test_hand_worked(self, tmp_path, states, newest):
        for step, state in states.items():
            folder = make_checkpoint(tmp_path / f"checkpoint-{step}", step)
            if state == "missing":
                (folder / "trainer_state.json").unlink()
            elif state != "good":
                (folder / "trainer_state.json").write_text(state)
        found = newest_complete(tmp_path)
        assert (found and found.name) == (newest and f"checkpoint-{newest}")
        assert (found and checkpoint_step(found)) == newest

    def test_no_folder_has_none(self, tmp_path):
        assert newest_complete(tmp_path / "nowhere") is None
        make_checkpoint(tmp_path / "final", 7)  # no checkpoint of the trainer
        assert newest_complete(tmp_path) is None

    @pytest.mark.parametrize(
        "name",
        ["adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt",
         "rng_state.pth"],
    )  # fmt: skip
    @pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
    def test_a_torn_file_is_passed_over_with_a_warning(self, tmp_path, name, kept):
        whole = make_checkpoint(tmp_path / "checkpoint-9", 9)
        assert torn_file(whole) is None
        torn = make_checkpoint(tmp_path / "checkpoint-10", 10) / name
        os.truncate(torn, int(torn.stat().st_size * kept))
        with pytest.warns(UserWarning, match=f"checkpoint-10 is passed over: {name} is torn"):
            assert newest_complete(tmp_path) == whole

    def test_a_hole_where_the_end_was_is_torn_as_well(self, tmp_path):
        """As a power cut leaves it: the length is there, the content is not."""
        folder = make_checkpoint(tmp_path / "checkpoint-9", 9)
        for name in ("optimizer.pt", "adapter_model.safetensors"):
            size = (folder / name).stat().st_size
            os.truncate(folder / name, 0)
            os.truncate(folder / name, size)
            with pytest.warns(UserWarning, match=f"passed over: {name} is torn"):
                assert newest_complete(tmp_path) is None

    @pytest.mark.parametrize(
        "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_config.json"]
    )
    def test_a_missing_file_is_passed_over_as_well(self, tmp_path, name):
        """The trainer would go on without it, and to another result."""
        whole = make_checkpoint(tmp_path / "checkpoint-9", 9)
        lacking = make_checkpoint(tmp_path / "checkpoint-10", 10)
        (lacking / name).unlink()
        with pytest.warns(UserWarning, match=r"checkpoint-10 is passed over: .* missing"):
            assert newest_complete(tmp_path) == whole

    def test_a_copy_under_any_name_counts_by_its_state(self, tmp_path):
        make_checkpoint(tmp_path / "checkpoint-best", 9)
        (tmp_path / "checkpoint-99").symlink_to("checkpoint-best")
        (tmp_path / "checkpoint-98").write_text("a file")
        newest = make_checkpoint(tmp_path / "checkpoint-10", 10)
        assert newest_complete(tmp_path) == newest
        shutil.rmtree(newest)
        assert checkpoint_step(newest_complete(tmp_path)) == 9

    def test_without_weights_there_is_nothing_to_go_on_from(self, tmp_path):
        folder = make_checkpoint(tmp_path / "checkpoint-9", 9)
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        with pytest.warns(UserWarning, match=r"adapter_model.bin cannot be loaded; save the adapt"):
            assert newest_complete(tmp_path) is None
        (folder / "adapter_model.bin").unlink()
        with pytest.warns(UserWarning, match="adapter_model.safetensors is missing"):
            assert newest_complete(tmp_path) is None


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_torn_policy_is_refused_before_anything_is_asked(tmp_path, name):
    folder = make_checkpoint(tmp_path / "checkpoint-9", 9)
    os.truncate(folder / name, 20)
    with pytest.raises(FatalError, match=f"checkpoint-9': {name} is torn.*; copy it whole"):
        policy_rewriter(str(folder), lambda model: pytest.fail("it was loaded"))


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    from geo_utils.grpo.cold_start import make_small_policy
    from geo_utils.grpo.params import SmallModel

    folder = tmp_path_factory.mktemp("small") / "policy"
    options = SmallModel(hidden_size=32, layers=1, vocabulary=300)
    return make_small_policy(folder, ["the tide rises twice a day"], options)


@pytest.fixture
def adapted(small_model):
    """A bfloat16 model with an adapter that already says something."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.bfloat16)
    lora = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    return get_peft_model(base, lora)


class TestBase:
    def test_the_checksum_is_of_what_is_frozen(self, adapted):
        import torch

        before = base_checksum(adapted)
        assert base_checksum(adapted) == before
        weights = dict(adapted.named_parameters())
        trained = next(n for n, w in weights.items() if w.requires_grad)
        frozen = next(n for n, w in weights.items() if not w.requires_grad)
        with torch.no_grad():
            weights[trained].add_(1.0)
            assert base_checksum(adapted) == before
            weights[frozen].view(-1)[0] += 1.0
            assert base_checksum(adapted) != before

    def trainer(self, model, problem=None):
        """What `keep_base_exact` sees of a trainer, with TRL's way to send an adapter to vLLM."""
        sent = []

        def sync_weights():
            for _ in range(50):
                model.merge_adapter()
                sent.append(base_checksum(model))
                if problem:
                    raise problem
                model.unmerge_adapter()

        return SimpleNamespace(
            model=model,
            accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped),
            vllm_generation=SimpleNamespace(sync_weights=sync_weights),
            sent=sent,
        )

    @pytest.mark.parametrize("exact", [False, True])
    def test_fifty_syncs_round_the_base_away_unless_it_is_kept(self, adapted, exact):
        trainer, before = self.trainer(adapted), base_checksum(adapted)
        if exact:
            keep_base_exact(trainer)
        trainer.vllm_generation.sync_weights()
        assert len(trainer.sent) == 50 and before not in trainer.sent  # the adapter was sent
        assert (base_checksum(adapted) == before) == exact

    def test_a_sync_that_fails_leaves_the_base_as_it_was(self, adapted):
        trainer, before = self.trainer(adapted, ConnectionError("gone")), base_checksum(adapted)
        keep_base_exact(trainer)
        with pytest.raises(ConnectionError):
            trainer.vllm_generation.sync_weights()
        assert base_checksum(adapted) == before

    def test_the_trainable_weights_are_not_put_back(self, adapted):
        import torch

        trainer = self.trainer(adapted)
        weight = next(w for w in adapted.parameters() if w.requires_grad)

        def train_and_sync():
            with torch.no_grad():
                weight.fill_(3.0)

        trainer.vllm_generation.sync_weights = train_and_sync
        keep_base_exact(trainer)
        trainer.vllm_generation.sync_weights()
        assert (weight == 3.0).all()

    def test_a_trainer_without_vllm_needs_nothing(self):
        keep_base_exact(SimpleNamespace(vllm_generation=None))
        keep_base_exact(SimpleNamespace())


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (None, "no such folder; name a checkpoint of notebook 04"),
        ([], "neither an adapter nor a model; it holds nothing"),
        (["a.txt", "b.txt"], "neither an adapter nor a model; it holds a.txt, b.txt"),
        (["adapter_model.safetensors"], "adapter_model.safetensors without adapter_config.json"),
        (["adapter_model.bin", "config.json"], "adapter_model.bin cannot be loaded; save the ada"),
        (["adapter_model.bin", "adapter_config.json"], "adapter_model.bin cannot be loaded; save"),
        (["adapter_model.bin", "adapter_model.safetensors", "adapter_config.json"], None),
        (["adapter_config.json"], "neither an adapter nor a model"),
        (["adapter_model.safetensors", "adapter_config.json"], None),
        (["config.json"], None),
    ],
)
def test_what_is_no_policy(tmp_path, files, problem):
    folder = tmp_path / "policy"
    if files is not None:
        folder.mkdir()
        for name in files:
            (folder / name).write_text("{}")
    found = policy_problem(folder)
    assert found is None if problem is None else f"'{folder}': {problem}" in found


class TestCard:
    def test_what_was_written_is_read(self, tmp_path):
        card = PolicyCard("arrange_key_point", max_prompt_tokens=192, temperature=1.0)
        card.write(tmp_path)
        assert read_card(tmp_path) == card

    def test_a_folder_without_one_is_asked_with_the_key_point_prompt(self, tmp_path):
        assert read_card(tmp_path).task.method == "key_point"

    @pytest.mark.parametrize("change", ["same", "changed", "gone"])
    def test_the_wording_of_the_training_has_to_be_there(self, tmp_path, change):
        prompts, policy = tmp_path / "prompts", tmp_path / "policy"
        prompts.mkdir()
        template = prompts / "rewrite_key_point.md"
        template.write_text("Stress $key_point in\n$page")
        card = PolicyCard("key_point", str(prompts))
        PolicyCard("key_point", str(prompts), card.task.template.hash).write(policy)
        if change == "changed":
            template.write_text("Stress $key_point in\n\n$page")
        elif change == "gone":
            shutil.rmtree(prompts)
        expected = {
            "same": nullcontext(),
            "changed": pytest.raises(
                FatalError, match="another wording of the prompt 'rewrite_key_point'; put that"
            ),
            "gone": pytest.raises(
                FatalError, match=f"the prompt of the training is gone.*{prompts}"
            ),
        }
        with expected[change]:
            assert read_card(policy).task.prompts == prompts

    def test_a_finished_folder_is_used_again_only_for_the_same_settings(self, tmp_path):
        card = PolicyCard("arrange_key_point", max_prompt_tokens=192)
        assert not same_card(tmp_path, card)
        card.write(tmp_path)
        assert same_card(tmp_path, card)
        with pytest.raises(FatalError, match="max_prompt_tokens differ"):
            same_card(tmp_path, PolicyCard("arrange_key_point", max_prompt_tokens=256))

    @pytest.mark.parametrize("text", ["{", "[1]", '{"methods": "key_point"}', "\xff"])
    def test_an_unreadable_one_is_named(self, tmp_path, text):
        (tmp_path / CARD).write_bytes(text.encode("latin-1"))
        with pytest.raises(FatalError, match=f"{CARD}: no policy card"):
            read_card(tmp_path)


class TestWeightsId:
    def make(self, folder, **files):
        folder.mkdir(parents=True, exist_ok=True)
        given = {"model.safetensors": "w", "config.json": "{}", "tokenizer.json": "t"} | files
        for name, text in given.items():
            (folder / name).write_text(text)
        return str(folder)

    def test_a_hub_id_is_its_own(self):
        assert weights_id(BASE) == BASE

    def test_the_place_does_not_count_and_the_name_is_only_in_front(self, tmp_path):
        here, there = self.make(tmp_path / "a" / "m"), self.make(tmp_path / "b" / "m")
        other = self.make(tmp_path / "a" / "n")
        assert weights_id(here) == weights_id(there) == weights_id(here + "/")
        name, _, content = weights_id(here).partition("@")
        assert name == "m" and weights_id(other) == f"n@{content}"

    @pytest.mark.parametrize(
        ("change", "another"),
        [
            ({"model.safetensors": "v"}, True),
            ({"tokenizer.json": "u"}, True),
            ({"chat_template.jinja": "x"}, True),
            ({"config.json": "{ }"}, True),
            ({"trainer_state.json": "1"}, False),
            ({"policy.json": "1"}, False),
            ({"README.md": "1"}, False),
            ({"optimizer.pt": "1"}, False),
        ],
    )
    def test_content_counts(self, tmp_path, change, another):
        before = weights_id(self.make(tmp_path / "m"))
        assert (weights_id(self.make(tmp_path / "m", **change)) != before) == another

    def test_which_file_holds_it_counts(self, tmp_path):
        one = self.make(tmp_path / "a" / "m", **{"a.json": "xy", "b.json": "z"})
        two = self.make(tmp_path / "b" / "m", **{"a.json": "x", "b.json": "yz"})
        assert weights_id(one) != weights_id(two)
        three = self.make(tmp_path / "c" / "m", **{"a.json": "xy", "c.json": "z"})
        assert weights_id(one) != weights_id(three)

    def test_an_adapter_is_another_on_another_base(self, tmp_path):
        base = self.make(tmp_path / "base")
        config = json.dumps({"base_model_name_or_path": base})
        adapter = self.make(tmp_path / "adapter", **{"adapter_config.json": config})
        before = weights_id(adapter)
        self.make(tmp_path / "base", **{"model.safetensors": "trained again"})
        assert weights_id(adapter) != before
