"""Say what the demo is doing: a line that moves while a step runs, a line that stays when it is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from examples.report.story import Step
from tallyman.errors import TallymanError


class DemoError(TallymanError):
    """Something that the demo promises did not happen."""


class Ticker:
    """What a running step may say; the last `said` is what stays."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self.result = ""

    def tell(self, detail: str) -> None:
        """Show what happens right now."""
        self._progress.update(self._task, detail=detail)

    def count(self, done: int, total: int, detail: str = "") -> None:
        """Show how much is done."""
        self._progress.update(self._task, completed=done, total=total, detail=detail or f"{done:,} of {total:,}")

    def said(self, sentence: str) -> None:
        """Set the sentence that the step ends with."""
        self.result = sentence


class Display:
    """The demo's side of the terminal. Without a terminal each step is two plain lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.steps: list[Step] = []
        self._running: Ticker | None = None
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show progress for as long as the block lasts."""
        with self._progress:
            yield

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[Ticker]:
        """Run one step; its time and last sentence are kept, unless it fails."""
        if not self.console.is_terminal:
            self.console.print(f"[dim]…[/] {name}: {what}", highlight=False)
        task = self._progress.add_task(name, total=None, detail=what)
        ticker = self._running = Ticker(self._progress, task)
        began = time.monotonic()
        try:
            yield ticker
        except BaseException:
            self.console.print(f"[red]✗[/] [bold]{name}[/] [dim]{time.monotonic() - began:.1f} s[/]", highlight=False)
            raise
        finally:
            self._running = None
            self._progress.remove_task(task)
        took_s = time.monotonic() - began
        self.steps.append(Step(name, took_s, ticker.result))
        said = escape(ticker.result)
        self.console.print(f"[green]✓[/] [bold]{name}[/] {said} [dim]{took_s:.1f} s[/]", highlight=False)

    def tell(self, detail: str) -> None:
        """Show what happens right now beside the step that runs, if one does; any thread may call this."""
        if running := self._running:
            with suppress(KeyError):  # the step ended a moment ago
                running.tell(detail)

    def note(self, text: str) -> None:
        """Print something that happened meanwhile, such as a webhook."""
        self.console.print(f"  [cyan]│[/] {text}", highlight=False, soft_wrap=True)
