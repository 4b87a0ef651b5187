"""Files and pages of the web app."""

import pytest

from llamaherd_ui.web_files import cache_control, is_page, relative_path


@pytest.mark.parametrize(
    ("path", "name"),
    [("/", "index.html"), ("", "index.html"), ("/assets/app-1a2b.js", "assets/app-1a2b.js"), ("/logs/", "logs")],
)
def test_path_below_the_folder(path: str, name: str) -> None:
    assert relative_path(path) == name


@pytest.mark.parametrize(
    "path", ["/../settings.py", "/assets/../../x", "/.stamp", "/a\\..\\b", "/api/nope", "/v1/models"]
)
def test_path_that_is_not_ours(path: str) -> None:
    assert relative_path(path) is None


def test_addresses_inside_the_app_have_no_suffix() -> None:
    assert is_page("index.html")
    assert is_page("models/cria")
    assert not is_page("assets/gone.js")


def test_only_hashed_files_are_kept() -> None:
    assert "immutable" in cache_control("assets/app-1a2b.js")
    assert cache_control("index.html") == "no-cache"
