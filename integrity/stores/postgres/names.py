"""The one place that writes identifiers into SQL."""

from __future__ import annotations


def quoted(*parts: str) -> str:
    """The identifier, each part quoted as `quote_ident` would; parts come from the catalogue or were checked."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)
