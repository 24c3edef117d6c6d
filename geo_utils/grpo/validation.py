"""How far the policy is on queries it does not train on, as it trains, and the best checkpoint."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback
from trl.extras.profiling import profiling_context

from geo_utils.files import append_jsonl, read_jsonl
from geo_utils.grpo.params import Validation
from geo_utils.grpo.rewards import Rewards
from geo_utils.models.loops import run_sync
from geo_utils.roles.policies import CARD, PolicyCard
from geo_utils.statistics import cluster_mean

log = logging.getLogger(__name__)
FILE = "validation.jsonl"


@dataclass(eq=False)
class Validator(TrainerCallback):
    """Judges the policy before the training, every so many steps and after it.

    The policy writes a page for each validation pair, as in training; engine and judge are the
    training's, so that answers to a page that was met before come from the cache. A page is taken
    as evaluation takes it, also one that pastes.

    Attributes:
        trainer: Writes by the present weights.
        rows: Prompts of the validation pairs.
        rewards: Bring engine and judge.
        options: When, how often, and when to stop.
        folder: The run's; gets `validation.jsonl` and `checkpoints/best-STEP`.
        card: Put into the best checkpoint.
    """

    trainer: Any
    rows: Sequence[dict[str, Any]]
    rewards: Rewards
    options: Validation
    folder: Path
    card: PolicyCard

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Judge the weights that the step before left; stop if they have long not been better."""
        if state.global_step % self.options.every == 0:
            self.judge(state.global_step)
        found = read_jsonl(self.folder / FILE)
        best = max(found, key=lambda row: row["mean"] or 0.0, default={"step": 0})
        since = sum(row["step"] > best["step"] for row in found)
        if self.options.patience and since >= self.options.patience:
            control.should_training_stop = True

    def judge(self, step: int) -> None:
        """Write the line of a step, unless it is there, and keep the weights if they are best."""
        found = read_jsonl(self.folder / FILE)
        if any(row["step"] == step for row in found):
            return
        with profiling_context(self.trainer, "validate"):
            replies = self.trainer.write_now(self.rows, step)
            values = np.array(run_sync(self.rewards.landed(self.rows, replies)))
        told = cluster_mean(values, [row["query_id"] for row in self.rows], bounded=True)
        figures = {"mean": told.mean, "low": told.low, "high": told.high}
        row: dict[str, Any] = {
            "step": step,
            **{name: None if np.isnan(value) else value for name, value in figures.items()},
            "n_queries": told.n_clusters,
            "n_samples": told.n_samples,
            "abstentions": int(np.isnan(values).sum()),
        }
        aim = self.rewards.options.aim
        log.info("step %d: mean %r of validation answers is %s", step, aim, row["mean"])
        before = max((r["mean"] for r in found if r["mean"] is not None), default=-1)
        if row["mean"] is not None and row["mean"] > before:
            self._keep(step)
        append_jsonl(self.folder / FILE, [row])

    def _keep(self, step: int) -> None:
        """Save the present adapter in place of the best so far."""
        folder = self.folder / "checkpoints" / f"best-{step}"
        self.trainer.save_model(str(folder))
        self.card.write(folder)  # last: a folder with its card is complete
        for other in self.folder.glob("checkpoints/best-*"):
            if other != folder:
                shutil.rmtree(other)


def best_checkpoint(folder: Path) -> Path | None:
    """Return the best checkpoint by validation in a folder of checkpoints, if there is one."""
    found = [path for path in folder.glob("best-*") if (path / CARD).is_file()]
    return max(found, key=lambda path: int(path.name.partition("-")[2]), default=None)
