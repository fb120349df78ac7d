"""For people's own tests: a real broker as a pytest fixture (``penstock_tools.testing.pytest_plugin``)."""

from __future__ import annotations
