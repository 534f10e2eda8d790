"""What the processes of a run do together before they train. If one fails, all end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from softcft.training.parsing import write_config
from softcft.training.processes import this_process
from softcft.training.resuming import record_changes

__all__ = ["begin_training", "main_process_first"]


@contextmanager
def main_process_first() -> Iterator[bool]:
    """Do something on the main process and then on the others, which find what it has prepared.

    Yields whether this is the main process. Where it fails on one process, all of them end at once, and only this one
    reports an error. Otherwise the others would wait ten minutes for it.
    """
    is_main = this_process().is_main_process
    if not is_main:
        _meet()
    try:
        yield is_main
    except (Exception, SystemExit):
        gather_object([False])
        raise
    if is_main:
        _meet()
    _meet()


def begin_training(config: Mapping[str, Any], section: str, output_dir: str | Path) -> None:
    """Write the settings of a run into its folder, once all processes see one folder, and record what changes.

    Raises:
        FileNotFoundError: If the checkpoint to resume from does not exist.
        ValueError: If processes see different checkpoints, so that some would go on and others start anew; or if the
            run goes on with settings that may not change, see :mod:`softcft.training.resuming`.
    """
    this_process()
    seen = gather_object([sorted(path.name for path in Path(output_dir).glob("checkpoint-*"))])
    with main_process_first() as is_main:
        for process, checkpoints in enumerate(seen if is_main else []):
            if checkpoints != seen[0]:
                raise ValueError(
                    f"output_dir {output_dir}: the main process sees {', '.join(seen[0]) or 'no checkpoint'}, but "
                    f"process {process} sees {', '.join(checkpoints) or 'none'}. It must be one folder that all "
                    "machines share."
                )
        if is_main:
            record_changes(config, section, output_dir)
            write_config(config, output_dir)


def _meet() -> None:
    """Wait for all processes; end this one if another has failed."""
    succeeded = gather_object([True])
    if not all(succeeded):
        # The output of another machine may be in another file.
        message = f"Process {succeeded.index(False)} failed, see its error."
        raise SystemExit(message if this_process().is_main_process else 1)
