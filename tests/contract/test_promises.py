"""Each promise of the design, and the tests that fail if it breaks. Deleting or renaming one of them fails here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PROMISES: dict[str, tuple[str, ...]] = {
    "P1 acknowledged means durable": (
        "integration/test_store_refusals.py"
        "::test_a_disk_with_less_room_than_the_reserve_is_full_before_a_write_meets_its_end",
        "unit/collectors/test_spool.py::test_kill_9_loses_nothing_that_was_reported_accepted",
        "unit/collectors/test_spool.py::test_a_tail_torn_at_any_byte_is_cut_and_its_number_is_not_used_again",
        "unit/collectors/test_spool.py::test_a_full_disk_refuses_loses_nothing_and_goes_on_when_room_appears",
        "unit/collectors/test_spool.py::test_only_what_kafka_has_is_forgotten",
        "integration/test_repair.py::test_a_broker_whose_clock_was_ahead_loses_and_doubles_nothing",
        "integration/test_agent_kafka.py"
        "::test_a_broker_that_dies_in_mid_flight_gets_each_batch_at_least_once_in_order_with_the_same_bytes",
    ),
    "P2 exactly once": (
        "chaos/test_whole_path.py::test_whatever_is_killed_full_stopped_or_set_nothing_is_lost_doubled_or_changed",
        "model/test_real.py::test_kills_zombies_failed_inserts_and_clock_steps_change_no_figure",
        "integration/test_books.py::test_a_clickhouse_that_is_killed_while_booking_loses_and_doubles_nothing",
        "unit/pipeline/test_write.py::test_progress_is_never_written_before_what_it_covers",
        "unit/pipeline/test_write.py::test_a_key_stays_dirty_until_its_progress_is_acknowledged",
        "unit/pipeline/test_job.py::test_the_runner_has_one_worker_whatever_the_command_line_says",
    ),
    "P3 the first accepted copy wins": (
        "unit/pipeline/test_dedupe.py::test_the_first_copy_counts_and_a_later_one_does_not",
        "unit/pipeline/test_dedupe.py"
        "::test_a_later_copy_with_other_content_is_a_conflict_with_both_offsets_and_is_not_added",
        "unit/pipeline/test_dedupe.py::test_ids_below_the_restart_are_asked_of_the_store_and_those_above_it_are_not",
        "unit/pipeline/test_dedupe.py::test_a_replay_gives_the_same_answer",
        "unit/pipeline/test_id_filter.py::test_an_id_that_was_added_is_never_called_new",
        "unit/pipeline/test_id_filter.py::test_a_filter_that_is_full_covers_less_and_calls_no_id_new_that_was_added",
        "integration/test_ids.py::test_as_many_ids_as_a_large_fetch_has_are_asked_for_at_once",
    ),
    "P4 nothing bad is dropped in silence": (
        "integration/test_bad_input.py::test_each_way_to_be_wrong_is_one_dead_letter_with_its_reason_body_and_place",
        "integration/test_bad_input.py::test_nothing_else_is_dead_and_every_good_event_counts",
        "integration/test_bad_input.py::test_the_counts_of_every_chunk_reconcile",
        "unit/pipeline/test_peers_events.py::test_what_nobody_can_read_is_a_dead_letter_and_never_counts",
        "unit/pipeline/test_json_events.py::test_the_quick_way_and_the_contract_agree_on_every_event",
        "unit/pipeline/test_dedupe.py::test_an_event_that_two_meters_want_is_dead_for_both_if_it_is_dead_for_one",
        "integration/test_dead_retry.py"
        "::test_a_preview_does_nothing_and_a_retry_counts_once_however_often_it_is_run",
        "integration/test_dead_retry.py::test_what_no_meter_wanted_comes_in_once_a_meter_wants_it",
    ),
    "P5 money is decimal from the wire to the paper": (
        "unit/pipeline/test_values.py::test_a_column_holds_what_each_value_is_alone",
        "unit/pipeline/test_aggregate.py::test_a_sum_that_grows_over_many_flushes_never_wraps",
        "integration/test_usage_read.py::test_a_sum_over_more_than_128_bits_does_not_wrap",
        "unit/test_money.py::test_a_float_is_no_amount",
        "unit/rules/test_price.py::test_a_float_is_no_quantity",
        "unit/invoices/test_build.py::test_a_float_cannot_be_written",
        "unit/invoices/test_render.py::test_a_float_never_reaches_the_paper",
    ),
    "P6 a row is a pure function of a prefix of the log": (
        "model/test_real.py::test_the_model_itself_holds_through_80_schedules",
        "model/test_real.py::test_kills_zombies_failed_inserts_and_clock_steps_change_no_figure",
        "model/test_pinned.py::test_the_pinned_schedule_breaks_without",
        "integration/test_bad_input.py::test_a_replay_changes_nothing",
        "integration/test_books.py::test_a_topic_made_anew_is_refused_with_a_sentence",
        "unit/pipeline/test_decode.py::test_a_log_that_differs_from_what_was_booked_is_refused",
        "unit/pipeline/test_decode.py::test_a_gap_is_refused_with_a_sentence",
        "integration/test_usage_read.py::test_the_longest_prefix_of_a_chunk_wins",
    ),
    "P7 what is booked stays booked": (
        "integration/test_books.py::test_a_close_opens_a_booking_and_the_one_before_is_sealed",
        "integration/test_books.py"
        "::test_new_definitions_come_into_force_at_the_close_and_earlier_usage_stays_as_it_was_booked",
        "integration/test_usage_read.py::test_a_zombie_below_the_seal_stays_invisible",
        "unit/pipeline/test_book.py::test_a_booking_never_goes_back",
        "integration/test_corrections.py::test_a_booking_with_more_voids_than_events_is_sealed_like_any_other",
    ),
    "P8 an invoice can be recomputed": (
        "integration/test_invoices_batch.py::test_a_second_run_changes_no_byte_and_no_file",
        "integration/test_invoices_batch.py"
        "::test_missing_files_come_back_byte_for_byte_even_with_other_files_in_the_project",
        "integration/test_invoices_batch.py::test_two_runs_at_once_issue_each_invoice_once",
        "unit/invoices/test_build.py::test_equal_invoices_have_equal_bytes_and_come_back_as_they_were",
    ),
    "P9 a transition and its deliveries are committed together": (
        "unit/rules/test_alarm_store.py::test_a_crash_at_any_step_loses_no_transition_and_doubles_none",
        "unit/rules/test_alarm_store.py::test_a_message_has_the_same_id_for_every_endpoint_and_attempt",
        "unit/rules/test_sender.py::test_what_waited_while_the_engine_was_down_is_delivered_at_its_start",
        "integration/test_rules_kill.py::test_an_engine_that_is_killed_loses_no_transition",
    ),
    "P10 a tenant sees and writes only its own": (
        "unit/rules/test_sender.py::test_secrets_are_in_no_log_and_no_stored_answer",
        "unit/test_log.py::test_secrets_are_masked_by_name_and_cut_out_of_addresses",
        "unit/test_config.py::test_a_password_is_not_shown",
        "unit/invoices/test_render.py::test_a_hostile_name_is_only_text",
        "unit/invoices/test_render.py::test_a_name_that_is_missing_in_the_template_is_an_error_and_not_a_blank",
        "integration/test_usage_read.py::test_a_filter_takes_texts_as_they_are",
        "integration/test_usage_read.py::test_subjects_are_asked_for_byte_for_byte",
    ),
}


def test_all_ten_promises_are_held_by_a_test() -> None:
    assert [promise.split()[0] for promise in PROMISES] == [f"P{number}" for number in range(1, 11)]
    assert all(PROMISES.values())


@pytest.mark.parametrize("promise", PROMISES)
def test_the_tests_that_hold_a_promise_exist(promise: str) -> None:
    missing = [each for each in PROMISES[promise] if not _exists(*each.split("::"))]
    assert not missing, f"{promise}: held by nobody any more: {missing}; name the tests that do now"


def _exists(path: str, name: str) -> bool:
    file = TESTS / path
    if not file.is_file():
        return False
    found = [
        node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
    ]
    return any(node.name == name for node in found)
