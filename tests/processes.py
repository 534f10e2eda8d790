"""Processes of their own: on the CPU, in one thread each, without network or the user's Accelerate settings."""

import os
import subprocess
import sys
from pathlib import Path

import softcft

ROOT = Path(softcft.__file__).parents[1]


def start_command(*command: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Start a command in a folder."""
    environment = {
        "ACCELERATE_USE_CPU": "true",
        "HF_HOME": str(cwd / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*map(str, command)], cwd=cwd, env=os.environ | environment, text=True, **pipes)


def run_command(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder to its end."""
    process = start_command(*command, cwd=cwd)
    try:
        printed, told = process.communicate(timeout=900)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, printed, told)


def python(*arguments: str | Path, processes: int = 1) -> list[str | Path]:
    """The command that runs a script, in one process or in several that train together."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(torchrun if processes > 1 else []), *arguments]


def run_python(*arguments: str | Path, cwd: Path, processes: int = 1) -> str:
    """Run a script that must end well; returns what it printed."""
    result = run_command(*python(*arguments, processes=processes), cwd=cwd)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout
