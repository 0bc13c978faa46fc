"""A condition over a change event: CEL (Common Expression Language) that tells whether a row counts as deleted.

The names are `before` and `after` (the row's fields, or null), `source` (the event's source fields), `op` (c or u) and
`headers` (name -> text). What an event lacks is no answer: such an event is refused, never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

NAMES: Final = ("before", "after", "source", "op", "headers")
EXPRESSION_CHARACTERS_MAX: Final = 2_000

Variables = Mapping[str, object]

_NULL_TEST = re.compile(r"\s*after\.([A-Za-z_][A-Za-z0-9_]*)\s*(!=|==)\s*null\s*", re.ASCII)
_FIELDS = re.compile(r"\b(before|after|source|headers)\.([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)
_BOUND = re.compile(r"\.(?:all|exists|exists_one|map|filter)\s*\(\s*([A-Za-z_][A-Za-z0-9_]*)\s*,", re.ASCII)
_SAMPLES: Final[Sequence[object]] = (True, 1, 1.5, "1", None, ["1"], {"1": 1})
_EVALUATION_ERRORS = (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError)
"""What the evaluator raises for what an event holds; a missing field is a KeyError."""


class ConditionFault(Exception):
    """An event does not answer the condition. `message` holds no value of it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Condition:
    """A condition that `fault_of` has found nothing wrong with."""

    def __init__(self, text: str) -> None:
        self.names, self._evaluate = _compiled(text)
        """Which of NAMES it asks for."""

    def holds(self, variables: Variables) -> bool:
        """Whether it is true of an event, given the values of `names`.

        Raises ConditionFault for a missing field, a comparison of different types, or an answer that is neither true
        nor false.
        """
        try:
            answer = self._evaluate(variables)
        except KeyError as exc:
            raise ConditionFault(f"the field {exc.args[0]} is not there; ask has() first") from None
        except _EVALUATION_ERRORS as exc:
            raise ConditionFault(f"it can't be evaluated ({type(exc).__name__}: are the types the same?)") from None
        if type(answer) is not bool:
            raise ConditionFault("its answer is neither true nor false")
        return answer


def null_test(text: str) -> tuple[str, bool] | None:
    """The field of `after` that alone decides, and whether null is what fulfils the condition; None where it is any
    other condition."""
    test = _NULL_TEST.fullmatch(text)
    return None if test is None else (test[1], test[2] == "==")


def fault_of(text: str) -> str | None:
    """What is wrong with a condition, in words that follow "the condition"; None when nothing is."""
    if len(text) > EXPRESSION_CHARACTERS_MAX:
        return f"has more than {EXPRESSION_CHARACTERS_MAX} characters"
    import cel  # costs a tenth of a second, which only files with a condition pay

    try:
        program = cel.compile(text)
    except ValueError as exc:
        return f"is no CEL: {_first_line(exc)}"
    for name in program.variables():
        if name not in NAMES and name not in _BOUND.findall(text):
            return f"names {name!r}, which an event does not have; it has {', '.join(NAMES)}"
    answers: list[bool] = []
    unknown = ""
    for variables in _sample_events(text):
        try:
            answers.append(type(program.execute(variables)) is bool)
        except RuntimeError as exc:  # a function that is unknown, or does not take this type
            unknown = _first_line(exc)
        except _EVALUATION_ERRORS:
            continue
    if answers and not any(answers):
        return "is never true or false, whatever the event"
    return f"can't be evaluated: {unknown}" if unknown and not answers else None


def _sample_events(text: str) -> Iterator[dict[str, object]]:
    """Events whose named fields hold one value of each type: what a condition answers tells the type of its answer."""
    named: dict[str, set[str]] = {"before": set(), "after": set(), "source": set(), "headers": set()}
    for name, field in _FIELDS.findall(text):
        named[name].add(field)
    for value in _SAMPLES:
        yield {name: dict.fromkeys(fields, value) for name, fields in named.items()} | {"op": "u"}


def _compiled(text: str) -> tuple[frozenset[str], Callable[[Variables], object]]:
    # The usual condition, read without the evaluator, which takes sixty times as long.
    if (test := null_test(text)) is not None:
        field, is_deleted_when_null = test

        def is_null(variables: Variables) -> object:
            after = variables["after"]
            assert isinstance(after, dict), "it is asked of events with an after only"
            return (after[field] is None) is is_deleted_when_null

        return frozenset({"after"}), is_null
    import cel

    program = cel.compile(text)

    def evaluate(variables: Variables) -> object:
        answer: object = program.execute(dict(variables))
        return answer

    return frozenset(program.variables()) & frozenset(NAMES), evaluate


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0][:200]
