"""Which addresses a webhook may reach, checked on the very address that is connected to.

A name is resolved here and the checked address is connected to, so that a second answer of the DNS cannot lead
elsewhere. The list is what other webhook senders block, from IANA's special-purpose registries.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import httpcore

from tallyman.errors import DeliveryError

_BLOCKED = {
    ip_network(network): meaning
    for network, meaning in {
        "0.0.0.0/8": "this network",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "carrier-grade NAT",
        "127.0.0.0/8": "loopback",
        "169.254.0.0/16": "link-local",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "protocol assignments",
        "192.0.2.0/24": "documentation",
        "192.88.99.0/24": "6to4 relay",
        "192.168.0.0/16": "private",
        "198.18.0.0/15": "benchmarking",
        "198.51.100.0/24": "documentation",
        "203.0.113.0/24": "documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",
        "::/128": "unspecified",
        "::1/128": "loopback",
        "::/96": "IPv4-compatible",
        "64:ff9b:1::/48": "local NAT64",
        "100::/64": "discard",
        "2001::/23": "protocol assignments",
        "2001:db8::/32": "documentation",
        "3fff::/20": "documentation",
        "5f00::/16": "segment routing",
        "fc00::/7": "unique local",
        "fe80::/10": "link-local",
        "fec0::/10": "site-local",
        "ff00::/8": "multicast",
    }.items()
}
_NAT64 = ip_network("64:ff9b::/96")
_SIX_TO_FOUR = ip_network("2002::/16")
_SOCKET_OPTIONS = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]


class AddressError(DeliveryError):
    """An endpoint's name leads to an address that webhooks must not reach."""


def find_objection(address: str) -> str | None:
    """Return why a webhook must not go to an address, or None.

    >>> find_objection("::ffff:169.254.169.254")
    'link-local'
    """
    parsed = _embedded(ip_address(address.split("%", 1)[0]))
    return next((meaning for network, meaning in _BLOCKED.items() if parsed in network), None)


def _embedded(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(address.packed[12:])
        if address in _SIX_TO_FOUR:
            return IPv4Address(address.packed[2:6])
    return address


class GuardedNetwork(httpcore.NetworkBackend):
    """Connects to permitted addresses only, and gives up at `deadline`, however slowly the other side drips."""

    def __init__(self, *, allow_private: bool) -> None:
        self.allow_private = allow_private
        self.deadline = float("inf")  # monotonic; set before each request
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host}: no address") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        objections = {} if self.allow_private else {each: find_objection(each) for each in addresses}
        permitted = [address for address in addresses if not objections.get(address)]
        if not permitted:
            why = ", ".join(f"{address} ({meaning})" for address, meaning in objections.items())
            raise AddressError(
                f"{host}: expected a public address, got {why}; "
                "for a receiver in a private network set allow_private: true at its endpoint"
            )
        failure: Exception | None = None
        for address in permitted:
            try:
                stream = self._network.connect_tcp(address, port, self.left(timeout), None, _SOCKET_OPTIONS)
                return _Hurried(stream, self)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        assert failure is not None
        raise failure

    def left(self, timeout: float | None) -> float:
        """Return how many seconds an operation may still take.

        Raises:
            ReadTimeout: None.
        """
        left = min(timeout or 60.0, self.deadline - time.monotonic())
        if left <= 0:
            raise httpcore.ReadTimeout("the whole request took too long")
        return left


class _Hurried(httpcore.NetworkStream):
    """A stream whose every operation ends at the network's deadline."""

    def __init__(self, stream: httpcore.NetworkStream, network: GuardedNetwork) -> None:
        self._stream = stream
        self._network = network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._network.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._network.left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        secured = self._stream.start_tls(ssl_context, server_hostname, self._network.left(timeout))
        return _Hurried(secured, self._network)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
