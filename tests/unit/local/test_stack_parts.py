"""The parts of the stack, looked at without running them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tallyman.local.clickhouse_child import clickhouse_child
from tallyman.local.folder import ClickHouseEndpoint
from tallyman.local.stack import default_services
from tests.stack import not_here

ENDPOINT = ClickHouseEndpoint(host="127.0.0.1", port=20_900, password="Åström & <Söhne>")


def test_a_clickhouse_on_the_path_is_used_with_a_configuration_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "Müller & Söhne"
    child = clickhouse_child(folder, ENDPOINT, which=lambda name: "/opt/clickhouse")
    assert child.argv == ["/opt/clickhouse", "server", f"--config-file={folder / 'server' / 'config.xml'}"]
    config = ElementTree.parse(folder / "server" / "config.xml")
    assert config.findtext("tcp_port") == "20900"
    assert config.findtext("listen_host") == "127.0.0.1"
    assert config.findtext("path") == f"{folder}/server/data/"
    assert config.findtext("users/default/password") == ENDPOINT.password


def test_a_file_with_the_password_is_the_owners_alone(tmp_path: Path) -> None:
    clickhouse_child(tmp_path, ENDPOINT, which=lambda name: "/opt/clickhouse")
    assert (tmp_path / "server" / "config.xml").stat().st_mode & 0o077 == 0


def test_without_one_the_engine_is_embedded(tmp_path: Path) -> None:
    child = clickhouse_child(tmp_path, ENDPOINT, which=lambda name: None)
    assert list(child.argv[1:3]) == ["-m", "tallyman.local.clickhouse"]


def test_a_password_is_never_on_a_command_line(tmp_path: Path) -> None:
    """Every user of the machine can read those."""
    child = clickhouse_child(tmp_path, ENDPOINT, which=lambda name: None)
    assert not any(ENDPOINT.password in word for word in child.argv)
    assert ENDPOINT.password in child.env.values()


def test_our_services_are_told_their_project_and_their_data() -> None:
    services = default_services(Path("/srv/wolke"), Path("/var/lib/tallyman"))
    assert [service.name for service in services] == ["agent", "pipeline", "rules"]
    assert list(services[0].argv[1:]) == [
        *("-m", "tallyman", "agent", "--project", "/srv/wolke", "--data", "/var/lib/tallyman"),
    ]


def test_a_missing_part_skips_on_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Java"):
        not_here("Kafka cannot run here: no Java")


def test_a_missing_part_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no Java"):
        not_here("Kafka cannot run here: no Java")
