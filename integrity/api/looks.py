"""`GET /v1/impact/{entity}/{key}` and `GET /v1/history/{entity}/{key}` of a running service (contract 9).

The stores are asked on connections of their own, under a deadline. An answer is whole or it is an error: a program that
asks "can I delete this?" must not take the silence of a store for a no.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from integrity.core.key_text import parse_key
from integrity.core.keys import Key, KeyRefused
from integrity.core.rules.model import Parent, RuleSet
from integrity.errors import OperationError
from integrity.ports import Deadline, Inspectable, InspectableCopy
from integrity.service.ask import Document, ask, history_document
from integrity.service.plan import impact_document, plan

TIMEOUT_S: Final = 10.0
"""How long all stores together have for one answer."""
LEVELS_TIMEOUT_S: Final = 5.0
"""After that no further level is looked at: the rows below are told as "at least"."""
HEADERS: Final = {"cache-control": "no-store"}


@dataclass(frozen=True, slots=True)
class Looks:
    """What is asked: the rules, and all their stores by name. `token` is empty when none is needed; `read_token`, which
    is good for everything that changes nothing, when there is none."""

    rules: RuleSet
    stores: Mapping[str, Inspectable]
    token: str
    read_token: str = ""
    copies: Mapping[str, InspectableCopy] = field(default_factory=dict)
    """By their ids."""


class Problem(HTTPException):
    """An error with a sentence for people, and more members for programs."""

    def __init__(self, status: HTTPStatus, detail: str, more: Document | None = None) -> None:
        super().__init__(status, detail, {"www-authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else None)
        self.more = more or {}


def routes(looks: Looks) -> Sequence[Route]:
    """The routes; nothing of them is answered without the token."""

    async def history(request: Request) -> Response:
        parent, key = _asked(looks, request)
        deadline = Deadline.after(TIMEOUT_S)
        stores = {dependent.store for dependent in parent.dependents}
        answers, copied = await asyncio.gather(
            ask(
                {name: looks.stores[name] for name in sorted(stores)},
                lambda store: store.history(parent.entity, key, deadline),
            ),
            ask(
                {copy.id: looks.copies[copy.id] for copy in parent.copies},
                lambda copy: copy.known_of(key, deadline),
            ),
        )
        return _whole({**answers.silent, **copied.silent}, history_document(parent, key, answers, copied))

    async def impact(request: Request) -> Response:
        parent, key = _asked(looks, request)
        to = _to(request, parent)
        deadline = Deadline.after(TIMEOUT_S)
        planning = await plan(
            looks.rules,
            looks.stores,
            parent.entity,
            key,
            to,
            deadline=lambda _: deadline,
            until=Deadline.after(LEVELS_TIMEOUT_S),
        )
        return _whole(planning.silent, impact_document(parent, key, to, planning))

    return [
        Route("/v1/history/{entity}/{key:path}", history, methods=["GET"]),
        Route("/v1/impact/{entity}/{key:path}", impact, methods=["GET"]),
    ]


def _asked(looks: Looks, request: Request) -> tuple[Parent, Key]:
    _authorize(looks, request)
    parent = looks.rules.by_entity.get(request.path_params["entity"])
    if parent is None:
        raise Problem(HTTPStatus.NOT_FOUND, "No rule has this parent.")
    # Before its percent signs were decoded: a comma that belongs to a part is told from one between two.
    written = request.scope["raw_path"].decode("ascii").split("/")
    if len(written) != 5:
        raise Problem(HTTPStatus.BAD_REQUEST, "A slash in a key is written %2F.")
    return parent, _key(parent, written[4])


def _to(request: Request, parent: Parent) -> Key | None:
    op, to = request.query_params.get("op", "delete"), request.query_params.get("to")
    match op, to:
        case "delete", None:
            return None
        case "update", str():
            return _key(parent, to)
        case _:
            raise Problem(HTTPStatus.BAD_REQUEST, "op is delete, or update together with to=KEY.")


def _key(parent: Parent, text: str) -> Key:
    try:
        return parse_key(text, parent.key)
    except KeyRefused as exc:
        raise Problem(HTTPStatus.BAD_REQUEST, f"This is no key of {parent.entity}: {exc.message}.") from exc


def _authorize(looks: Looks, request: Request) -> None:
    if not looks.token:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # As the bytes that were sent: the comparison of texts takes no others than ASCII.
    sent = given.encode("latin-1")
    accepted = [token.encode() for token in (looks.token, looks.read_token) if token]
    if scheme.lower() != "bearer" or not any([hmac.compare_digest(sent, token) for token in accepted]):
        raise Problem(HTTPStatus.UNAUTHORIZED, "Send Authorization: Bearer TOKEN.")


def _whole(silent: Mapping[str, OperationError], document: Document) -> Response:
    if silent:
        detail = f"No answer from {', '.join(silent)}."
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, document)
    return Response(msgspec.json.encode(document), headers=HEADERS, media_type="application/json")
