"""Raw rows of a corpus, from a JSONL file, a saved dataset or the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
# Dataset ids on the Hugging Face Hub; the configuration is the split's own where named here.
HUB_IDS = {
    "researchy-geo": "cx-cmu/Researchy-GEO",
    "e-commerce": "cx-cmu/E-commerce",
    "geo-bench": "GEO-Optim/geo-bench",
}


class CorpusError(ValueError):
    """A corpus that cannot be read; the message names the place and the way out."""


def jsonl_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) for each line of a JSONL file; the place names file and line.

    Raises:
        CorpusError: The file is missing, empty, not UTF-8, or has a line that is no JSON object.
    """
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise CorpusError(f"corpus file {path}: {reason}") from None
    if not raw.strip():
        raise CorpusError(f"corpus file {path} is empty")
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{place}: byte {error.start + 1} is not UTF-8; convert the file to UTF-8"
            ) from None
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{place}: not a JSON object ({error}); is the line torn?") from None
        if not isinstance(row, dict):
            raise CorpusError(f"{place}: {type(row).__name__} instead of a JSON object")
        yield place, row


def disk_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) of a dataset that `datasets.save_to_disk` wrote.

    Raises:
        CorpusError: The folder holds no dataset, or several splits.
    """
    from datasets import Dataset, load_from_disk  # seconds to import: only where it is needed

    try:
        dataset = load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise CorpusError(f"{path} is no dataset saved to disk: {error}") from None
    if not isinstance(dataset, Dataset):
        raise CorpusError(f"{path} holds the splits {', '.join(map(str, dataset))}; name one")
    for number, row in enumerate(dataset):
        yield f"{path}, row {number}", row


def hub_rows(name: str, split: str) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) of a split of one of `HUB_IDS`.

    Raises:
        CorpusError: The Hub cannot be reached or has no such split.
    """
    from datasets import load_dataset

    # grpo_eval is a configuration with one split; GEO-bench's configurations: train (with its
    # split val) and test.
    configuration, part = {"grpo_eval": ("grpo_eval", "train")}.get(split, ("main", split))
    if name == "geo-bench":
        configuration = "test" if split == "test" else "train"
    try:
        dataset = load_dataset(HUB_IDS[name], configuration, split=part)
    except Exception as error:  # the library raises many kinds; all mean the same to the user
        raise CorpusError(
            f"corpus={name!r}, split={split!r} could not be loaded from {HUB_IDS[name]}: {error}. "
            "Without a network, save it to disk elsewhere and use corpus='jsonl' with its folder"
        ) from error
    for number, row in enumerate(dataset):
        yield f"{HUB_IDS[name]} {split}, row {number}", row
