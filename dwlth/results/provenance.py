"""Where a result comes from: hardware, versions, commit, command."""

import contextlib
import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

import dwlth
from dwlth.fast import team


def provenance(device: str, precision: str, together: int, seconds: float, command: str) -> dict[str, Any]:
    """Where a result comes from: its share of the wall time of so many runs `together`, hardware, versions, commit and
    command; and how many `processes` trained it together, where these were several."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu()
    several = {"processes": team.current.size} if team.current.size > 1 else {}
    return several | {
        "seconds": round(seconds, 3),
        "together": together,
        "precision": precision,
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": importlib.metadata.version("torchvision"),
        "dwlth": dwlth.__version__,
        "commit": _commit(),
        "command": command,
    }


@cache
def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def _commit() -> str:
    """The commit of the checkout this package runs from, with a + where it has changes; empty without git."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return ""

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", here, *args], capture_output=True, text=True).stdout.strip()

    with contextlib.suppress(OSError):
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", "dwlth") else "")
    return ""
