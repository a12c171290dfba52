"""A small cloud that sends invoices: its entity, and a project of some files on a test's database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from clickhouse_driver import Client

from invoices.check import check_plans_and_accounts
from tallyman.config import ClickHouseConfig
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.project import Project, load_project, with_config

ENTITY = """\
entity: nimbus
name: Nimbus Compute GmbH
address: [Torstraße 1, 10119 Berlin]
country: DE
vat_id: DE136695976
zone: Europe/Berlin
numbers: "NIM-{year}-{number:06d}"
"""


def invoicing_project(folder: Path, files: Mapping[str, str], at: ClickHouseEndpoint, client: Client) -> Project:
    """Write a project's files, which are right, beside the entity's, and load it as one that reads `client`'s database.

    Args:
        folder: The project gets one in it, and its data another.
    """
    place = folder / "cloud"
    for name, text in {"entity.yaml": ENTITY, **files}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text, "utf-8")
    project = load_project(place, folder / "data")
    assert check_plans_and_accounts(project) == []
    database = client.execute("SELECT currentDatabase()")[0][0]
    clickhouse = ClickHouseConfig(host=at.host, port=at.port, database=database)
    return with_config(project, replace(project.config, clickhouse=clickhouse))
