"""Check plans, accounts and the selling entity of a project without starting anything; `tallyman check` calls it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from invoices.load import AccountFile, read_accounts, read_entity
from invoices.render import find_locale
from rules.plan import Plan
from rules.plan_load import read_plans
from tallyman.errors import ConfigError, InvoiceError
from tallyman.files import load_marked_folder
from tallyman.project import Project


def check_plans_and_accounts(project: Project) -> list[str]:
    """Return all problems, one line each with file and line; nothing when the project can be invoiced."""
    problems: list[str] = []
    plans: dict[str, Plan] | None = None
    try:
        plans = dict(read_plans(project.folder / "plans", project.meters))
    except ConfigError as error:
        problems += str(error).splitlines()
    accounts = {}
    if plans is not None:  # with broken plans every account would name an unknown one
        try:
            accounts = read_accounts(project.folder / "accounts", plans)
        except ConfigError as error:
            problems += str(error).splitlines()
    if accounts:
        problems += _check_locales(project.folder / "accounts")
    entity = project.folder / project.config.invoices.entity
    if accounts or entity.exists():
        try:
            read_entity(entity)
        except ConfigError as error:
            problems += str(error).splitlines()
    return problems


def _check_locales(folder: Path) -> Iterator[str]:
    for file in load_marked_folder(folder, AccountFile):
        for i, account in enumerate(file.value.accounts):
            try:
                find_locale(account.locale)
            except InvoiceError as error:
                problem = str(error).removeprefix("locale: ")
                yield f"{file.place(f'accounts[{i}].locale')}: {problem}"
