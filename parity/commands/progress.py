"""What a command shows while it works, and how long it took."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diy_core.checkpoints.transfer import Progress

SETTLED = 1.0  # seconds; a rate before that says more about the start than about the work


@contextlib.contextmanager
def spinner() -> Iterator[Callable[[str], None]]:
    """A line that says what is being done, on a terminal; nothing elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda message: None
        return
    with console.status("starting") as status:
        yield status.update


@contextlib.contextmanager
def bar() -> Iterator[Progress]:
    """Bytes, and after a second rate and time left, on a terminal; nothing elsewhere."""
    from rich import progress
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return

    class Speed(progress.TransferSpeedColumn):
        def render(self, task: progress.Task) -> Text:
            return super().render(task) if (task.elapsed or 0.0) >= SETTLED else Text("")

    class TimeLeft(progress.TimeRemainingColumn):
        def render(self, task: progress.Task) -> Text:
            return super().render(task) if (task.elapsed or 0.0) >= SETTLED else Text("")

    columns = (progress.DownloadColumn(), Speed(), TimeLeft())
    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        *columns,
        console=console,
        transient=True,
    ) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield update


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return "less than 0.1 s" if seconds < 0.1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes} min {whole % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def amount(nbytes: int, seconds: float) -> str:
    """`538.1 MB in 2.5 s (215.2 MB/s)`; what took less than a second has no rate."""
    from rich.filesize import decimal

    taken = f"{decimal(nbytes)} in {duration(seconds)}"
    return taken if seconds < SETTLED else f"{taken} ({decimal(round(nbytes / seconds))}/s)"
