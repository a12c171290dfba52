"""The demo's tables on the terminal: usage per tenant and meter, the alarm's history, the invoices, the times."""

from __future__ import annotations

from decimal import Decimal

from rich.console import Console
from rich.table import Table

from examples.report.page import figure
from examples.report.story import Story, UsageLine


def show_story(console: Console, story: Story) -> None:
    """Print what happened."""
    console.print()
    console.print(_usage(story))
    console.print(_alarms(story))
    console.print(_invoices(story))
    console.print(_times(story))


def _usage(story: Story) -> Table:
    """One row for each tenant and meter; a meter's dimensions are on the page."""
    table = _table("Usage per tenant and meter, equal to the generator's own sums", "Tenant", "Meter", ">Usage", "Unit")
    grouped: dict[tuple[str, str], list[UsageLine]] = {}
    for line in story.usage:
        grouped.setdefault((line.tenant, line.meter), []).append(line)
    before = ""
    for (tenant, meter), lines in grouped.items():
        peak = meter.endswith("peak_connections")
        total = max(line.value for line in lines) if peak else sum((line.value for line in lines), Decimal(0))
        table.add_row(tenant if tenant != before else "", meter, figure(total), lines[0].unit)
        before = tenant
    return table


def _alarms(story: Story) -> Table:
    table = _table("Alarm history", "When", "Alarm", "State", ">Value", ">Told after", "Webhook, signature verified")
    colours = {"pending": "yellow", "firing": "red", "resolved": "green"}
    for step in story.alarms:
        colour = colours.get(step.state, "white")
        told = "" if step.took_s is None else f"{step.took_s:.2f} s"
        when = step.at.strftime("%H:%M:%S")
        table.add_row(when, step.alarm, f"[{colour}]{step.state}[/]", step.value, told, step.webhook_id)
    return table


def _invoices(story: Story) -> Table:
    table = _table(f"Invoices for {story.month}", "Number", "Customer", ">Net", ">Tax", ">Total", "")
    for line in story.invoices:
        table.add_row(line.number, line.name, line.net, line.tax, f"[bold]{line.total}[/]", line.currency)
    return table


def _times(story: Story) -> Table:
    table = _table("How long it took", "Step", "What happened", ">Seconds")
    for step in story.steps:
        table.add_row(step.name, step.said, f"{step.took_s:.1f}")
    table.add_section()
    table.add_row("[bold]all[/]", "", f"[bold]{story.took_s:.1f}[/]")
    return table


def _table(title: str, *columns: str) -> Table:
    """Return an empty table; a column that begins with ">" is right-aligned."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    return table
