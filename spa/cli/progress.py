"""Progress on stderr, on a terminal only: the stage at hand, and a bar with the time left where its end is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stages(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yields a function that names the stage at hand; what long work tells of itself (`spa.progress`) fills the bar."""
    import sys

    if quiet or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    from spa import progress

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task("starting", total=None)

        def stage(text: str) -> None:  # a task that was reset would keep its total
            bar.remove_task(bar.task_ids[0])
            bar.add_task(text, total=None)

        def told(what: str, done: int, total: int) -> None:
            if bar.tasks[0].description != what:
                stage(what)
            bar.update(bar.task_ids[0], completed=done, total=total)

        with progress.listening(told):
            yield stage
