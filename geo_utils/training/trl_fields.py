"""TRL's and PEFT's settings by name, read without importing either, and where they belong."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from geo_utils.parameter_errors import ParameterError

# Fields of TRL's other dataclasses that a recipe may hold, and where they belong here.
_ELSEWHERE = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout",
              "lora_target_modules": "target_modules", "use_rslora": "use_rslora",
              "use_dora": "use_dora"}  # fmt: skip
_LOADING = ("dtype", "attn_implementation")
_SOURCES = {
    "grpo": (
        ("trl", "trainer/grpo_config.py"),
        ("trl", "trainer/base_config.py"),
        ("transformers", "training_args.py"),
    ),
    "lora": (("peft", "tuners/lora/config.py"), ("peft", "config.py")),
}


@lru_cache(maxsize=2)
def field_names(kind: str) -> frozenset[str]:
    """Return the names of `GRPOConfig`'s (`grpo`) or `LoraConfig`'s (`lora`) fields.

    Importing them takes many seconds, and a wrong parameter has to be refused at once, so the
    installed sources are parsed instead.

    Args:
        kind: `grpo` or `lora`.
    """
    found: set[str] = set()
    for package, file in _SOURCES[kind]:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for node in ast.walk(ast.parse((Path(spec.origin).parent / file).read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name in _CLASSES:
                found |= {
                    statement.target.id
                    for statement in node.body
                    if isinstance(statement, ast.AnnAssign)
                    and isinstance(statement.target, ast.Name)
                }
    return frozenset(name for name in found if not name.startswith("_"))


_CLASSES = ("GRPOConfig", "_BaseConfig", "TrainingArguments", "LoraConfig", "PeftConfig",
            "PeftConfigMixin")  # fmt: skip


def folded(
    given: Mapping[str, Any], passed: Collection[str], fields: Collection[str]
) -> dict[str, Any]:
    """Put TRL's names where they belong, and this project's own out of a TRL recipe's `env`.

    Args:
        given: Values by name.
        passed: Names that the user set, which win over those under `env`.
        fields: The names of this project's parameters.

    Raises:
        ParameterError: One setting is given twice, or cannot be had.
    """
    values = dict(given)
    env = values.pop("env", None) or {}
    own = env.get("GEO_UTILS") if isinstance(env, dict) else None
    if own is not None and not isinstance(own, dict):
        raise ParameterError(f"env: GEO_UTILS={own!r} must map this project's parameters")
    values |= {name: value for name, value in (own or {}).items() if name not in passed}
    names = ("grpo_options", "lora_options", "reward", "data")
    if not all(isinstance(values.get(name), dict) for name in names):  # which is refused by name
        return {name: value for name, value in values.items() if name in fields}
    groups = {name: dict(values[name]) for name in names}
    known = places()
    others = [name for name in values if name not in fields]
    for name in sorted(others, key=lambda name: name in _LOADING):  # after model_init_kwargs
        if name == "use_peft":
            if values.pop(name) is not True:
                raise ParameterError("use_peft: only true; the policy is trained as an adapter")
        elif name in _LOADING:
            loading = groups["grpo_options"].get("model_init_kwargs") or {}
            groups["grpo_options"]["model_init_kwargs"] = loading | {name: values.pop(name)}
        elif name in known:
            group, entry = known[name]
            value, other = values.pop(name), groups[group].get(entry)
            if other not in (None, value, ["key_point"]):  # the last: reward.funcs' default
                raise ParameterError(
                    f"{name}={value!r} and {group}.{entry}={other!r} are one setting, given "
                    f"twice; name only {name}"
                )
            groups[group][entry] = value
    return values | groups


def places() -> dict[str, tuple[str, str]]:
    """Return TRL's names, each with the group and the entry that it stands for."""
    return {
        **{name: ("grpo_options", name) for name in field_names("grpo")},
        **{name: ("lora_options", entry) for name, entry in _ELSEWHERE.items()},
        "reward_funcs": ("reward", "funcs"),
        "reward_weights": ("reward", "weights"),
        "dataset_name": ("data", "dataset_name"),
    }
