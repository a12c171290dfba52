"""Webhooks reach public addresses only, whatever name leads to them."""

from __future__ import annotations

import socket
from typing import Any

import httpcore
import pytest

from rules.guard import AddressError, GuardedNetwork, find_objection


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.0.9", "169.254.169.254",
        "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1",
        "198.51.100.7", "203.0.113.7", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1",
        "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::1", "2002:c0a8:101::", "3fff::1", "5f00::1",
        "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1",
    ],
)  # fmt: skip
def test_an_address_inside_is_refused(address: str) -> None:
    assert find_objection(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "93.184.216.34", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "64:ff9b::1.1.1.1", "2002:101:101::1",
     "::ffff:1.1.1.1"],
)  # fmt: skip
def test_a_public_address_is_reached(address: str) -> None:
    assert find_objection(address) is None


def names(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Let every name lead to these addresses; return where connections went."""
    went: list[str] = []

    def resolve(host: str, port: int, **_: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    def connect(_: object, host: str, *rest: object) -> httpcore.NetworkStream:
        went.append(host)
        return httpcore.NetworkStream()

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    return went


def test_a_name_that_leads_inside_is_refused_when_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    went = names(monkeypatch, "10.0.0.7")
    with pytest.raises(AddressError, match=r"alarms\.example: expected a public address, got 10\.0\.0\.7 \(private\)"):
        GuardedNetwork(allow_private=False).connect_tcp("alarms.example", 443)
    assert went == []


def test_the_address_that_was_checked_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the name: it could lead elsewhere the second time."""
    went = names(monkeypatch, "169.254.169.254", "93.184.216.34")
    GuardedNetwork(allow_private=False).connect_tcp("alarms.example", 443)
    assert went == ["93.184.216.34"]


def test_a_private_receiver_is_reached_where_that_was_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    went = names(monkeypatch, "10.0.0.7")
    GuardedNetwork(allow_private=True).connect_tcp("alarms.example", 443)
    assert went == ["10.0.0.7"]
