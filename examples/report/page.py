"""Write `index.html`: one page without any outside resource, that opens from the disk in any browser."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from examples.report.story import Story
from examples.report.svg import Mark, draw_bars, draw_line
from tallyman.meter import decode_dimensions

KINDS = {"pending": "pending", "firing": "firing", "resolved": "resolved"}


def write_page(folder: Path, story: Story) -> Path:
    """Write the page into a folder and return its path."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["figure"] = figure
    environment.filters["dimensions"] = dimensions_text
    live = draw_line(
        story.live,
        title="Bytes over the loopback interface in the current minute, as ClickHouse shows them",
        threshold=story.threshold,
        threshold_label=story.threshold_label,
        marks=[Mark(step.at_s, step.state, KINDS.get(step.state, "pending")) for step in story.alarms],
    )
    charts: dict[str, list[dict[str, object]]] = {}
    for chart in story.charts:
        drawn = draw_bars(chart.values, title=f"{chart.tenant}: {chart.title} by day, {chart.unit}")
        charts.setdefault(chart.tenant, []).append({"chart": chart, "svg": drawn})
    page = environment.get_template("index.html.j2").render(story=story, live=live, charts=charts)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def dimensions_text(encoded: str) -> str:
    """Write dimensions for people, "flavor s1.large, region ham1".

    >>> dimensions_text('{"direction":"out","interface":"eth0"}')
    'direction out, interface eth0'
    """
    values = decode_dimensions(encoded).items()
    return ", ".join(f"{name} {'none' if value is None else value}" for name, value in values)


def figure(value: Decimal | int) -> str:
    """Write a quantity with thousands in groups and no digit lost.

    >>> figure(Decimal("1234567.500000"))
    '1,234,567.5'
    """
    text = f"{value:,f}" if isinstance(value, Decimal) else f"{value:,}"
    return text.rstrip("0").rstrip(".") if "." in text else text
