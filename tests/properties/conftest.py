"""How many random lives of a node are led."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--histories", type=int, default=150, help="random lives of a node (test_memory.py)")
