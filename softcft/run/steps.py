"""Run the steps of a plan, two at a time, each in a process group of its own."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from softcft.run.plan import Plan, Step
from softcft.run.records import Records
from softcft.run.schedule import Clock, duration, is_bar, read_bar

__all__ = ["run_plan", "steps_to_do"]

TAIL = 20  # lines of the log of a step that failed
SILENCE = 60.0  # seconds between two lines about progress where there is no terminal


class _Runner:
    """Runs steps, and tells how far all of them are.

    Args:
        plan: What is to be done.
        records: What was done before, and is now.
        clock: How much is left.
        recipes: The folder of the recipes.
    """

    def __init__(self, plan: Plan, records: Records, clock: Clock, recipes: Path) -> None:
        self.plan, self.records, self.clock, self.recipes = plan, records, clock, recipes
        self.logs = plan.folder / "logs"
        self.progress: dict[str, str] = {}
        self.unfinished: dict[str, str] = {}
        self.said: set[str] = set()
        self.is_terminal = sys.stderr.isatty()
        self.told = time.monotonic()

    async def run(self, steps: list[Step]) -> None:
        """Run steps, as many at a time as the plan allows. If one fails, the others are ended."""
        waiting = iter(steps)
        async with asyncio.TaskGroup() as places:
            for _ in range(self.plan.run.jobs):
                places.create_task(self._place(waiting))

    async def _place(self, waiting: Iterator[Step]) -> None:
        """Run one step after another while there are any."""
        for step in waiting:
            self.clock.start(step.name)
            out, err = self.logs / f"{step.name}.out", self.logs / f"{step.name}.err"
            with out.open("wb") as stdout, err.open("wb") as stderr, err.open("rb") as written:
                job = await asyncio.create_subprocess_exec(
                    *self._command(step),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env=self._environment(),
                    start_new_session=True,
                )
                try:
                    while True:
                        ended = job.returncode is not None  # asked before the log is read, which then is complete
                        self._look(step.name, written.read().decode(errors="replace"))
                        if ended:
                            break
                        await asyncio.sleep(0.1)
                finally:
                    await _end(job)
                    self.progress.pop(step.name, None)
                    self._show("")
            if job.returncode:
                end = err.read_text(errors="replace").splitlines()[-TAIL:]
                raise RuntimeError("\n".join([f"\n{step.name} failed (exit status {job.returncode}), see {err}", *end]))
            took = duration(self.clock.end(step.name))
            self.records.keep(step)
            print(out.read_text(errors="replace"), end="")
            left = self.clock.left()
            print(f"-- {step.name}: {took}{f'; about {duration(left)} left' if left else ''}", flush=True)

    def _command(self, step: Step) -> list[str]:
        import torch  # once a step runs: what is done is skipped without it

        script = [str(self.recipes / f"{step.recipe}.py"), *step.flags]
        if not step.shares:
            return [sys.executable, *script]
        processes = str(torch.cuda.device_count() or self.plan.run.jobs)
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes, *script]

    def _environment(self) -> dict[str, str]:
        import torch

        # One thread a process, two processes at a time: on few cores more threads only wait for each other.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return environment if torch.cuda.is_available() else environment | {"ACCELERATE_USE_CPU": "true"}

    def _look(self, name: str, written: str) -> None:
        """Follow what a step writes: show the progress of all, and pass on warnings, each once."""
        *lines, rest = (self.unfinished.pop(name, "") + written).split("\n")
        self.unfinished[name] = rest.rpartition("\r")[2]
        for line in (line.strip() for line in lines):
            if line and not is_bar(line) and line not in self.said:
                self.said.add(line)
                self._show("")
                sys.stderr.write(f"{name}: {line}\n")
        if (bar := read_bar(written)) is not None:
            what, percent, seconds = bar
            of = "" if what.startswith(name) else f" ({what})"
            self.progress[name] = f"{name}{of} {percent} %" + (f", {duration(seconds)} left" if seconds else "")
            self.clock.bars[name] = seconds or 0.0
        self.progress.setdefault(name, f"{name} starts")
        if self.is_terminal or time.monotonic() - self.told >= SILENCE:
            left = self.clock.left()
            self._show(" | ".join([*self.progress.values(), *([f"all: about {duration(left)} left"] if left else [])]))
            self.told = time.monotonic()

    def _show(self, line: str) -> None:
        """Write a line in place of the one before; an empty one clears it."""
        if self.is_terminal:
            columns = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r{line[:columns]:{columns}}" + ("" if line else "\r"))
        elif line:
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


async def _end(job: asyncio.subprocess.Process) -> None:
    """End a job, if it still runs, with all processes that it has started."""
    # torchrun needs time to end its workers, which are in groups of their own.
    for number, patience in ((signal.SIGTERM, 40), (signal.SIGKILL, math.inf)):
        if job.returncode is None:
            os.killpg(job.pid, number)
        until = time.monotonic() + patience
        while job.returncode is None and time.monotonic() < until:
            with contextlib.suppress(asyncio.CancelledError):  # the group and asyncio.run both cancel
                await asyncio.sleep(0.1)


def steps_to_do(plan: Plan, records: Records) -> list[list[Step]]:
    """By group the steps that are not done. What follows on one of them is made anew, and its records are deleted."""
    groups: list[list[Step]] = []
    for group in plan.groups:
        if any(groups):
            for step in group:
                records.forget(step)
        groups.append([step for step in group if not records.is_done(step)])
    return groups


def run_plan(
    plan: Plan, to_do: list[list[Step]], records: Records, estimates: Mapping[str, float], recipes: Path
) -> None:
    """Run the steps of a plan that are to be done, and tell how far they are.

    Args:
        plan: All steps.
        to_do: Those to run, see :func:`steps_to_do`.
        records: Gets what is done.
        estimates: Seconds of each step; empty if they are not known.
        recipes: The folder of the recipes.

    Raises:
        ExceptionGroup: With a RuntimeError of the step that failed.
    """
    (plan.folder / "logs").mkdir(parents=True, exist_ok=True)
    clock = Clock([[step.name for step in steps] for steps in to_do], estimates, plan.run.jobs)
    runner, left = _Runner(plan, records, clock, recipes), iter(to_do)
    for number, (heading, groups) in enumerate(plan.stages.items(), start=1):
        print(f"{chr(10) * (number > 1)}== {number}/5 {heading}", flush=True)
        for group in groups:
            steps = next(left)
            if done := [step.name for step in group if step not in steps]:
                print(f"Done before: {', '.join(done)}", flush=True)
            if steps:
                asyncio.run(runner.run(steps))
