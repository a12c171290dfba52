"""The strict reader of YAML files: what it takes, and what it says about each way to be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from tallyman.errors import ConfigError
from tallyman.files import (
    Secret,
    find_left_out,
    load_folder,
    load_marked,
    load_yaml,
    parse_duration,
    refuse_repeats,
    write_duration,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A price, as a file has it."""

    price: Decimal
    unit: str = "1"
    every: timedelta = timedelta(hours=1)
    mode: Literal["flat", "graduated"] = "flat"
    from_: date | None = None
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    live: bool = True
    where: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    prices: tuple[Price, ...]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(tmp_path: Path, text: str, into: Any = Prices) -> str:
    with pytest.raises(ConfigError) as caught:
        load_yaml(written(tmp_path, text), into)
    return str(caught.value).replace(f"{tmp_path}/", "")


def price(tmp_path: Path, line: str) -> Price:
    return load_yaml(written(tmp_path, f"prices:\n  - price: 1\n    {line}\n"), Prices).prices[0]


def price_complaint(tmp_path: Path, line: str) -> str:
    return complaint(tmp_path, f"prices:\n  - price: 1\n    {line}\n")


def test_a_number_keeps_all_its_digits_on_the_way_to_a_decimal(tmp_path: Path) -> None:
    text = "prices: [{price: 0.1000000000000000055511151231257827}, {price: '12.50'}]"
    prices = load_yaml(written(tmp_path, text), Prices).prices
    assert [str(price.price) for price in prices] == ["0.1000000000000000055511151231257827", "12.50"]


def test_norway_is_a_country_and_no_boolean(tmp_path: Path) -> None:
    assert price(tmp_path, "unit: NO").unit == "NO"


def test_a_time_of_day_is_no_number_in_base_60(tmp_path: Path) -> None:
    assert price(tmp_path, "unit: 1:30").unit == "1:30"


def test_a_name_in_any_script_is_kept(tmp_path: Path) -> None:
    assert price(tmp_path, "unit: Zoë Åström 東京").unit == "Zoë Åström 東京"


def test_a_missing_dimension_is_null_and_not_the_text(tmp_path: Path) -> None:
    assert price(tmp_path, "where: {az: [null, 'null', '']}").where == {"az": (None, "null", "")}


def test_a_keyword_of_python_may_be_a_key(tmp_path: Path) -> None:
    assert price(tmp_path, "from: 2026-10-01").from_ == date(2026, 10, 1)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("200ms", timedelta(milliseconds=200)),
        ("30s", timedelta(seconds=30)),
        ("5m", timedelta(minutes=5)),
        ("1h", timedelta(hours=1)),
        ("35d", timedelta(days=35)),
        ("2w", timedelta(days=14)),
        ("0s", timedelta(0)),
    ],
)
def test_a_duration_has_a_number_and_a_unit(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration
    assert parse_duration(write_duration(duration)) == duration


BAD = [
    ("pirce: 2", 'prices.yaml:3: prices[0].pirce: unknown key; did you mean "price"?'),
    ("price: 2", "prices.yaml:3: prices[0].price: given twice, first in line 2; remove one"),
    ("unit: 12", 'prices.yaml:3: prices[0].unit: expected a text, got 12; write it in quotes: "12"'),
    ("unit: true", 'prices.yaml:3: prices[0].unit: expected a text, got true; write it in quotes: "true"'),
    ("unit:", "prices.yaml:3: prices[0].unit: expected a text, got nothing"),
    ("live: yes", 'prices.yaml:3: prices[0].live: expected true or false, got "yes"'),
    ("count: 1.0", "prices.yaml:3: prices[0].count: expected a whole number, got 1.0"),
    ('count: "1"', 'prices.yaml:3: prices[0].count: expected a whole number, got "1"; write it without quotes'),
    ("count: 0", "prices.yaml:3: prices[0].count: expected `int` >= 1, got 0"),
    (
        "mode: gradated",
        'prices.yaml:3: prices[0].mode: expected one of flat, graduated, got "gradated"; did you mean "graduated"?',
    ),
    (
        "every: 1:30",
        'prices.yaml:3: prices[0].every: expected a duration such as 200ms, 30s, 5m, 1h or 35d, got "1:30"',
    ),
    ("from: 2026-02-30", 'prices.yaml:3: prices[0].from: expected a date such as 2026-10-01, got "2026-02-30"'),
    ("where: [a]", "prices.yaml:3: prices[0].where: expected keys and values, got a list"),
    ("where: {az: nova}", 'prices.yaml:3: prices[0].where.az: expected a list, got "nova"'),
    ("where: {az: [1]}", 'prices.yaml:3: prices[0].where.az[0]: expected a text, got 1; write it in quotes: "1"'),
    ("<<: {unit: GiB}", 'prices.yaml:3: prices[0]: the merge key "<<" is not read; write the keys out'),
    ("unit: !!python/name:os.system x", "prices.yaml:3: prices[0].unit: expected no tag"),
    ("unit: 'open", "no YAML: while scanning a quoted scalar"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[line for line, _ in BAD])
def test_each_way_to_be_wrong_has_its_sentence(tmp_path: Path, line: str, message: str) -> None:
    assert message in price_complaint(tmp_path, line)


def test_a_price_that_is_no_number_is_refused(tmp_path: Path) -> None:
    for text in ("lots", "'NaN'", ".nan", "1_000", "0x10", "Infinity"):
        assert "prices[0].price: expected a number, got" in complaint(tmp_path, f"prices: [{{price: {text}}}]")


def test_a_missing_key_is_named_at_the_line_where_it_belongs(tmp_path: Path) -> None:
    assert complaint(tmp_path, "prices:\n  - unit: GiB\n") == 'prices.yaml:2: prices[0]: missing key "price"'


def test_an_empty_file_misses_what_is_needed(tmp_path: Path) -> None:
    assert complaint(tmp_path, "# nothing yet\n") == 'prices.yaml:1: missing key "prices"'


def test_all_problems_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    text = "prices:\n  - {price: x, unti: GiB}\n  - {price: 1, mode: free}\n"
    lines = complaint(tmp_path, text).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["prices[0].price", "prices[0].unti", "prices[1].mode"]


def test_bytes_that_are_no_utf8_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_bytes(b"prices:\n  - price: 1\n    unit: Z\xfcrich\n")
    with pytest.raises(ConfigError, match=r"prices\.yaml:3: expected UTF-8, got the byte 0xfc"):
        load_yaml(path, Prices)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prices\.yaml: no such file"):
        load_yaml(tmp_path / "prices.yaml", Prices)


def test_an_alias_that_contains_itself_is_refused(tmp_path: Path) -> None:
    assert "an alias that contains itself" in complaint(tmp_path, "&a [*a]", Any)


def test_a_secret_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", "whsec_abc")
    path = written(tmp_path, "a: ${HOOK_SECRET}\nb: plain\n")
    assert load_yaml(path, dict[str, Secret]) == {"a": "whsec_abc", "b": "plain"}


def test_a_secret_that_the_environment_lacks_is_named(tmp_path: Path) -> None:
    message = complaint(tmp_path, "a: ${NO_SUCH_SECRET}\n", dict[str, Secret])
    assert message == "prices.yaml:1: a: the environment variable NO_SUCH_SECRET is not set"


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yaml", "notes.txt", ".hidden.yaml"):
        (tmp_path / name).write_text("prices: [{price: 1}]\n", encoding="utf-8")
    assert [path.name for path, _ in load_folder(tmp_path, Prices)] == ["a.yaml", "b.yaml"]
    assert load_folder(tmp_path / "missing", Prices) == []


def test_a_file_with_the_other_ending_is_not_missed_in_silence(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("prices: []\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.yml: expected the ending \.yaml"):
        load_folder(tmp_path, Prices)


def test_a_folder_as_kubernetes_mounts_it_is_read_once(tmp_path: Path) -> None:
    """A config map is a hidden folder with links to its files beside it; notebooks keep hidden copies, too."""
    for hidden in ("..2026_10_31", ".ipynb_checkpoints"):
        (tmp_path / hidden).mkdir()
        (tmp_path / hidden / "a.yaml").write_text("prices: [{price: 1}]\n", encoding="utf-8")
    (tmp_path / "..data").symlink_to("..2026_10_31")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    assert [path for path, _ in load_folder(tmp_path, Prices)] == [tmp_path / "a.yaml"]


def test_a_linked_folder_is_read_and_links_that_go_round_end(tmp_path: Path) -> None:
    shared, folder = tmp_path / "shared", tmp_path / "meters"
    for each in (shared, folder / "deep"):
        each.mkdir(parents=True)
        (each / "a.yaml").write_text("prices: [{price: 1}]\n", encoding="utf-8")
    (folder / "linked").symlink_to(shared)
    (folder / "twice").symlink_to(shared)
    (folder / "deep" / "round").symlink_to(folder)
    assert [path.relative_to(folder).as_posix() for path, _ in load_folder(folder, Prices)] == [
        "deep/a.yaml", "linked/a.yaml",
    ]  # fmt: skip


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(ConfigError, match=f"{tmp_path.name}: cannot be read: Permission denied"):
        load_folder(tmp_path, Prices)


def test_what_looks_like_a_file_of_the_project_and_is_not_read_is_named(tmp_path: Path) -> None:
    for name in ("a.YAML", "b.Yml", "c.yaml", "notes.txt"):
        (tmp_path / name).write_text("prices: []\n", encoding="utf-8")
    (tmp_path / "gone.yaml").symlink_to("nowhere.yaml")
    told = [line.rpartition("/")[2] for line in find_left_out(tmp_path)]
    assert told == [
        "a.YAML: not read; expected the ending .yaml, got .YAML; rename the file",
        "b.Yml: not read; expected the ending .yaml, got .Yml; rename the file",
        "gone.yaml: a link to nothing; correct or remove it",
    ]
    assert len(load_folder(tmp_path, Prices)) == 1


def test_a_later_check_can_name_the_line(tmp_path: Path) -> None:
    marked = load_marked(written(tmp_path, "prices:\n  - price: 1\n\n  - price: 2\n    unit: GiB\n"), Prices)
    assert marked.place("prices[1].unit").endswith("prices.yaml:5: prices[1].unit")
    assert marked.place("prices[1].mode").endswith("prices.yaml:4: prices[1].mode")


def test_a_name_given_twice_is_refused_with_both_places() -> None:
    with pytest.raises(ConfigError, match='b:2: meter "vm" is defined twice, first at a:1; rename or remove one'):
        refuse_repeats("meter", [("vm", "a:1"), ("disk", "a:5"), ("vm", "b:2")])
