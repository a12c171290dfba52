"""Quantities and times as columns, exactly: a quick way for the usual shape, the contract's own way for every other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tallyman.errors import EventError
from tallyman.event import FIRST_US, LAST_US, parse_time
from tallyman.meter import QUANTITY_BOUND, parse_quantity

Failures = list[tuple[int, EventError]]
_PLAIN_TIME = r"^20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z$"
_LEAST_TIME = b"2000-00-00T00:00:00.000000"
_JSON_NUMBER = r"^-?(0|[1-9][0-9]{0,17})(\.[0-9]+)?$"
# What is longer cannot be held; of texts of some hundred digits Arrow makes another number without an error.
_LONGEST_PLAIN = 64


def scale_values(values: Sequence[Any], scale: int) -> tuple[npt.NDArray[Any], Failures]:
    """Return values times 10**scale, as int64 or Python integers, and which of them are no quantity (theirs are 0)."""
    kinds = set(map(type, values))
    if kinds == {int}:
        array = _scale_integers(values, scale)
        if array is not None:
            return array, []
    if kinds == {str}:
        array = _scale_texts(values, scale)
        if array is not None:
            return array, []
    return _each(values, lambda value: parse_quantity(value, scale))


def parse_times(texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], Failures]:
    """Return microseconds since 1970 for RFC 3339 texts, and which of them are no time (theirs are 0)."""
    times, good = time_column(pa.array(texts, pa.string()))
    failures: Failures = []
    for row in np.flatnonzero(~good).tolist():  # unusual, or no time at all
        try:
            times[row] = parse_time(texts[row])
        except EventError as error:
            failures.append((row, error))
    return times, failures


def time_column(texts: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return microseconds since 1970, and for which texts that is certain; the others' are 0."""
    good = np.ones(len(texts), bool)
    if not _are_times_of_one_length(texts):
        good = _matches(texts, _PLAIN_TIME)
        texts = _only(texts, good, "2000-01-01T00:00:00Z")
    try:
        times = np.array(texts.cast(pa.timestamp("us", "UTC")).cast(pa.int64()))
    except pa.ArrowInvalid:  # a 30 February; find out which
        times, failures = _each(texts.to_pylist(), parse_time)
        times = times.astype(np.int64)
        good[[row for row, _ in failures]] = False
    good &= (times >= FIRST_US) & (times < LAST_US)
    times[~good] = 0
    return times, good


def _are_times_of_one_length(texts: pa.Array) -> bool:
    """Do what the pattern for times does, several times as fast, where all are as long as the first."""
    lengths = lengths_of(texts)
    size = int(lengths[0]) if len(lengths) else 0
    if size not in (20, 22, 23, 24, 25, 26, 27) or (lengths != size).any():
        return False
    least = np.frombuffer(_LEAST_TIME[: size - 1] + b"Z", np.uint8)
    most = np.frombuffer(_LEAST_TIME.replace(b"0", b"9")[: size - 1] + b"Z", np.uint8) - least
    most[:2] = 0  # the century
    letters = _letters(texts).reshape(-1, size)
    return bool((letters - least <= most).all())  # what is below `least` wraps around


def are_numbers(texts: pa.Array) -> npt.NDArray[np.bool_]:
    """Tell which texts are numbers as JSON writes them, and no larger than an int64 for certain."""
    return _matches(texts, _JSON_NUMBER)


def _letters(texts: pa.Array) -> npt.NDArray[np.uint8]:
    """Return the bytes of all texts, one behind the other."""
    _, offsets, data = texts.buffers()
    edges = np.frombuffer(offsets, np.int32)[[texts.offset, texts.offset + len(texts)]]
    return np.frombuffer(data or b"", np.uint8)[edges[0] : edges[1]]


def lengths_of(texts: pa.Array) -> npt.NDArray[np.int32]:
    """Return how many bytes each text has."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return np.diff(offsets)


def _matches(texts: pa.Array, pattern: str) -> npt.NDArray[np.bool_]:
    return np.array(pc.match_substring_regex(texts, pattern).cast(pa.uint8())).view(np.bool_)


def _only(texts: pa.Array, good: npt.NDArray[np.bool_], other: str) -> pa.Array:
    """Put another text where one is not good."""
    return texts if good.all() else pc.if_else(pa.array(good), texts, other)


def _each(values: Sequence[Any], parse: Callable[[Any], int]) -> tuple[npt.NDArray[Any], Failures]:
    result: list[int] = []
    failures: Failures = []
    for row, value in enumerate(values):
        try:
            result.append(parse(value))
        except EventError as error:
            failures.append((row, error))
            result.append(0)
    return narrow(result), failures


def narrow(values: list[int]) -> npt.NDArray[Any]:
    """Return integers as int64 if all fit, else as Python integers."""
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return np.array(values, object)


def _scale_integers(values: Sequence[int], scale: int) -> npt.NDArray[Any] | None:
    array = narrow(list(values))
    factor = 10**scale
    if array.dtype == object:
        return None
    largest = max(abs(int(array.max())), abs(int(array.min())))
    scaled: npt.NDArray[Any] = (array if largest * factor < 1 << 63 else array.astype(object)) * factor
    return scaled if largest * factor < QUANTITY_BOUND else None


def _scale_texts(values: Sequence[str], scale: int) -> npt.NDArray[Any] | None:
    scaled, good = scale_column(pa.array(values, pa.string()), scale)
    return scaled if bool(good.all()) else None


def scale_column(texts: pa.Array, scale: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return decimal texts times 10**scale, and for which texts that is certain; the others' are 0."""
    decimals, good = _cast_plain(texts, scale), np.ones(len(texts), bool)
    if decimals is None:
        fraction = rf"(\.[0-9]{{1,{scale}}})?" if scale else ""
        good = _matches(texts, rf"^-?[0-9]{{1,{30 - scale}}}{fraction}$")
        decimals = _only(texts, good, "0").cast(pa.decimal128(38, scale))
    words = np.frombuffer(decimals.buffers()[1], np.int64)[: 2 * len(texts)].reshape(-1, 2)
    low, high = words[:, 0], words[:, 1]
    if (high == low >> 63).all():
        return low, good
    wide = [(int(h) << 64) + int(lo) for h, lo in zip(high, low.view(np.uint64), strict=True)]
    good &= np.fromiter((-QUANTITY_BOUND < value < QUANTITY_BOUND for value in wide), bool, len(wide))
    return np.where(good, np.array(wide, object), 0), good


def _cast_plain(texts: pa.Array, scale: int) -> pa.Array | None:
    """Return decimals, if Arrow takes each text for one: of digits, points and minus it makes what Python does."""
    if ((_letters(texts) - np.uint8(ord("-"))) > ord("9") - ord("-")).any():  # else at most a "/", which Arrow refuses
        return None
    if lengths_of(texts).max(initial=0) > _LONGEST_PLAIN:
        return None
    try:
        return texts.cast(pa.decimal128(38, scale))
    except pa.ArrowInvalid:
        return None
