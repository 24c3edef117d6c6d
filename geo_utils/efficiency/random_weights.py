"""Models of a true shape with random weights: true step times where no weights are at hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from geo_utils.corpus import load_corpus
from geo_utils.files import write_atomic
from geo_utils.grpo.cold_start import byte_level_tokenizer, make_small_policy, with_chat
from geo_utils.grpo.params import SmallModel

# From the models' own config.json on the Hub.
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3-1.7B": {
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 2048,
        "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2", "vocab_size": 152_064, "hidden_size": 3584,
        "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
}  # fmt: skip
_DONE = "random_weights.json"
_TRAINED = 12_000  # tokens that the tokenizer learns; the rest of the vocabulary are made-up words


def make_random_model(shape: str, folder: Path, seed: int = 0) -> None:
    """Make a model of a true shape, on the GPU where there is one.

    Args:
        shape: One of `SHAPES`, or `small` for one that a CPU can train.
        folder: Where model and tokenizer, which learns the sample corpus, are written.
        seed: Seed of the weights.
    """
    texts = [page for example in load_corpus("sample") for page in example.sources]
    if shape == "small":
        make_small_policy(folder, texts, SmallModel(), seed)
    else:
        _make(SHAPES[shape], folder, texts, seed)
    write_atomic(folder / _DONE, json.dumps([shape, seed]))  # last


def is_made(shape: str, folder: Path, seed: int = 0) -> bool:
    """Tell whether a folder holds the whole model already."""
    done = folder / _DONE
    return done.is_file() and json.loads(done.read_text(encoding="utf-8")) == [shape, seed]


def _make(shape: dict[str, Any], folder: Path, texts: Iterable[str], seed: int) -> None:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    state = json.loads(byte_level_tokenizer(texts, _TRAINED).to_str())
    vocabulary = state["model"]["vocab"]
    # A random model writes any token: each has to be text that is read as the same token again.
    letters = product(ascii_lowercase, repeat=5)
    for number in range(len(vocabulary), shape["vocab_size"]):
        vocabulary[next(w for w in map("\u0120".__add__, map("".join, letters))
                        if w not in vocabulary)] = number  # fmt: skip
    state["model"]["ignore_merges"] = True  # else a made-up word would be spelt
    tokenizer = with_chat(Tokenizer.from_str(json.dumps(state)))
    config = AutoConfig.for_model(
        **shape, max_position_embeddings=40_960,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    disable_progress_bar()  # a report would show it
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()


if __name__ == "__main__":
    make_random_model(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
