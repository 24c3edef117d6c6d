"""A trained policy as a rewriter, and the card in its folder that says how it was trained."""

from __future__ import annotations

import json
import zipfile
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from geo_utils.corpus import Example, KeyPoint
from geo_utils.files import write_atomic
from geo_utils.models.base import FatalError, LanguageModel, Sampling
from geo_utils.models.local import chat_text, transformers_local
from geo_utils.roles.by_model import REPLY_ROOM, Completes, PolicyRewriter, RewriteTask
from geo_utils.roles.methods import binary_adapter, policy_problem
from geo_utils.roles.rewriters import page_units

CARD = "policy.json"
# Of a trainer, beside a policy in its checkpoint; all of torch.save.
TRAINER_FILES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth")


@dataclass(frozen=True)
class PolicyCard:
    """How a policy was trained and has to be asked.

    Attributes:
        method: The task's method.
        prompts: Folder of the user's own templates, or None.
        template: Hash of the prompt template it was trained with.
        max_prompt_tokens: Longest prompt.
        max_completion_length: Longest completion in tokens.
        temperature: Of its completions.
        top_p: Likewise.
    """

    method: str = "key_point"
    prompts: str | None = None
    template: str = ""
    max_prompt_tokens: int = 4096
    max_completion_length: int = 4096
    temperature: float = 0.7
    top_p: float = 1.0

    @property
    def task(self) -> RewriteTask:
        """What the policy does."""
        return RewriteTask(self.method, None if self.prompts is None else Path(self.prompts))

    def write(self, folder: Path) -> None:
        """Write the card into a policy's folder."""
        write_atomic(folder / CARD, json.dumps(asdict(self), indent=2) + "\n")


def read_card(folder: Path) -> PolicyCard:
    """Return a policy's card; a folder without one is asked with the key-point prompt.

    Raises:
        FatalError: The card is unreadable, or its template has changed since the training.
    """
    path = folder / CARD
    if not path.is_file():
        return PolicyCard()
    try:
        card = PolicyCard(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise FatalError(f"{path}: no policy card ({error})") from None
    try:
        template = card.task.template
    except ValueError as error:
        raise FatalError(f"{path}: the prompt of the training is gone ({error})") from None
    if card.template and template.hash != card.template:
        raise FatalError(
            f"policy {folder}: it was trained with another wording of the prompt "
            f"{template.name!r}; put that template back, or train again"
        )
    return card


def torn_file(folder: Path) -> str | None:
    """Say which file of a checkpoint cannot be loaded, or None if all can.

    Only beginnings and ends are read, which is where a file that was cut short shows it.

    Args:
        folder: A checkpoint of an adapter or of a whole model.
    """
    from safetensors import SafetensorError, safe_open

    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        return binary_adapter(folder) or "adapter_model.safetensors is missing"
    of_trainer = sorted(path for name in TRAINER_FILES for path in folder.glob(name))
    for path in (*weights, *of_trainer):
        try:
            with safe_open(path, framework="np") if path in weights else zipfile.ZipFile(path):
                pass
        except (OSError, SafetensorError, zipfile.BadZipFile) as error:
            return f"{path.name} is torn ({error})"
    config = folder / "adapter_config.json"
    try:
        dict(json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {})
    except (OSError, ValueError, TypeError):
        return f"{config.name} is torn"
    return None


def policy_rewriter(
    name: str, calls: Callable[[LanguageModel], Completes], card: PolicyCard | None = None
) -> PolicyRewriter:
    """Return a policy as a rewriter; its weights are loaded by the first call.

    Args:
        name: Folder of a checkpoint (adapter) or of a whole model; with a card also a Hub id.
        calls: Wraps the model in a caller.
        card: How to ask it; default, the card in its folder.

    Raises:
        FatalError: The folder holds no policy.
    """
    if card is None:
        if problem := policy_problem(Path(name)):
            raise FatalError(problem)
        if any(Path(name).glob("*.safetensors")) and (problem := torn_file(Path(name))):
            raise FatalError(f"policy {name!r}: {problem}; copy it whole")
        card = read_card(Path(name))
    model = transformers_local(name, max_batch=64)
    sampling = Sampling(card.temperature, card.max_completion_length, card.top_p)

    def fit(example: Example, key_point: KeyPoint) -> int | None:
        return fitter(card, load_tokenizer(name))(example, key_point)

    return PolicyRewriter(calls(model), card.task, fit, sampling)


def fitter(card: PolicyCard, tokenizer: Any) -> Callable[[Example, KeyPoint], int | None]:
    """Return the function that says how many units of a page a policy is shown.

    That is as many as leave the prompt, its chat template included, within the card's limit; a
    policy that writes the page anew needs room for what it is shown, and a quarter more, in its
    completion. None if the whole page fits; 0 if not even one sentence does.
    """
    task, count = card.task, prompt_counter(tokenizer)

    def fit(example: Example, key_point: KeyPoint) -> int | None:
        units = page_units(example.target)

        def fits(shown: int | None) -> bool:
            head = example.target if shown is None else example.target[: units[shown - 1].end]
            writes = task.method != "arrange_key_point"
            if writes and REPLY_ROOM * count(head) > card.max_completion_length:
                return False
            return count(task.prompt(example, key_point, shown)) <= card.max_prompt_tokens

        if fits(None):
            return None
        # Whether so many units are too many: the first of 1, 2, ... that is ends the search.
        return bisect_left(range(1, len(units)), True, key=lambda shown: not fits(shown))

    return fit


def same_card(folder: Path, card: PolicyCard) -> bool:
    """Tell whether a folder holds a finished policy, and refuse one that was made otherwise.

    Raises:
        FatalError: Its card differs: another prompt, length or temperature.
    """
    if not (folder / CARD).is_file():
        return False
    found = read_card(folder)
    differ = [name for name, value in asdict(card).items() if getattr(found, name) != value]
    if differ:
        raise FatalError(
            f"policy {folder} was made with other settings ({', '.join(differ)} differ); delete "
            "the folder to make it again, or set another variant"
        )
    return True


@lru_cache(maxsize=8)
def load_tokenizer(name: str) -> Any:
    """Return a model's tokenizer.

    Raises:
        FatalError: It cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, padding_side="left")
    except (OSError, ValueError) as error:
        raise FatalError(f"tokenizer of {name!r} cannot be loaded: {error}") from None


def prompt_counter(tokenizer: Any) -> Callable[[str], int]:
    """Return a function that counts a prompt's tokens, chat template included."""

    def count(prompt: str) -> int:
        return len(tokenizer(chat_text(tokenizer, prompt), add_special_tokens=False)["input_ids"])

    return count
