"""What the GPUs are, and what they do while something is measured, read from nvidia-smi."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass, field
from statistics import fmean
from types import TracebackType
from typing import Self


def visible_gpus() -> dict[int, str]:
    """Return the names of this process's GPUs, by nvidia-smi's index; none without nvidia-smi.

    CUDA_VISIBLE_DEVICES says which of the machine's they are, and in which order.
    """
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    found = [line.split(", ", 2) for line in done.stdout.strip().splitlines()]
    names = {int(index): name for index, _, name in found}
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return names
    known = {index: int(index) for index, _, _ in found}
    given = [entry.strip() for entry in asked.split(",") if entry.strip()]
    of = [known.get(entry, _by_uuid(entry, found)) for entry in given]
    return {index: names[index] for index in of if index is not None}


def _by_uuid(entry: str, found: list[list[str]]) -> int | None:
    """Return the index of the GPU whose UUID begins so, as CUDA takes it."""
    return next((int(index) for index, uuid, _ in found if uuid.startswith(entry)), None)


@dataclass(frozen=True)
class Reading:
    """One reading of one GPU: index, moment (as time.time), %, MiB and W (None if not given)."""

    gpu: int
    at: float
    utilisation: float
    memory_mib: float
    power_w: float | None


@dataclass
class GpuWatch:
    """Reads all GPUs five times a second, for a `with` block; nothing where there are none.

    Attributes:
        readings: So far.
    """

    readings: list[Reading] = field(default_factory=list)
    _program: subprocess.Popen[str] | None = None
    _reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start reading."""
        if visible_gpus():
            query = "--query-gpu=index,utilization.gpu,memory.used,power.draw"
            self._program = subprocess.Popen(
                ["nvidia-smi", query, "--format=csv,noheader,nounits", "-lms", "200"],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop reading."""
        if self._program and self._reader:
            self._program.kill()
            self._program.wait()
            self._reader.join(5)

    def _read(self) -> None:
        assert self._program is not None and self._program.stdout is not None
        for line in self._program.stdout:
            self.readings += parse(line, time.time())

    def between(self, began: float, ended: float, gpus: list[int]) -> dict[str, list[float] | None]:
        """Return what the GPUs did in a stretch of time.

        Args:
            began: As time.time.
            ended: Likewise.
            gpus: Indices.

        Returns:
            `utilisation` in percent, `peak_memory_gib` and `energy_j` of each GPU; None where it
            could not be read.
        """
        rows = [[r for r in self.readings if r.gpu == g and began <= r.at <= ended] for g in gpus]
        if not rows or not all(rows):
            return dict.fromkeys(("utilisation", "peak_memory_gib", "energy_j"))
        powers = [[r.power_w for r in row if r.power_w is not None] for row in rows]
        return {
            "utilisation": [round(fmean(r.utilisation for r in row), 1) for row in rows],
            "peak_memory_gib": [round(max(r.memory_mib for r in row) / 1024, 1) for row in rows],
            "energy_j": [round(fmean(p) * (ended - began), 1) for p in powers]
            if all(powers) else None,
        }  # fmt: skip


def parse(line: str, at: float) -> list[Reading]:
    """Return the reading in a line of nvidia-smi; none if the GPU gives no figures."""
    try:
        index, utilisation, memory, power = (cell.strip() for cell in line.split(","))
        watts = float(power) if power.replace(".", "", 1).isdecimal() else None
        return [Reading(int(index), at, float(utilisation), float(memory), watts)]
    except ValueError:
        return []
