"""What a run needs of the machine that it runs on: GPUs, and model servers beside it."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from geo_utils.efficiency.params import EfficiencyParams
from geo_utils.methods import is_policy
from geo_utils.notebook_params import NotebookParams
from geo_utils.params import RunParams
from geo_utils.training.params import GrpoParams

_HERE = {"127.0.0.1", "localhost", "0.0.0.0", "::1"}


@dataclass(frozen=True)
class LocalServer:
    """A vLLM server that parameters expect on the host of the run.

    Attributes:
        address: Such as `http://127.0.0.1:8001`, without the path.
        model: What it has to serve.
        policy: Whether a training sends it its weights.
    """

    address: str
    model: str
    policy: bool


def local_servers(params: NotebookParams) -> list[LocalServer]:
    """Return the servers that a run expects on its own host, each once.

    Servers on other hosts are up already, and a stand-in for Gemini needs no GPU.
    """
    found: dict[str, LocalServer] = {}
    if not isinstance(params, RunParams):
        return []

    def add(url: str, model: str, policy: bool = False) -> None:
        place = urlsplit(url)
        if place.hostname in _HERE:
            server = LocalServer(f"{place.scheme}://{place.netloc}", model, policy)
            found.setdefault(place.netloc, server)

    if isinstance(params, GrpoParams) and params.generation == "server":
        host = params.grpo.get("vllm_server_host", "0.0.0.0")
        address = f"http://{host}:{params.grpo.get('vllm_server_port', 8000)}"
        url = params.grpo.get("vllm_server_base_url") or address
        add(str(url), params.model_name_or_path, policy=True)
    stages = [params, params.for_evaluation()] if isinstance(params, GrpoParams) else [params]
    for stage in stages:
        for role, backend in stage.backends.items():
            for url in stage.servers.get(role, ()) if backend == "openai" else ():
                add(url, stage.models[role])
    return list(found.values())


def gpus_needed(params: NotebookParams) -> int:
    """Return how many GPUs a run needs: its own, if it loads a model, and one a local server.

    Notebook 01 starts its servers itself, on as many as its largest setting wants.
    """
    if isinstance(params, EfficiencyParams):
        on_cpu = params.recipe.get("use_cpu")
        return 0 if on_cpu else max((s.gpus_wanted for s in params.chosen.values()), default=0)
    if not isinstance(params, RunParams):
        return 0
    if isinstance(params, GrpoParams):
        own = not params.grpo.get("use_cpu")
    else:
        loaded = {"vllm", "transformers"} & set(params.backends.values())
        own = bool(loaded) or any(is_policy(method) for method in params.methods)
    return int(own) + len(local_servers(params))
