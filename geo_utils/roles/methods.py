"""The names of the rewriting methods, their families, and trained policies as methods."""

from __future__ import annotations

from pathlib import Path

from geo_utils.files import resolve_path
from geo_utils.parameters import nearest

# Methods that only edit the page, under any rewriter.
MODEL_FREE_METHODS = ("original", "paste_key_point", "repeat_key_point", "instruct_engine")
# Methods that the offline rewriter has an edit for; with a model they are prompts.
OFFLINE_METHODS = ("keyword_stuffing", "easy_to_understand", "key_point")
# GEO's nine and AutoGEO's rules, as published.
PREVIOUS = (
    "keyword_stuffing",
    "easy_to_understand",
    "unique_words",
    "fluency",
    "authoritative",
    "technical_terms",
    "cite_sources",
    "quotation",
    "statistics",
    "rules",
)
# Those of them whose published prompts let the model praise the page, or invent what it adds;
# each has a variant that forbids this.
INVENTING = ("authoritative", "cite_sources", "quotation", "statistics", "rules")
_TRUTHFUL = "_truthful"
MODEL_METHODS = (*PREVIOUS[2:], *(f"{m}{_TRUTHFUL}" for m in INVENTING), "arrange_key_point")
METHODS = (*MODEL_FREE_METHODS, *OFFLINE_METHODS, *MODEL_METHODS)
# Arms that are no rewrite but stand beside them in a samples table.
REMOVED, NO_SOURCES = "removed", "no_sources"
_PLACEBO = "placebo of "
_POOLED = "previous methods (pooled over "
_ADAPTER = "adapter_model.safetensors"


def placebo_of(method: str) -> str:
    """Return the name of the arm that shuffles a method's rewrites among the queries."""
    return f"{_PLACEBO}{method}"


def shuffled_method(arm: str) -> str | None:
    """Return the method whose rewrites an arm shuffles, or None if it shuffles none."""
    return arm.removeprefix(_PLACEBO) if arm.startswith(_PLACEBO) else None


def pooled(n: int) -> str:
    """Return the name of the row that so many previous methods make together."""
    return f"{_POOLED}{n})"


def is_pooled(method: object) -> bool:
    """Tell whether a name is that of several previous methods as one."""
    return str(method).startswith(_POOLED)


def is_arm(method: str) -> bool:
    """Tell whether a name in a samples table is an arm of the comparison and no rewrite."""
    return method in (REMOVED, NO_SOURCES) or shuffled_method(method) is not None


def is_policy(method: str) -> bool:
    """Tell whether a method is the folder of a trained policy."""
    return "/" in method and not is_arm(method)


def published_method(method: str) -> str:
    """Return the method as published that a truthful variant is of; of another, its own name."""
    return method.removesuffix(_TRUTHFUL)


_LABELS = {
    "key_point": "key-point rewrite",
    "policy/prompt": "own prompt",
    "policy/before": "policy before GRPO",
    "policy/after": "trained policy",
    "policy/best_of_n": "best of n",
    "policy/distilled": "distilled from best of n",
    REMOVED: "target page removed",
    NO_SOURCES: "no sources at all",
}


def label(method: str) -> str:
    """Return a method's name as figures and tables write it."""
    if method in _LABELS:
        return _LABELS[method]
    if shuffled := shuffled_method(method):
        return f"placebo: {label(shuffled)}, shuffled"
    if is_policy(method):
        return f"policy {'/'.join(method.split('/')[-2:])}"
    published = published_method(method)
    if published not in INVENTING:
        return method.replace("_", " ")
    family = "as published" if method == published else "truthful"
    return f"{published.replace('_', ' ')} ({family})"


def policy_problem(folder: Path) -> str | None:
    """Say why a folder holds no policy that could be loaded, or None."""
    if not folder.is_dir():
        return f"policy {str(folder)!r}: no such folder; name a checkpoint of notebook 04"
    adapter = (folder / _ADAPTER).is_file()
    if not adapter and (problem := binary_adapter(folder)):
        return f"policy {str(folder)!r}: {problem}"
    if adapter and not (folder / "adapter_config.json").is_file():
        return (
            f"policy {str(folder)!r}: {_ADAPTER} without adapter_config.json; copy the whole "
            "checkpoint folder"
        )
    if not adapter and not (folder / "config.json").is_file():
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        return f"policy {str(folder)!r}: neither an adapter nor a model; it holds {inside}"
    return None


def binary_adapter(folder: Path) -> str | None:
    """Say what to do about an adapter that is a pickle, or None where there is none.

    Transformers loads an adapter of a folder from safetensors alone.
    """
    if not (folder / "adapter_model.bin").is_file():
        return None
    return (
        "adapter_model.bin cannot be loaded; save the adapter once more, as safetensors: "
        f"PeftModel.from_pretrained(base, {str(folder)!r}).save_pretrained({str(folder)!r})"
    )


def check_methods(methods: list[str], rewriter: str) -> None:
    """Refuse methods that are named twice or that the rewriter cannot do.

    Raises:
        ValueError: Which, and what it can do.
    """
    if repeated := sorted({name for name in methods if methods.count(name) > 1}):
        raise ValueError(f"methods: {', '.join(repeated)} named more than once")
    for name in methods:
        if rewriter == "offline" and name in MODEL_METHODS:
            raise ValueError(
                f"method {name!r} needs a model; rewriter='offline' has "
                f"{', '.join((*MODEL_FREE_METHODS, *OFFLINE_METHODS))}"
            )


def known_method(name: str) -> str:
    """Return a method's name.

    Raises:
        ValueError: It is unknown, or the folder of no policy.
    """
    if is_policy(name):
        if problem := policy_problem(resolve_path(name)):
            raise ValueError(problem)
    elif name not in METHODS:
        raise ValueError(
            f"unknown method {name!r}{nearest(name, METHODS)} Choose from {', '.join(METHODS)}"
        )
    return name
