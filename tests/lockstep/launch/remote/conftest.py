"""What the tests of clusters share: a place for real processes."""

from tests.system.conftest import place

__all__ = ["place"]
