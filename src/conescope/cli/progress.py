"""A progress bar for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class ProgressBar:
    """A bar with the iteration, the rate, the time taken and the time left; silent off a terminal.

    Args:
        console: the terminal to draw on.

    Attributes:
        step: the newest iteration that `begin` or `advance` was given.
    """

    def __init__(self, console: Console) -> None:
        self.step = 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.file.isatty(),  # colours may be forced where there is no terminal
        )

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, name: str, step: int, total: int) -> None:
        """Show the bar at iteration `step` of `total`, in place of an earlier bar."""
        self.step = step
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._task = self._progress.add_task(name, total=total, completed=step)

    def advance(self, step: int) -> None:
        """Move the bar to iteration `step`."""
        self.step = step
        self._progress.update(self._task, completed=step)


class _Rate(ProgressColumn):
    """A column with the iterations per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} it/s" if task.speed else "")
