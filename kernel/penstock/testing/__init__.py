"""For people's own tests: a real broker as a pytest fixture (``penstock.testing.pytest_plugin``)."""

from __future__ import annotations
