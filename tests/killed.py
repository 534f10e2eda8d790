"""Ends a recipe as a full memory or a reboot does: at once, by a signal that nothing can catch."""

import signal
from pathlib import Path

from tests.processes import python, run_command


def run_until_killed(script: Path, arguments: list[str], cwd: Path, event: str, path: str, count: int = 1) -> None:
    """Run a script in a process that kills itself.

    Args:
        script: The script.
        arguments: What follows its name on the command line.
        cwd: Where it runs.
        event: What Python is about to do when it is killed, by the name of its audit event: open, os.rename.
        path: What the name of the file has in it.
        count: The how manieth time.
    """
    code = f"""
import os, runpy, signal, sys
left = {count}
def kill(event, arguments):
    global left
    if event == {event!r} and {path!r} in str(arguments[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
sys.argv = {[str(script), *arguments]!r}
sys.path.insert(0, {str(script.parent)!r})
runpy.run_path({str(script)!r}, run_name="__main__")
"""
    result = run_command(*python("-c", code), cwd=cwd)
    assert result.returncode == -signal.SIGKILL, result.stderr[-4000:]
