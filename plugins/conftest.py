"""All tests run as ``tests/run.py`` says."""

pytest_plugins = ("tests.run",)
