"""What a local model is, by its content: a folder that was trained again is another model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

_SUFFIXES = (".safetensors", ".bin", ".json", ".jinja")
_OTHER = {"trainer_state.json", "policy.json"}


def weights_id(model: str) -> str:
    """Return a name that changes with a folder's weights, tokenizer or base.

    Args:
        model: Folder, or the id of a model on the Hub, which is returned as it is.
    """
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _SUFFIXES and path.name not in _OTHER and path.is_file():
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        digest.update(weights_id(str(base)).encode())
    return f"{folder.name}@{digest.hexdigest()[:16]}"
