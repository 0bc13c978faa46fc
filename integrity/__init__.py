"""Referential integrity across services and stores, kept by change events."""

from typing import Final

__all__: Final = ["__version__"]

__version__: str


def __getattr__(name: str) -> str:
    """Read ``__version__`` on first use: the package metadata cost more than the rest of the import."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("integrity")
