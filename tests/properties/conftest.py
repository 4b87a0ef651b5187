"""How many random lives of a node are led."""

import pytest
from hypothesis import settings

settings.register_profile("patient", deadline=None)  # how long an example takes says more about the machine
settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--histories", type=int, default=300, help="random lives of a node (test_memory.py)")
