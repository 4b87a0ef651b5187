"""Settings of the ui."""

from pathlib import Path

import pytest

from llamaherd_shared.settings import SettingsError, load_settings
from llamaherd_ui.settings import UiSettings


def load(**environ: str) -> UiSettings:
    variables = {f"LLAMAHERD_UI_{name.upper()}": value for name, value in environ.items()}
    return load_settings(UiSettings, "ui", config=None, environ=variables)[1]


def test_defaults_listen_on_loopback() -> None:
    settings = load()

    assert (settings.host, settings.port) == ("127.0.0.1", 8081)


def test_environment_sets_lists_and_numbers() -> None:
    settings = load(port="9000", allowed_hosts="[herd.lan, '*.lan']")

    assert settings.port == 9000
    assert settings.allowed_hosts == ["herd.lan", "*.lan"]


def test_wider_than_loopback_needs_a_word() -> None:
    with pytest.raises(SettingsError, match=r"ui\.host.*ui\.insecure"):
        load(host="0.0.0.0")

    assert load(host="0.0.0.0", insecure="true").host == "0.0.0.0"


@pytest.mark.parametrize("environ", [{"port": "70000"}, {"max_streams": "0"}, {"comment_interval_s": "-1"}])
def test_values_out_of_bounds_are_refused(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=rf"ui\.{next(iter(environ))}"):
        load(**environ)


def test_unknown_key_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "llamaherd.yaml"
    config.write_text("ui:\n  prot: 1\n")

    with pytest.raises(SettingsError, match=r"llamaherd\.yaml:2:3.*`ui\.prot`"):
        load_settings(UiSettings, "ui", config=config, environ={})
