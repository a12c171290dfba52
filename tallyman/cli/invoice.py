"""`tallyman invoice`: look at a month's invoices, and make them final."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from tallyman.cli.collectors import behind_as_object, behind_text, gap_as_object, gap_text, held_as_object, held_text
from tallyman.cli.context import LazyGroup, Options, clickhouse, leave, load_room, project_options
from tallyman.cli.output import count, print_json, print_table, progress_line, result, say
from tallyman.cli.repair import gap_line, repair_object

_MOST_TOLD = 10
_COMMANDS = {"preview": "tallyman.cli.invoice:preview", "run": "tallyman.cli.invoice:run_"}


def _month(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    from tallyman.errors import UsageQueryError
    from tallyman.period import month_period, previous_month

    if value is None:
        return previous_month(datetime.now(UTC).date())
    try:
        return month_period(value, "UTC").month
    except UsageQueryError as error:
        raise click.BadParameter(str(error).removeprefix("month: ")) from error


_month_option = click.option(
    "--month", callback=_month, metavar="YYYY-MM", help="Which month.  [default: the one before this]"
)
_account_option = click.option(
    "--account", "accounts", multiple=True, metavar="ID", help="Only this account; repeatable."
)


@click.group(cls=LazyGroup, commands_by_name=_COMMANDS)
@project_options
def invoice(options: Options) -> None:
    """Look at a month's invoices, and make them final.

    \b
    Examples:
      tallyman invoice preview --month 2026-10 --account acct-0001
      tallyman close && tallyman invoice run --month 2026-10
    """


@click.command()
@_month_option
@_account_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def preview(options: Options, month: str, accounts: Sequence[str], as_json: bool) -> None:
    """Show drafts from all usage that has arrived, sealed or not. Nothing is stored.

    \b
    Example:
      tallyman invoice preview --month 2026-10
    """
    project, doubts = options.load(), load_room("invoices.gather:Doubts")()
    with clickhouse(project):  # what ClickHouse refuses is a sentence
        drafts = load_room("invoices.batch:preview")(project, month, tuple(accounts), doubts=doubts)
    print_doubts(doubts)
    if as_json:
        import json

        encode = load_room("invoices.model:encode_invoice")
        print_json([json.loads(encode(draft), parse_float=str) for draft in drafts])
        return
    final = load_room("invoices.batch:read_final")(project, month)
    for draft in drafts:
        _print_draft(draft, final.get(draft.account))
    say(preview_summary(month, drafts, final))


def preview_summary(month: str, drafts: Sequence[Any], final: Mapping[str, object]) -> str:
    """Return what a run would do with the drafts, in its words: what is final stays, what is empty is left out."""
    old = sum(draft.account in final for draft in drafts)
    empty = sum(draft.account not in final and not draft.lines for draft in drafts)
    parts = [count(len(drafts), "draft")]
    parts += [f"{old} final already, which a run leaves as it is"] if old else []
    parts += [f"{empty} empty, which a run leaves out"] if empty else []
    told = f"{month}: {', '.join(parts)}; nothing is stored."
    if len(drafts) == old + empty:
        return told
    return f"{told} Make them final with: tallyman invoice run --month {month}"


def _print_draft(draft: Any, final: tuple[str, object] | None) -> None:
    result(f"{draft.account}  {draft.buyer.name}  {draft.first_day} to {draft.last_day}, {draft.plan_name}")
    rows: list[list[object]] = []
    for line in draft.lines:
        quantity = None if line.meter is None else line.quantity / line.per
        rows.append([line.name, None if quantity is None else f"{quantity:,.3f}", line.unit or None, f"{line.net:,f}"])
    print_table(["line", "quantity", "unit", draft.currency], _right(rows, 1, 3))
    for tax in draft.taxes:
        result(f"tax {tax.rate:f} % on {tax.taxable:,f}: {tax.tax:,f} {draft.currency}")
    result(f"total {draft.gross:,f} {draft.currency}")
    if final is not None:
        number, gross = final
        result(f"{number} over {gross} is final and stays: what this draft has beyond it is on no invoice")
    result()


def _right(rows: list[list[object]], *columns: int) -> list[list[object]]:
    """Set texts of figures to the right of their column."""
    for column in columns:
        size = max((len(str(row[column] or "")) for row in rows), default=0)
        for row in rows:
            row[column] = str(row[column] or "").rjust(size)
    return rows


@click.command("run")
@_month_option
@_account_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_options
def run_(options: Options, month: str, accounts: Sequence[str], as_json: bool) -> None:
    """Make a month's invoices final: number them, store them, write their documents.

    Counts sealed usage only. May be run again: what was issued stays as it is.

    \b
    Example:
      tallyman invoice run --month 2026-10
    """
    project = options.load()
    show = progress_line("invoices")
    with clickhouse(project):  # what ClickHouse refuses is a sentence
        report = load_room("invoices.batch:run")(
            project,
            month,
            tuple(accounts),
            on_progress=lambda done, total, account: show(f"{done} of {total}", done=done == total),
        )
    print_doubts(report.doubts)
    if as_json:
        print_json(_document(report))
    else:
        _print_report(report)
    leave(1 if report.failed else 0)


def print_doubts(doubts: Any) -> None:
    """Say, beside the result, why usage of the month may be too little."""
    lines = [gap_line(each) for each in sorted(doubts.repaired, key=lambda each: each.decided_at)]
    lines += [gap_text(each, UTC) for each in sorted(doubts.gaps, key=lambda each: (each.collector, each.first))]
    held = sorted(doubts.held_by, key=lambda each: (each.watermark, each.name))
    lines += [f"held back by {held_text(each, UTC)}" for each in held]
    behind = sorted(doubts.behind.values(), key=lambda each: (each.watermark, each.name))
    lines += [behind_text(each, UTC) for each in behind]
    if doubts.unknown:
        lines.insert(0, "up to when it is complete is not known, the pipeline has not reached every partition yet")
    for line in lines[:_MOST_TOLD]:
        say(f"take care, usage may be missing: {line}")
    if len(lines) > _MOST_TOLD:
        say(f"and {len(lines) - _MOST_TOLD:,} more; --json has all, and so have: tallyman repair list, "
            "tallyman collectors list")  # fmt: skip


def _print_report(report: Any) -> None:
    rows = [[each.number, each.account, each.name, str(each.gross), str(each.html)] for each in report.issued]
    if rows:
        print_table(["number", "account", "name", "total", "document"], rows)
    counts = [("issued", report.issued), ("unchanged", report.unchanged), ("empty", report.empty)]
    counts.append(("failed", report.failed))
    result(f"{report.month}: " + ", ".join(f"{name} {len(some)}" for name, some in counts))
    for account, what in report.failed:
        result(f"  {account}: {what}")


def _document(report: Any) -> dict[str, object]:
    def plainly(issued: Any) -> dict[str, object]:
        gross = issued.gross
        return {
            "number": issued.number,
            "account": issued.account,
            "name": issued.name,
            "gross": {"amount": f"{gross.amount:f}", "currency": gross.currency},
            "html": str(issued.html),
            "json": str(issued.json),
        }

    return {
        "month": report.month,
        "issued": [plainly(each) for each in report.issued],
        "unchanged": [plainly(each) for each in report.unchanged],
        "empty": list(report.empty),
        "failed": [{"account": account, "problem": what} for account, what in report.failed],
        "repaired": [repair_object(each) for each in report.doubts.repaired],
        "gaps": [gap_as_object(each) for each in report.doubts.gaps],
        "held_by": [held_as_object(each) for each in report.doubts.held_by],
        "behind": [behind_as_object(each) for each in report.doubts.behind.values()],
        "completeness_known": not report.doubts.unknown,
    }
