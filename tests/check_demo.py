"""After `make demo`: did the small policy learn what the README says it learns?"""

import json
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent / "outputs/04_grpo/smoke"
newest = max(root.glob("*/manifest.json"))
manifest = json.loads(newest.read_text(encoding="utf-8"))
gain = manifest["headline"]["gain"]
learned = manifest["status"] == "finished" and gain["mean"] >= 0.15 and gain["low"] > 0
sys.stdout.write(f"{newest.parent.name}: {manifest['status']}, gain {gain}\n")
sys.exit(0 if learned else "the demo's policy did not gain 0.15 in key-point probability")
