"""How a plain (unquoted) scalar of a rule file is read.

Only what YAML 1.1 (PyYAML, many older tools) and YAML 1.2 (editors) read alike is accepted: true, false, null, decimal
integers, decimal fractions and text. Everything that one of them reads as something else is `Ambiguous`: to be quoted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from integrity.core.rules.model import Literal

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+")
_INT64 = range(-(2**63), 2**63)

_BOOLEAN_1_1 = frozenset(["y", "n", "yes", "no", "on", "off"])
_BOOLEAN_BOTH = frozenset(("True", "TRUE", "False", "FALSE"))
_NULL_BOTH = frozenset(("~", "Null", "NULL"))
_NUMBER = re.compile(
    r"""
    [-+]?[0-9][0-9_]*                                  # 012 and 08 (octal, or not), 1_000, +5
    | [-+]?0b[01_]+ | [-+]?0o?[0-7_]+ | [-+]?0x[0-9a-fA-F_]+
    | [-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9_]+|[0-9]+)(?:[eE][-+]?[0-9]+)?
    | [-+]?\.(?:inf|Inf|INF) | \.(?:nan|NaN|NAN)
    """,
    re.VERBOSE,
)
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_DATE = re.compile(
    r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}"
    r"(?:(?:[Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]*)?(?:[ \t]*(?:Z|[-+][0-9]{1,2}(?::?[0-9]{2})?))?)?"
)


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """A plain scalar that is read differently by different tools; `reading` says how."""

    reading: str


@dataclass(frozen=True, slots=True)
class OutOfRange:
    """A number that does not fit 64 bits, or has a point and more than 15 digits."""

    reading: str


def read_plain(text: str) -> Literal | Ambiguous | OutOfRange:
    """The value of a plain scalar; an empty one is null."""
    match text:
        case "" | "null":
            return None
        case "true":
            return True
        case "false":
            return False
        case _:
            return _read_other(text)


def _read_other(text: str) -> Literal | Ambiguous | OutOfRange:
    if _INTEGER.fullmatch(text) and text != "-0":
        return _integer(text)
    if _DECIMAL.fullmatch(text):
        return _decimal(text)
    reading = _other_reading(text)
    return text if reading is None else Ambiguous(reading)


def _integer(text: str) -> int | OutOfRange:
    # The length first: Python refuses to convert thousands of digits.
    if len(text) > 20 or int(text) not in _INT64:
        return OutOfRange("does not fit 64 bits")
    return int(text)


def _decimal(text: str) -> float | OutOfRange:
    # A double keeps 15 significant digits; the gate for key values draws the same line.
    if len(text) > 40 or len(Decimal(text).as_tuple().digits) > 15:
        return OutOfRange("has more than 15 digits")
    return float(text)


def _other_reading(text: str) -> str | None:
    if text.lower() in _BOOLEAN_1_1:
        return "is a boolean in YAML 1.1 and text in YAML 1.2"
    if text in _BOOLEAN_BOTH:
        return f"is a boolean to some tools: write {text.lower()}"
    if text in _NULL_BOTH:
        return "is a null to some tools: write null"
    if _NUMBER.fullmatch(text):
        return "is not the same number, or none, in YAML 1.1 and YAML 1.2"
    if _SEXAGESIMAL.fullmatch(text):
        return "is a number to the base 60 in YAML 1.1 and text in YAML 1.2"
    if _DATE.fullmatch(text):
        return "is a date in YAML 1.1 and text in YAML 1.2"
    if text in ("=", "<<"):
        return "has a meaning of its own in YAML 1.1"
    return None
