"""Read who sells and who buys: `entity.yaml` and `accounts/*.yaml` of a project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from invoices.account import Account, Entity
from rules.plan import Plan
from tallyman.errors import ConfigError
from tallyman.files import Marked, load_marked_folder, load_yaml, nearest, refuse_repeats, show_path


@dataclass(frozen=True, slots=True)
class AccountFile:
    """What one file of `accounts/` holds."""

    accounts: tuple[Account, ...]


def read_entity(path: Path) -> Entity:
    """Read the selling entity.

    Raises:
        ConfigError: With file and line.
    """
    if not path.exists():
        missing = "no such file; it says who writes the invoices. tallyman init makes an example of it"
        raise ConfigError(f"{show_path(path)}: {missing}; or name another one in invoices.entity")
    return load_yaml(path, Entity)


def read_accounts(folder: Path, plans: Mapping[str, Plan]) -> dict[str, Account]:
    """Read all accounts of a folder, by their ids.

    Args:
        plans: The plans there are, by their ids.

    Raises:
        ConfigError: Every problem with file and line; also a tenant that two accounts would pay for.
    """
    files = load_marked_folder(folder, AccountFile)
    problems = [
        f'{file.place(f"accounts[{i}].plan")}: unknown plan "{account.plan}"{nearest(account.plan, plans)}'
        for file in files
        for i, account in enumerate(file.value.accounts)
        if account.plan not in plans
    ]
    problems += _find_paid_twice(files, plans)
    if problems:
        raise ConfigError("\n".join(problems))
    found = [
        (account.account, file.place(f"accounts[{i}].account"))
        for file in files
        for i, account in enumerate(file.value.accounts)
    ]
    refuse_repeats("account", found)
    return {account.account: account for file in files for account in file.value.accounts}


def _find_paid_twice(files: list[Marked[AccountFile]], plans: Mapping[str, Plan]) -> list[str]:
    """Return what two accounts would pay for at one instant: the days of two plans need not begin at the same one."""
    spans = sorted(
        (span.subject, *span.instants(plans[account.plan].zone), file.place(f"accounts[{i}].subjects[{j}]"),
         plans[account.plan].zone)
        for file in files
        for i, account in enumerate(file.value.accounts)
        for j, span in enumerate(account.subjects)
        if account.plan in plans
    )  # fmt: skip
    problems = []
    paid: dict[str, tuple[datetime, str, str]] = {}
    for subject, start, end, place, zone in spans:
        until, first, other = paid.get(subject, (start, "", zone))
        if start < until:
            why = "" if zone == other else f" a day sooner: the days of {other} and {zone} do not begin together"
            problems.append(f'{place}: "{subject}" is paid for already, at {first}; end that one with `to`{why}')
        if subject not in paid or end > until:
            paid[subject] = (end, place, zone)
    return problems
