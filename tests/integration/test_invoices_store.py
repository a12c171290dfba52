"""Numbers have no gap and no duplicate, final invoices never change, whoever writes and however often."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from datetime import date

import pytest
import sqlalchemy as sa

from invoices import store
from invoices.model import CutOff, encode_invoice
from tallyman import generations
from tallyman.control import open_control
from tallyman.errors import InvoiceError
from tallyman.rebuilds import Switch
from tests.unit.invoices.sample import NIMBUS, ZOE, build

PATTERN = NIMBUS.numbers
NOVEMBER = date(2026, 11, 2)


def draft_of(account: int):
    return build(account=replace(ZOE, account=f"acct-{account:04d}"))


def finalise_some(url: str, accounts: list[int], barrier, die_at: int | None = None) -> None:
    """Finalise in another process; at `die_at` it is killed inside of the transaction, the number already taken."""
    engine = open_control(url)
    store.prepare(engine)
    if die_at is not None:
        encode = store.encode_invoice

        def die(invoice):
            if invoice.account == f"acct-{die_at:04d}":
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(invoice)

        store.encode_invoice = die
    barrier.wait()
    for account in accounts:
        store.finalise(engine, draft_of(account), PATTERN, NOVEMBER)


@pytest.fixture
def engine(control_url):
    engine = open_control(control_url)
    store.prepare(engine)
    yield engine
    engine.dispose()


def test_the_first_invoice_of_a_year_has_the_first_number(engine):
    first = store.finalise(engine, draft_of(1), PATTERN, NOVEMBER)
    second = store.finalise(engine, draft_of(2), PATTERN, NOVEMBER)
    next_year = store.finalise(engine, draft_of(3), PATTERN, date(2027, 1, 1))
    numbers = [stored.invoice.number for stored in (first, second, next_year)]
    assert numbers == ["NIM-2026-000001", "NIM-2026-000002", "NIM-2027-000001"]
    assert first.is_new
    assert first.body == encode_invoice(first.invoice)


def test_usage_that_was_read_before_a_rebuild_was_switched_to_does_not_become_final(engine):
    """The list was read once at the beginning, and numbers were given minutes later, whatever counted by then."""
    generations.prepare(engine)
    october = Switch(generation=0, definitions=2, meters=("compute.hours",), span=(0, 900), last=20_760_000)
    number = generations.next_generation(engine, october, "zoë").switch.generation
    generations.mark_ready(engine, number)
    read_by = generations.read_list(engine).switched
    first = store.finalise(engine, draft_of(1), PATTERN, NOVEMBER, read_by)
    generations.put_in_force(engine, number)
    with pytest.raises(InvoiceError, match="account acct-0002: a rebuild was put in force or taken back while this"):
        store.finalise(engine, draft_of(2), PATTERN, NOVEMBER, read_by)
    assert store.finalise(engine, draft_of(1), PATTERN, NOVEMBER, read_by).body == first.body
    again = store.finalise(engine, draft_of(2), PATTERN, NOVEMBER, generations.read_list(engine).switched)
    assert again.invoice.number == "NIM-2026-000002"


def test_a_second_run_gets_the_first_runs_bytes_and_uses_no_number(engine):
    first = store.finalise(engine, draft_of(1), PATTERN, NOVEMBER)
    changed = build(account=replace(ZOE, account="acct-0001", name="Somebody Else"))
    again = store.finalise(engine, changed, PATTERN, date(2026, 12, 24))
    assert (again.body, again.is_new) == (first.body, False)
    assert store.finalise(engine, draft_of(2), PATTERN, NOVEMBER).invoice.number == "NIM-2026-000002"


def test_a_draft_that_cannot_become_final_uses_no_number(engine):
    with pytest.raises(InvoiceError, match="a preview cannot become final"):
        store.finalise(engine, build(cut_off=CutOff(booking=1, sealed=False)), PATTERN, NOVEMBER)
    assert store.finalise(engine, draft_of(1), PATTERN, NOVEMBER).invoice.number == "NIM-2026-000001"


def test_processes_at_once_give_no_gap_and_no_duplicate(control_url, engine):
    """Three processes, each with all accounts in its own order, so that they fight for every one of them."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    accounts = list(range(60))
    orders = [accounts, accounts[::-1], accounts[30:] + accounts[:30]]
    processes = [context.Process(target=finalise_some, args=(control_url, order, barrier)) for order in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert store.list_numbers(engine, "nimbus") == [f"NIM-2026-{n:06d}" for n in range(1, 61)]


def test_a_process_that_is_killed_with_a_number_in_its_hand_leaves_no_gap(control_url, engine):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(1)
    process = context.Process(target=finalise_some, args=(control_url, list(range(10)), barrier, 7))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    for account in range(10):
        store.finalise(engine, draft_of(account), PATTERN, NOVEMBER)
    assert store.list_numbers(engine, "nimbus") == [f"NIM-2026-{n:06d}" for n in range(1, 11)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE invoices SET gross = '0.00'",
        "DELETE FROM invoices",
        "UPDATE invoice_documents SET digest = ''",
        "DELETE FROM invoice_documents",
    ],
)
def test_the_store_itself_refuses_to_change_what_is_final(engine, statement):
    stored = store.finalise(engine, draft_of(1), PATTERN, NOVEMBER)
    store.keep_document(engine, stored.invoice, "html", lambda: b"<p>as issued</p>")
    with (
        pytest.raises(sa.exc.IntegrityError, match="a final invoice never changes; write a credit note"),
        engine.begin() as connection,
    ):
        connection.exec_driver_sql(statement)


def test_a_document_stays_as_it_was_rendered_first(engine):
    stored = store.finalise(engine, draft_of(1), PATTERN, NOVEMBER)
    assert store.keep_document(engine, stored.invoice, "html", lambda: b"template 1") == b"template 1"
    assert store.keep_document(engine, stored.invoice, "html", lambda: b"template 2") == b"template 1"


def test_an_invoice_that_was_changed_behind_our_back_is_noticed(engine):
    body = store.finalise(engine, draft_of(1), PATTERN, NOVEMBER).body
    allow = {"sqlite": "DROP TRIGGER invoices_no_update", "postgresql": "ALTER TABLE invoices DISABLE TRIGGER USER"}
    with engine.begin() as connection:
        connection.exec_driver_sql(allow[engine.dialect.name])
        forged = {"body": body.replace(b"44.66", b"4.66")}
        assert connection.execute(sa.text("UPDATE invoices SET body = :body"), forged).rowcount == 1
    with pytest.raises(InvoiceError, match="invoice NIM-2026-000001: expected the bytes of SHA-256"):
        store.find_invoice(engine, "nimbus", "acct-0001", "2026-10")


def test_the_tables_are_made_once(engine):
    store.prepare(engine)
    assert store.list_numbers(engine, "nimbus") == []
