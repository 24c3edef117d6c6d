"""Rewards for TRL's GRPO, by dotted name: the evaluation's own scorer on completions.

Each is a function of TRL's form that returns one float or None a completion; all of a recipe share
one pass of engine and judge a batch. A completion whose answers could not be had is None under
every component, so that TRL leaves it out of its group; a completion that holds no page is the
policy's own failure and earns the least.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from geo_utils.corpus import load_corpus
from geo_utils.model_rewriters import RewriteTask
from geo_utils.notebooks import read_parameters
from geo_utils.roles import make_roles, prompts_folder
from geo_utils.training.params import GrpoParams
from geo_utils.training.scoring import Rewards, Values


@lru_cache(maxsize=2)
def _of_recipe(path: str) -> Rewards:
    """Return the rewards that a prepared recipe describes, for `trl grpo`."""
    params = read_parameters(GrpoParams.notebook, path)[2]
    assert isinstance(params, GrpoParams)
    roles = make_roles(params)
    task = RewriteTask(params.method, prompts_folder(params))
    examples = load_corpus(**params.corpus_options)
    return Rewards(examples, task, roles.engine, roles.judge, params.reward, params.seed)


async def key_point(**columns: Any) -> Values:
    """Support of the key point in the engine's answer, 0 to 1.

    With `reward.soft` the judge's strength of support, else 1 for `supported` and 0 for `omitted`
    or `contradicted`; the mean over `reward.repeats` answers. This and the six below take TRL's
    columns as `training.grpo.prepare` writes them and are named in a recipe for `trl grpo` as
    `geo_utils.rewards.key_point`; in the notebook, `Rewards.functions` are the same.
    """
    return await _component("key_point", columns)


async def visibility(**columns: Any) -> Values:
    """The target's visibility in the answer minus the original page's, -1 to 1.

    `reward.figure` is GEO's word, position or position-adjusted word count, or their mean.
    """
    return await _component("visibility", columns)


async def fidelity(**columns: Any) -> Values:
    """Lexical fidelity of the page to the original, 0 to 1; see `geo_utils.fidelity`."""
    return await _component("fidelity", columns)


async def length_budget(**columns: Any) -> Values:
    """1 up to (1 + `reward.length_slack`) times the original's words, 0 from twice that slack."""
    return await _component("length_budget", columns)


async def no_instructions(**columns: Any) -> Values:
    """1 if the page tells the reader's AI nothing that the original does not, else 0."""
    return await _component("no_instructions", columns)


async def format(**columns: Any) -> Values:
    """1 for a completion that is the page and nothing else, 0.5 for one with more, 0 for none.

    For an arrangement: 1 if every mark does something.
    """
    return await _component("format", columns)


async def negative_length(**columns: Any) -> Values:
    """Minus the completion's tokens: free, the floor of all timings."""
    return await _component("negative_length", columns)


async def _component(name: str, columns: dict[str, Any]) -> Values:
    rewards = _of_recipe(columns.pop("recipe")[0])
    return await rewards.functions[rewards.options.funcs.index(name)](**columns)
