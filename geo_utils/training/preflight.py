"""What a training needs of its machine, checked by name before a model is loaded."""

from __future__ import annotations

import http.client
import json
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from geo_utils.files import resolve_path
from geo_utils.parameter_errors import ParameterError
from geo_utils.training.checkpoints import check_adapter
from geo_utils.training.params import GrpoParams


def check_machine(params: GrpoParams) -> None:
    """Refuse a recipe that this machine cannot run.

    Raises:
        ParameterError: vLLM or a GPU is missing, the policy's folder or server is not there or
            serves another model, or a checkpoint is of another training.
    """
    grpo = params.grpo
    if grpo.get("use_vllm") and find_spec("vllm") is None:
        raise ParameterError(
            "use_vllm=True: vllm is not installed; pip install -e '.[gpu]', or set use_vllm: false"
        )
    if params.cold_start.small_model:
        import torch

        torch.set_num_threads(1)  # its matrices are too small to share: threads would only wait
    if not grpo.get("use_cpu"):
        import torch

        if not torch.cuda.is_available():
            raise ParameterError(
                "use_cpu=False: this recipe needs a GPU and this machine shows none; run it on "
                "one, or set use_cpu: true with a small model (params/04_grpo/smoke.yaml)"
            )
    name = params.model_name_or_path
    folder = resolve_path(name)
    given = params.cold_start.small_model is None
    here = folder.exists() or name.startswith(("/", "."))
    if given and here and not (folder / "config.json").is_file():
        raise ParameterError(
            f"model_name_or_path={name!r}: {folder} holds no model (config.json is missing)"
        )
    resumed = grpo.get("resume_from_checkpoint")
    if resumed:
        check_adapter(resolve_path(str(resumed)), name, params.lora, grpo["max_steps"])
    if params.generation == "server":
        check_server(params)


def check_server(params: GrpoParams) -> None:
    """Refuse a policy server that is not up or serves another model.

    Raises:
        ParameterError: What is wrong and how to start it.
    """
    grpo, name = params.grpo, params.model_name_or_path
    host, port = grpo.get("vllm_server_host", "0.0.0.0"), grpo.get("vllm_server_port", 8000)
    url = str(grpo.get("vllm_server_base_url") or f"http://{host}:{port}").rstrip("/")
    given = urlsplit(url).netloc.rpartition(":")[2]
    start = (
        f"VLLM_SERVER_DEV_MODE=1 vllm serve {name} --port {given if given.isdecimal() else 8000} "
        '--weight-transfer-config \'{"backend":"nccl"}\' --logprobs-mode processed_logprobs '
        "--max-logprobs -1 --enable-scale-out"
    )
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as answer:
            served = [row["id"] for row in json.load(answer)["data"]]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise ParameterError(
            f"vllm_mode='server': no vLLM server answers at {url} ({error}); start it on a GPU of "
            f"its own:\n  {start}"
        ) from None
    if name not in served and Path(name).name not in [Path(s).name for s in served]:
        raise ParameterError(
            f"vllm_mode='server': {url} serves {', '.join(served)}, not model_name_or_path="
            f"{name!r}; start one that does:\n  {start}"
        )


def machine_settings(params: GrpoParams) -> dict[str, Any]:
    """Return the fields of TrainingArguments that depend on machine and seed."""
    on_cpu = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    return {"seed": params.seed, **(on_cpu if params.grpo.get("use_cpu") else {})}
