"""The demo's second half: a month of the small cloud through Kafka, counted, closed, sealed, invoiced, and compared."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from clickhouse_driver import Client

from examples.compare import Difference, Expected, find_differences, find_invoice_differences, month_bounds, read_lines
from examples.display import DemoError, Display
from examples.report.story import DailyChart, InvoiceLine, Story
from invoices.batch import read_books, run
from invoices.documents import IssuedInvoice
from invoices.model import Invoice, decode_invoice
from rules.plan import Plan
from tallyman.aggregates import read_usage
from tallyman.clickhouse import connect
from tallyman.money import Money
from tallyman.period import find_zone, month_period
from tallyman.project import Project
from tallyman.send import Outcome, SendReport, send_file, wait_for
from tallyman.usage import UsageQuery

# What the page draws by day: title, meter, how many of its units make one that is shown, and that one's name.
CHARTS = (
    ("Virtual CPUs", "server.vcpu_seconds", Decimal(3600), "vCPU-hours"),
    ("Block storage", "volume.storage", Decimal(3600), "GiB-hours"),
    ("Traffic to the internet", "object.egress", Decimal(10**9), "GB"),
)


@dataclass(frozen=True, slots=True)
class Tenants:
    """Who the generated usage belongs to, as the project's own files say."""

    names: dict[str, str]  # subject -> name
    plans: dict[str, Plan]  # subject -> plan
    subjects_of: dict[str, set[str]]  # account -> subjects


def read_tenants(project: Project) -> Tenants:
    """Read accounts and plans, and who pays for which subject."""
    books = read_books(project)
    pairs = [(span.subject, account) for account in books.accounts for span in account.subjects]
    return Tenants(
        {subject: account.name for subject, account in pairs},
        {subject: books.plan_of(account) for subject, account in pairs},
        {account.account: {span.subject for span in account.subjects} for account in books.accounts},
    )


def wait_for_generator(display: Display, generator: subprocess.Popen[str]) -> None:
    """Wait for the month's files.

    Raises:
        DemoError: The generator failed.
    """
    with display.step("generate", "a month of events from a seed") as step:
        said, _ = generator.communicate()
        if generator.returncode:
            raise DemoError(f"examples.cloud.generate: exit code {generator.returncode}: {said.strip()[-2000:]}")
        step.said(f"while the parts started: {said.strip()}")


def send_files(display: Display, project: Project, name: str, files: Sequence[tuple[Path, bool]]) -> list[SendReport]:
    """Send files to Kafka; the second of a pair says whether each event becomes a record of its own."""
    reports = []
    with display.step(name, "acknowledged by Kafka (acks=all)") as step:
        for path, single in files:

            def progress(done: int, total: int | None, file: str = path.name) -> None:
                step.count(done, total or done, f"{file}: {done / 1e6:.1f} of {(total or done) / 1e6:.1f} MB")

            reports.append(send_file(project, path, progress, single=single))
        events, records = sum(report.events for report in reports), sum(report.records for report in reports)
        step.said(f"{events:,} events in {records:,} records")
    return reports


def wait_until_counted(display: Display, project: Project, name: str, reports: Sequence[SendReport]) -> Outcome:
    """Wait until all that was sent is booked, and return what became of it."""
    with display.step(name, "the job decodes, counts once, sums, books") as step:
        waiting = {"most": 1}

        def progress(left: int) -> None:
            waiting["most"] = max(waiting["most"], left)
            step.count(waiting["most"] - left, waiting["most"], f"{left:,} records to go")

        outcomes = [wait_for(project, report, on_progress=progress) for report in reports]
        total = Outcome(
            aggregated=sum(outcome.aggregated for outcome in outcomes),
            duplicate=sum(outcome.duplicate for outcome in outcomes),
            dead=sum(outcome.dead for outcome in outcomes),
            ignored=sum(outcome.ignored for outcome in outcomes),
        )
        step.said(f"{total.aggregated:,} aggregated, {total.duplicate:,} duplicates, {total.dead:,} dead letters")
    return total


def refuse_counts(expected: Expected, counted: Outcome, late: Outcome) -> None:
    """Hold what became of the events against what was generated.

    Raises:
        DemoError: An event is missing, or was counted twice, or became a dead letter.
    """
    got = {
        "distinct": counted.aggregated + late.aggregated,
        "duplicates": counted.duplicate + late.duplicate,
        "late": late.aggregated,
        "dead": counted.dead + late.dead,
    }
    must = {name: expected.counts.get(name, 0) for name in got}
    refuse_differences([Difference(name, str(must[name]), str(got[name])) for name in got if must[name] != got[name]])


def close_and_seal(display: Display, project: Project, name: str) -> int:
    """Close the open booking and wait until it is sealed; return the booking that was closed."""
    from pipeline.close import close_books, wait_until_sealed  # with Beam, which takes its second to load

    with display.step(name, "a close into each partition, then the seal") as step:
        closed = close_books(project).booking - 1
        sealed = wait_until_sealed(project, closed, timeout_s=60)
        step.said(f"booking {closed} is sealed (sealed up to {sealed})")
    return closed


def write_invoices(display: Display, project: Project, story: Story, expected: Expected, tenants: Tenants) -> None:
    """Make the month's invoices final, and run the batch a second time to see that it changes nothing.

    Raises:
        DemoError: An invoice is missing or failed, or a quantity on one is not the generator's.
    """
    with display.step("invoice", "rate, build, number, render") as step:
        report = run(project, expected.month, on_progress=lambda done, total, account: step.count(done, total, account))
        again = run(project, expected.month)
        if report.failed or len(report.issued) != len(tenants.subjects_of):
            raise DemoError(f"invoices: expected {len(tenants.subjects_of)} issued, got {report}")
        if again.issued or again.failed or {one.number for one in again.unchanged} != {o.number for o in report.issued}:
            raise DemoError(f"invoices: expected nothing new from a second run, got {again}")
        invoices = [decode_invoice(issued.json.read_bytes()) for issued in report.issued]
        refuse_differences(find_invoice_differences(invoices, expected, tenants.subjects_of))
        page = project.data.parent
        story.invoices = [_line(*pair, page) for pair in zip(report.issued, invoices, strict=True)]
        step.said(f"{len(invoices)} issued, a second run changed nothing")


def _line(issued: IssuedInvoice, invoice: Invoice, page: Path) -> InvoiceLine:
    return InvoiceLine(
        number=issued.number,
        name=issued.name,
        currency=invoice.currency,
        net=money_text(Money(invoice.net, invoice.currency)),
        tax=money_text(Money(invoice.tax, invoice.currency)),
        total=money_text(issued.gross),
        html=issued.html.relative_to(page).as_posix(),
        json=issued.json.relative_to(page).as_posix(),
    )


def money_text(money: Money) -> str:
    """Write an amount with thousands in groups, as many decimals as it has."""
    return f"{money.amount:,f}"


def compare_totals(display: Display, project: Project, story: Story, expected: Expected, tenants: Tenants) -> None:
    """Hold every total in ClickHouse against the generator's.

    Raises:
        DemoError: With every difference.
    """
    with display.step("compare", "every total, to the last digit") as step, _client(project) as client:
        story.usage = read_lines(client, project.meters, expected, tenants.names)
        refuse_differences(find_differences(story.usage, expected))
        step.said(f"{story.same} totals of {expected.counts['distinct']:,} events equal the generator's own sums")


def refuse_differences(differences: Sequence[Difference]) -> None:
    """Raise with every difference, if there is one.

    Raises:
        DemoError: Any figure differs.
    """
    if differences:
        rows = "\n".join(f"  {each.place}: expected {each.expected}, got {each.got}" for each in differences[:50])
        raise DemoError(f"{len(differences)} figures differ from the generator's own sums:\n{rows}")


def read_charts(project: Project, month: str, tenants: Tenants) -> list[DailyChart]:
    """Read each tenant's usage by its own local days."""
    charts = []
    with _client(project) as client:
        for subject, plan in tenants.plans.items():
            period = month_period(month, plan.zone)
            for title, meter, per, unit in CHARTS:
                query = UsageQuery(
                    meter=meter, start=period.start, end=period.end, subjects=(subject,), window="day", zone=plan.zone
                )
                rows = read_usage(client, query, meters=project.meters).rows
                zone = find_zone(plan.zone)
                values = [(str(row.start.astimezone(zone).day), round(row.value / per, 3)) for row in rows]
                charts.append(
                    DailyChart(tenant=tenants.names[subject], title=title, unit=unit, zone=plan.zone, values=values)
                )
    return charts


class _client:
    """A ClickHouse client that is closed at the end of a block."""

    def __init__(self, project: Project) -> None:
        self._client = connect(project.clickhouse)

    def __enter__(self) -> Client:
        return self._client

    def __exit__(self, *problem: object) -> None:
        self._client.disconnect()


def span_of(month: str) -> str:
    """Return a month as people write it, "October 2026"."""
    return month_bounds(month)[0].strftime("%B %Y")
