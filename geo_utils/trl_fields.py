"""The fields of TRL's and PEFT's configurations by name, read without importing either."""

from __future__ import annotations

import ast
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

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
