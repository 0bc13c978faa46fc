"""Resume tokens that are told at sight are read as all others are."""

from __future__ import annotations

from integrity.core.decode.resume_token import _read_slowly, read_token

TOKEN = (
    "826B04B6A8000000012B022C0100296E5A1004B7FAE6ABD0D640F39AA995A6C7161CBF46645F6964006465A1B2C3D4E5F60718293A4B0004"
)
OF_COLLECTION = (
    "826B04B6A8000000012B022C0100296E5A1004B7FAE6ABD0D640F39AA995A6C7161CBF463C6F7065726174696F6E547970650004"
)


def test_a_token_whose_every_digit_is_another_is_read_alike_both_ways() -> None:
    taken = 0
    for text in (TOKEN, OF_COLLECTION):
        for at in range(len(text)):
            for piece in ("", "0", "2", "4", "5", "9", "A", "F", "f", "g", "00", "6E"):
                broken = text[:at] + piece + text[at + 1 :]
                assert read_token(broken) == _read_slowly(broken)
                taken += read_token(broken) is not None
    assert taken > 500


def test_a_change_of_a_collection_is_told_from_one_of_a_document() -> None:
    for text, is_of_document in ((TOKEN, True), (OF_COLLECTION, False)):
        token = read_token(text)
        assert token is not None
        assert token.is_of_document is is_of_document
