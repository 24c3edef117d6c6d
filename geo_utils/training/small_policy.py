"""A small Qwen3 of random weights with a tokenizer of the corpus's words, made on the spot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from geo_utils.training.options import SmallModel

# The format of Qwen's own template, for one user message and its answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Return a byte-level BPE tokenizer of the `tokenizers` package, trained on texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def with_chat(tokenizer: Any) -> Any:
    """Return a tokenizer as Transformers wants it, with the chat template and its end marks."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def make_small_policy(
    folder: Path, texts: Iterable[str], options: SmallModel, seed: int = 0
) -> Path:
    """Make a model that stands in for Qwen3-1.7B where there is neither GPU nor weights.

    It knows nothing: what it can do, it learns in the cold start.

    Args:
        folder: Where model and tokenizer are written.
        texts: What the tokenizer's byte-level BPE is trained on.
        options: Its size.
        seed: Seed of the weights.

    Returns:
        The folder.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = byte_level_tokenizer(texts, options.vocabulary)
    # An arrangement's marks are one token each: two layers cannot learn to spell as well.
    tokenizer.add_tokens([mark for n in ("K", *range(1, 33)) for mark in (f"[{n}]", f"**[{n}]**")])
    wrapped = with_chat(tokenizer)
    heads = max(options.hidden_size // 16, 2)
    config = Qwen3Config(
        vocab_size=len(wrapped),
        hidden_size=options.hidden_size,
        intermediate_size=2 * options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 2, 1),
        head_dim=16,
        tie_word_embeddings=True,
        eos_token_id=wrapped.eos_token_id,
        pad_token_id=wrapped.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder
