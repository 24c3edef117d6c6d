"""After `make demo`: is it as the README says?"""

import json
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent / "outputs"


def newest(notebook: str, variant: str = "smoke") -> Path:
    """Return the folder of the newest run."""
    return max((root / notebook / variant).glob("*/manifest.json")).parent


lines = (newest("01_efficiency") / "rows.jsonl").read_text(encoding="utf-8").splitlines()
rows = [json.loads(line) for line in lines]
covered = {
    row["setting"]: sum(map(sum, row["phases_all"].values())) / sum(row["step_s_all"])
    for row in rows
}
if len(covered) != 5 or any(abs(share - 1) > 0.02 for share in covered.values()):
    sys.exit(f"the phases' sum over the step: {covered}")
asked = {row["setting"]: row["calls_per_1000"] for row in rows if row["reward"] == "gemini"}
if set(asked.values()) != {2000.0}:  # an engine and a judge call a rollout
    sys.exit(f"calls of 1,000 rollouts: {asked}")

for notebook in ("02_baseline_rewrites", "03_key_point_prompt"):
    folder = newest(notebook, "recorded")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    calls = sum(role["calls"] for role in manifest["usage"]["roles"].values())
    lifts = manifest["headline"]["corrected lift over original"]
    sys.stdout.write(f"{folder.name}: {manifest['status']}, {calls} calls, {lifts['key_point']}\n")
    if manifest["status"] != "finished" or calls or len(lifts) != 3:
        sys.exit(f"{notebook} on the record: not finished, or it called, or lifts {[*lifts]}")

manifest = json.loads((newest("04_grpo", "recorded") / "manifest.json").read_text(encoding="utf-8"))
said = manifest["headline"]["verdict"]
sys.stdout.write(f"04 recorded: {manifest['status']}, {said}\n")
if manifest["status"] != "finished" or not said.startswith("Not worth it: training is not above"):
    sys.exit("04 on the record: not finished, or another verdict than the README's")

folder = newest("04_grpo")
manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
gain = manifest["headline"]["gain"]
learned = manifest["status"] == "finished" and gain["mean"] >= 0.15 and gain["low"] > 0
sys.stdout.write(f"{folder.name}: {manifest['status']}, gain {gain}\n")
sys.exit(0 if learned else "the demo's policy did not gain 0.15 in key-point probability")
