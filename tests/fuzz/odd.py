"""What makes an event odd: names, texts, numbers, times and keys that people, other clients and attackers write."""

from __future__ import annotations

DEEP = (62, 63, 64, 64, 65, 65, 66, 80, 500, 2000, 100_000)
SUBJECTS = ("Zoë Åström", "Łukasz", "株式会社例", "tenant-7", "a/b", "عميل", "🙂", "x" * 200)
SOURCES = ("nova/berlin-1", "//compute.example/eu/host-063", "lb", "store", "a", "b/c")
NAMES = (
    "", " ", "a", "x" * 256, "x" * 257, "x" * 1024, "x" * 1025, "ü" * 512, "ü" * 513, "🙂" * 256, "🙂" * 257, "\0",
    "a\0b",
    "a\nb", "a\rb", "\u2028", "\ufeff", "\u202e", "ﬀ", "e\u0301", "é", "null", "NaN", "{}", "]]>", "';--", "%s",
    "\\", '"',
)  # fmt: skip
TYPES = ("heartbeat", "pulse", "serverr", "Server", "server ", "", "x" * 2000, "tallyman.usage.corrected.v1")
# As they stand in JSON; most are no JSON at all.
LITERALS = (
    "1", "1.0", "1.00", "10e-1", "-0", "0", "-0.0", "01", "-01", "+1", ".5", "5.", "1e3", "1E+3", "1e-3", "1e40",
    "1e-40",
    "1e400", "1e99999999999999999999", "-1e-99999999999999999999", "NaN", "Infinity", "-Infinity", "0x10", "1_000",
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551616", "9" * 30, "9" * 31,
    "9" * 700, "9" * 4300, "9" * 4301, "-" + "9" * 5000, "0." + "1" * 18, "0." + "1" * 19, "1." + "0" * 80,
    "0." + "0" * 5000 + "1", "true", "false", "null", "nul", "True", "{}", "[]", "[1]", '{"name":"a"}', '{"value":1}',
    '"1"', '"1.5"', '"-1"', '"1e3"', '" 1"', '"1 "', '"1\\n"', '""', '"NaN"', '"1,5"', '"٣"', '"1_0"', '"0x1"',
    '"true"',
    '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude42"', '"\\u0000"', '"\\u00e5"', '"\\x41"', '"\\', '"a\nb"', '"\t"',
    '"' + "x" * 1025 + '"', '"' + "ü" * 600 + '"', "'1'", "/*1*/2", "1 2", "",
)  # fmt: skip
QUANTITIES = (
    "1", "1.5", "0.25", "-2.25", "0", "-0", "007", ".5", "5.", "1e3", "1e-3", "+1", "", "1.1234567", "0.000001",
    "0.0000001", "1" * 24, "9" * 24, "9" * 30, "9" * 31, "1/2", "NaN", "-inf", " 1", "1-2", "--1",
    "99999999999999999999.123456",
    "0" * 80 + "1", "1." + "0" * 80, "1e40", "123456789.987654321",
)  # fmt: skip
TIMES = (
    "2026-10-31T12:00:00", "2026-10-31 12:00:00Z", "2026-10-31t12:00:00z", "2026-10-31T24:00:00Z",
    "2026-10-31T23:59:60Z",
    "2026-02-29T12:00:00Z", "2024-02-29T12:00:00Z", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z",
    "2000-01-01T00:00:00Z",
    "1999-12-31T23:59:59.999999Z", "2099-12-31T23:59:59.999999Z", "2100-01-01T00:00:00Z", "2026-10-31", "soon", "",
    "2026-10-31T12:00:00+24:00", "2026-10-31T12:00:00-23:59", "2026-10-31T12:00:00.Z", "2026-10-31T12:00Z",
    "1793448000",
    "1793448000.25", "1793448000000", "-1", "2026-W44-6T12:00:00Z", "2026-10-31T12:00:00Z ",
    "２０２６-10-31T12:00:00Z",
)  # fmt: skip
KEYS = ("id", "source", "type", "subject", "time", "specversion", "data", "Id", "data.value", "", "datacontenttype",
        "data_base64", "extension", "\\u0069d", "\\u0064ata", "id\\u0000")  # fmt: skip
CONTENT_TYPES = (
    "application/json", "Application/CloudEvents+JSON; charset=utf-8", "application/cloudevents+json;",
    "APPLICATION/CLOUDEVENTS-BATCH+JSON;charset=UTF-8", " application/x-ndjson ", "application/x-NDJSON ; a=b",
    "application/x-jsonlines", "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file",
    "text/plain",
    "application/xml", "application/avro", "", ";", "application/cloudevents", "application/cloudevents+xml",
    "application/problem+json", "x" * 5000, "application/jsonapplication/json", "application/json\0",
)  # fmt: skip
BYTES = (
    b"", b" ", b"\0", b"\n", b"\n\n\n", b"{}", b"[]", b"[[]]", b"null", b"1", b'"text"', b"{", b"}", b"[", b"]",
    b",", b"\xff",
    b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b"\xff\xff\xff\xff\0\0\0\0", b"\xff\xff\xff\xff\x10\0\0\0", b"PK\x03\x04",
    b"<usage/>",
    b"PAR1", b"id,source\n1,2", b"\x1f\x8b\x08", b"\x04\x22\x4d\x18", b"{}{}", b"{}\n{}", b"{}\r\n{}\r\n", b"[{}",
    b"[{},]",
    b'{"id":"a",', b'"source":"s"}', b'{"id":"\xff"}', b"nonsense", b"[" * 200, b'{"a":' * 200, b'["' * 500,
)  # fmt: skip
# Pieces that are put somewhere into bytes, or over them.
PIECES = (
    b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\\", b'"', b'\\"', b"\\\\", b"\\u", b"\\ud800", b"{", b"}", b"[",
    b"]", b",",
    b":", b"\n", b"\r\n", b"}\n{", b'"id":"again",', b'"data":{"hours":2},', b"1e999999999", b"9" * 5000,
    b"0" * 100, b"-", b".",
    b"null", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b" " * 50, b"\x7f", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0" * 8,
)  # fmt: skip
