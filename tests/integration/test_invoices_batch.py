"""The monthly batch on the real engine and the real store: over sealed usage only, and as often as one likes."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from clickhouse_driver import Client

from invoices import batch
from invoices.check import check_plans_and_accounts
from invoices.cutoff import needed_booking
from invoices.gather import Doubts
from tallyman import generations
from tallyman.cli.invoice import preview_summary, print_doubts
from tallyman.control import open_control
from tallyman.errors import ConfigError, InvoiceError, RebuildError
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.project import Project
from tallyman.rebuilds import Switch
from tallyman.sealed import decided_to
from tests.nimbus import invoicing_project
from tests.usage_rows import TOPIC, Booked, book, progress, seal

pytestmark = pytest.mark.integration

OCTOBER_30 = 20_756_000  # bookings are numbered by their UTC day
NOVEMBER_1 = 20_758_000
NOW = datetime(2026, 11, 1, 9, 30, tzinfo=UTC)
FIRST_MINUTE = datetime(2026, 9, 30, 22, tzinfo=UTC)  # of October in Berlin
LAST_MINUTE = datetime(2026, 10, 31, 22, 59, tzinfo=UTC)

FILES = {
    "tallyman.yaml": "operator: Nimbus Compute GmbH\n",
    "meters/compute.yaml": """\
meters:
  - {meter: compute.vcpu_seconds, event_type: vm.cpu, aggregation: sum, unit: s, dimensions: {flavor: flavor}}
  - {meter: api.calls, event_type: api.call, aggregation: count, unit: calls}
""",
    "plans/standard.yaml": """\
plans:
  - plan: standard
    name: Standard cloud
    currency: EUR
    zone: Europe/Berlin
    minimum: "5.00"
    tax: {category: S, rate: "19"}
    charges:
      - {charge: small, name: Small machines, meter: compute.vcpu_seconds, model: per_unit, per: "3600",
         unit: vCPU-hours, price: "0.01", where: {flavor: [small]}}
      - {charge: other, name: Other machines, meter: compute.vcpu_seconds, model: per_unit, per: "3600",
         unit: vCPU-hours, price: "0.02", where: {flavor: [large, null]}}
      - charge: calls
        name: API calls
        meter: api.calls
        model: graduated
        tiers: [{up_to: 100, price: 0}, {price: "0.001"}]
  - plan: usage-only
    name: Nothing but usage
    currency: SEK
    zone: Europe/Stockholm
    tax: {category: S, rate: "25"}
    charges:
      - {charge: vcpu, name: Machines, meter: compute.vcpu_seconds, model: per_unit, per: "3600", price: "0.10"}
""",
    "accounts/all.yaml": """\
accounts:
  - account: acct-0001
    name: Zoë Åström Studio
    address: [Kastanienallee 77, 10435 Berlin]
    country: DE
    locale: de_DE
    plan: standard
    subjects:
      - {subject: tenant-zoë, from: 2026-01-01}
      - {subject: tenant-merged, from: 2026-10-16}
  - account: acct-0002
    name: 株式会社さくら
    address: [東京都千代田区丸の内1-1]
    country: JP
    plan: standard
    tax: {category: G}
    subjects: [{subject: tenant-merged, from: 2026-01-01, to: 2026-10-16}]
  - account: acct-0003
    name: Nobody AB
    address: [Storgatan 1, 111 22 Stockholm]
    country: SE
    plan: usage-only
    subjects: [{subject: tenant-silent, from: 2026-01-01}]
  - account: acct-0004
    name: Gone Ltd
    address: [1 High Street, Dublin]
    country: IE
    plan: standard
    subjects: [{subject: tenant-gone, from: 2026-01-01, to: 2026-10-01}]
""",
}


@pytest.fixture
def project(tmp_path: Path, clickhouse_endpoint: ClickHouseEndpoint, client: Client) -> Project:
    return invoicing_project(tmp_path, FILES, clickhouse_endpoint, client)


def cpu(
    seconds: str, minute: datetime = FIRST_MINUTE, subject: str = "tenant-zoë", flavor: str | None = "small"
) -> Booked:
    return Booked(minute=minute, value=Decimal(seconds), subject=subject, dimensions={"flavor": flavor})


def october() -> list[Booked]:
    """Usage of a month, with its first and last minute, and minutes around it that are not its own."""
    return [
        cpu("1800000.000000001"),
        cpu("1799999.999999999", LAST_MINUTE),
        cpu("7200", flavor=None),
        cpu("99999999", FIRST_MINUTE - timedelta(minutes=1)),
        cpu("99999999", LAST_MINUTE + timedelta(minutes=1)),
        cpu("3600000", FIRST_MINUTE, "tenant-merged"),
        cpu("36000", LAST_MINUTE, "tenant-merged"),
        cpu("5000", FIRST_MINUTE, "tenant-gone"),
        Booked(meter="api.calls", aggregation="count", minute=FIRST_MINUTE, value=0, count=1500, subject="tenant-zoë"),
    ]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.iterdir())}


def run_again(project: Project, barrier) -> None:
    barrier.wait()
    report = batch.run(project, "2026-10", now=NOW)
    assert not report.failed


def test_a_sealed_month_is_invoiced_to_the_cent(project, client):
    seal(client, OCTOBER_30, *october())
    seal(client, NOVEMBER_1)
    seen = []
    report = batch.run(project, "2026-10", now=NOW, on_progress=lambda *step: seen.append(step), client=client)
    assert [(one.account, one.number, str(one.gross)) for one in report.issued] == [
        # 1,000 h x 0.01 + 2 h x 0.02 + 1,400 x 0.001 + 10 h of the merged tenant x 0.01 = 11.54, with 19 %
        ("acct-0001", "NIM-2026-000001", "13.73 EUR"),
        # 1,000 h x 0.01, exported
        ("acct-0002", "NIM-2026-000002", "10.00 EUR"),
    ]
    assert report.empty == ("acct-0003", "acct-0004")
    assert (report.unchanged, report.failed) == ((), ())
    assert [step[:2] for step in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    invoice = json.loads(report.issued[0].json.read_bytes())
    assert invoice["cut_off"]["booking"] == NOVEMBER_1
    assert [(used["subject"], used["quantity"], used["events"]) for used in invoice["lines"][0]["usage"]] == [
        ("tenant-zoë", "3600000", 2),
        ("tenant-merged", "36000", 1),
    ]
    assert "株式会社さくら" in report.issued[1].html.read_text("utf-8")


def test_a_second_run_changes_no_byte_and_no_file(project, client):
    seal(client, NOVEMBER_1, *october())
    first = batch.run(project, "2026-10", now=NOW, client=client)
    before = contents(project.invoices_folder)
    book(client, replace(cpu("3600"), booking=NOVEMBER_1 + 1))
    seal(client, NOVEMBER_1 + 1, cpu("3600"))  # late usage of the month, in a later booking
    again = batch.run(project, "2026-10", now=NOW + timedelta(days=9), client=client)
    assert again.issued == ()
    assert again.unchanged == first.issued
    assert contents(project.invoices_folder) == before


def test_missing_files_come_back_byte_for_byte_even_with_other_files_in_the_project(project, client):
    seal(client, NOVEMBER_1, *october())
    first = batch.run(project, "2026-10", now=NOW, client=client)
    before = {name: body for name, (body, _) in contents(project.invoices_folder).items()}
    first.issued[0].html.unlink()
    first.issued[1].json.unlink()
    plan = project.folder / "plans" / "standard.yaml"
    plan.write_text(plan.read_text("utf-8").replace("0.01", "0.09"), "utf-8")
    batch.run(project, "2026-10", now=NOW)
    assert {name: body for name, (body, _) in contents(project.invoices_folder).items()} == before


def test_a_document_that_somebody_changed_is_not_overwritten(project, client):
    seal(client, NOVEMBER_1, *october())
    changed = batch.run(project, "2026-10", now=NOW, client=client).issued[0].html
    changed.write_text("Paid.", "utf-8")
    again = batch.run(project, "2026-10", now=NOW, client=client)
    assert [(account, "expected the document as issued" in text) for account, text in again.failed] == [
        ("acct-0001", True)
    ]
    assert [one.account for one in again.unchanged] == ["acct-0002"]
    assert changed.read_text("utf-8") == "Paid."


def test_a_month_that_is_not_sealed_is_refused_with_the_booking_and_the_next_step(project, client):
    book(client, *(replace(row, booking=OCTOBER_30) for row in october()))
    with pytest.raises(InvoiceError, match="the books are not sealed at all; booking 20758000"):
        batch.run(project, "2026-10", now=NOW, client=client)
    seal(client, OCTOBER_30, *october())
    with pytest.raises(InvoiceError) as caught:
        batch.run(project, "2026-10", now=NOW, client=client)
    assert str(caught.value) == (
        "2026-10, plan standard: ends at 2026-10-31 23:00 UTC, but the books are sealed up to booking 20756000; "
        "booking 20758000 (1 November 2026, UTC) is not sealed yet. On that day or later, close the books with: "
        "tallyman close; then run the month again"
    )
    assert not project.invoices_folder.exists()


def test_a_preview_counts_what_has_arrived_and_stores_nothing(project, client):
    seal(client, OCTOBER_30, cpu("3600000"))
    book(client, replace(cpu("36000"), booking=OCTOBER_30 + 1000))
    (draft,) = batch.preview(project, "2026-10", ["acct-0001"], client=client)
    assert (draft.state, draft.number, draft.cut_off.sealed) == ("draft", None, False)
    assert str(draft.lines[0].net) == "10.10"
    assert not project.invoices_folder.exists()


def test_a_preview_of_a_month_that_is_final_says_so_and_promises_no_second_invoice(project, client):
    """Late usage is in the draft, and a run leaves what is final as it is."""
    seal(client, NOVEMBER_1, *october())
    assert batch.read_final(project, "2026-10") == {}, "also before the first run has made any table"
    (issued, *_) = batch.run(project, "2026-10", ["acct-0001"], now=NOW, client=client).issued
    seal(client, NOVEMBER_1 + 1, cpu("3600"))
    drafts = batch.preview(project, "2026-10", client=client)
    final = batch.read_final(project, "2026-10")
    assert final == {"acct-0001": (issued.number, issued.gross)} and batch.read_final(project, "2026-09") == {}
    others = sum(bool(draft.lines) for draft in drafts) - 1
    told = preview_summary("2026-10", drafts, final)
    assert "1 final already, which a run leaves as it is" in told and "Make them final with" in told
    ran = batch.run(project, "2026-10", now=NOW, client=client)
    assert (len(ran.issued), len(ran.unchanged)) == (others, 1)
    assert "Make them final with" not in preview_summary("2026-10", drafts, batch.read_final(project, "2026-10"))


def test_who_makes_invoices_is_told_of_a_repair_and_of_missing_batches_in_the_month(project, client, capsys):
    """A partition lost records of October, and a collector's batches 4 and 5 of October never came."""
    seal(client, NOVEMBER_1, *october())
    lost_ms = round(FIRST_MINUTE.timestamp() * 1000)
    client.execute(
        "INSERT INTO repairs (topic_id, partition, number, chunk_size, from_offset, to_offset, from_clock_ms,"
        " to_clock_ms, from_booking, booking, definitions, counts, reason, note, who, decided_at) VALUES",
        [("t", 3, 1, 65536, 100, 140, lost_ms, lost_ms + 60_000, OCTOBER_30, OCTOBER_30 + 1, 1, [0] * 7, "retention",
          "disk", "zoë", NOW)],
    )  # fmt: skip
    columns = ("collector, epoch, topic_id, partition, chunk, booking, definitions, first, last, first_watermark_us,"
               " last_watermark_us, first_clock_ms, clock_ms, subjects, types, covered")  # fmt: skip
    runs = [(1, 3, lost_ms - 60_000, lost_ms), (6, 9, lost_ms + 120_000, lost_ms + 180_000)]
    client.execute(
        f"INSERT INTO heard ({columns}) VALUES",
        [("host-7", "a", "t", 3, 0, OCTOBER_30, 1, first, last, begin * 1000, end * 1000, begin, end, ["tenant-zoë"],
          ["vm.cpu"], 100) for first, last, begin, end in runs],
    )  # fmt: skip
    doubts = Doubts()
    batch.preview(project, "2026-10", client=client, doubts=doubts)
    report = batch.run(project, "2026-10", now=NOW, client=client)
    assert doubts == report.doubts
    assert [each.skipped for each in report.doubts.repaired] == [40]
    assert [(gap.collector, gap.first, gap.last) for gap in report.doubts.gaps] == [("host-7", 4, 5)]
    print_doubts(report.doubts)
    told = capsys.readouterr().err
    assert "take care, usage may be missing: repaired: partition 3 lacks offsets 100 to 139" in told
    assert "take care, usage may be missing: missing: batches 4 to 5 of host-7" in told
    assert not batch.run(project, "2026-10", now=NOW, client=client).doubts.gaps, "nothing was read again"


def test_who_makes_invoices_is_told_when_nobody_knows_how_complete_usage_is(project, client, capsys):
    """Nothing says yet how far the log is booked."""
    seal(client, NOVEMBER_1, *october())
    report = batch.run(project, "2026-10", now=NOW, client=client)
    print_doubts(report.doubts)
    assert "take care, usage may be missing: up to when it is complete is not known" in capsys.readouterr().err


def test_who_makes_invoices_is_told_which_collectors_stopped_before_the_month_was_over(project, client, capsys):
    """One stopped on 28 October, another one when November had begun: that one has said all of October. A third one
    sends again after two days without Kafka, and has only come to 29 October with what it kept.
    """
    seal(client, NOVEMBER_1, *october())
    progress(client, 0, 0, 9, NOW, booking=NOVEMBER_1 + 1)
    stopped, ended = datetime(2026, 10, 28, 10, tzinfo=UTC), NOW - timedelta(hours=1)
    behind = datetime(2026, 10, 29, tzinfo=UTC)
    for name, told, heard in (("laptop", stopped, stopped), ("host-7", ended, ended), ("host-8", behind, NOW)):
        mark_ms, ms = (round(each.timestamp() * 1000) for each in (told, heard))
        client.execute(
            "INSERT INTO heard (collector, epoch, topic_id, partition, chunk, booking, definitions, first, last,"
            " first_watermark_us, last_watermark_us, first_clock_ms, clock_ms, subjects, types, covered) VALUES",
            [(name, "a", TOPIC, 0, 0, OCTOBER_30, 1, 0, 9, mark_ms * 1000, mark_ms * 1000, ms, ms, ["tenant-zoë"],
              ["vm.cpu"], 9)],
        )  # fmt: skip
    doubts = Doubts()
    batch.preview(project, "2026-10", client=client, doubts=doubts)
    report = batch.run(project, "2026-10", now=NOW, client=client)
    assert doubts == report.doubts
    assert not doubts.unknown
    assert [each.name for each in report.doubts.held_by] == ["laptop"]
    assert [*report.doubts.behind] == ["host-8"]
    print_doubts(report.doubts)
    assert capsys.readouterr().err == (
        "take care, usage may be missing: held back by laptop, silent since 2026-10-28 10:00 +00:00\n"
        "take care, usage may be missing: host-8 still sends what it kept, so far up to 2026-10-29 00:00 +00:00\n"
    )


def test_a_month_whose_rebuild_is_lost_is_not_invoiced(project, client):
    """ClickHouse was restored from before it: its range would be invoiced as nothing."""
    seal(client, OCTOBER_30, *october())
    seal(client, NOVEMBER_1)
    engine = open_control(project.control_url)
    generations.prepare(engine)
    span = int(FIRST_MINUTE.timestamp()), int((LAST_MINUTE + timedelta(minutes=1)).timestamp())
    switch = Switch(generation=0, definitions=2, meters=("compute.vcpu_seconds",), span=span, last=NOVEMBER_1)
    generations.mark_ready(engine, generations.next_generation(engine, switch, "ops").switch.generation)
    generations.put_in_force(engine, 1)
    with pytest.raises(RebuildError, match="0 of them are there"):
        batch.run(project, "2026-10", now=NOW, client=client)
    generations.take_back(engine, 1)
    engine.dispose()
    assert batch.run(project, "2026-10", now=NOW, client=client).issued


def test_an_account_that_cannot_be_rated_does_not_disturb_the_others(project, client):
    seal(client, NOVEMBER_1, *october(), cpu("-9000000"))
    report = batch.run(project, "2026-10", now=NOW, client=client)
    assert [(one.account, one.number) for one in report.issued] == [("acct-0002", "NIM-2026-000001")]
    ((account, message),) = report.failed
    assert account == "acct-0001"
    assert 'plan standard: charge "small": quantity: expected zero or more' in message


def test_two_runs_at_once_issue_each_invoice_once(project, client):
    seal(client, NOVEMBER_1, *october())
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    runs = [context.Process(target=run_again, args=(project, barrier)) for _ in range(2)]
    for process in runs:
        process.start()
    for process in runs:
        process.join(120)
    assert [process.exitcode for process in runs] == [0, 0]
    assert sorted(contents(project.invoices_folder)) == [
        f"NIM-2026-00000{n}.{kind}" for n in (1, 2) for kind in ("html", "json")
    ]


def test_only_the_accounts_that_are_asked_for_are_invoiced(project, client):
    seal(client, NOVEMBER_1, *october())
    report = batch.run(project, "2026-10", ["acct-0002"], now=NOW, client=client)
    assert [one.account for one in report.issued] == ["acct-0002"]
    with pytest.raises(ConfigError, match=r'unknown account "acct-002"; did you mean "acct-0002"\?'):
        batch.run(project, "2026-10", ["acct-002"], now=NOW, client=client)


def test_an_invoice_is_dated_in_the_sellers_zone(project, client):
    seal(client, NOVEMBER_1, *october())
    report = batch.run(project, "2026-10", now=datetime(2026, 12, 31, 23, 30, tzinfo=UTC), client=client)
    assert report.issued[0].number == "NIM-2027-000001"
    assert json.loads(report.issued[0].json.read_bytes())["issued_on"] == "2027-01-01"


@pytest.mark.parametrize(
    ("end", "booking"),
    [
        ("2026-10-31T23:00Z", 20_758_000),
        ("2026-11-01T00:00Z", 20_758_000),
        ("2026-11-01T00:01Z", 20_759_000),
        ("2026-10-31T13:30Z", 20_758_000),
    ],
)
def test_the_booking_of_the_day_that_follows_must_be_sealed(end, booking):
    needed = needed_booking(datetime.fromisoformat(end))
    assert needed == booking
    assert decided_to(needed) >= datetime.fromisoformat(end), "levels are carried over all of the period"


def test_a_broken_project_is_told_all_at_once(project):
    (project.folder / "entity.yaml").unlink()
    accounts = project.folder / "accounts" / "all.yaml"
    accounts.write_text(accounts.read_text("utf-8").replace("de_DE", "xx_XX"), "utf-8")
    problems = check_plans_and_accounts(project)
    assert len(problems) == 2
    assert 'accounts[0].locale: expected one such as de_DE, got "xx_XX"' in problems[0]
    assert "entity.yaml: no such file" in problems[1]
