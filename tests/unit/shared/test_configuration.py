"""What a running service makes of a changed file."""

from pathlib import Path

import msgspec
import pytest

from llamaherd_shared.configuration import Configuration
from llamaherd_shared.settings import SettingsError


class Gateway(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    port: int = 8080
    wait_s: float = 5.0
    aliases: dict[str, str] = {}


def configuration(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> Configuration[Gateway]:
    config = tmp_path / "llamaherd.yaml"
    config.write_text(text)
    return Configuration("gateway", Gateway, Gateway(), config=config, environ=environ or {})


def test_settings_and_models_are_read_as_at_the_start(tmp_path: Path) -> None:
    file = configuration(tmp_path, "gateway: {port: 1}\nmodels: {m: {slots: 2}}\n", {"LLAMAHERD_GATEWAY_WAIT_S": "3"})

    settings, models = file.read()

    assert settings == Gateway(port=1, wait_s=3.0)
    assert models.spec("m").slots == 2


def test_what_has_changed_and_counts_later_is_told(tmp_path: Path) -> None:
    file = configuration(tmp_path, "gateway: {port: 1, aliases: {a: b}, wait_s: 5}")
    settings, _ = file.read()

    assert file.needing_restart(settings) == ["gateway.port", "gateway.aliases"]
    assert file.needing_restart(settings, but=frozenset({"aliases"})) == ["gateway.port"]


def test_another_text_is_judged_as_if_it_were_the_file(tmp_path: Path) -> None:
    file = configuration(tmp_path, "models: {m: {slots: 2}}")

    assert file.read_models("models: {m: {slots: 3}}").spec("m").slots == 3
    assert file.read_models("").spec("m").slots is None
    with pytest.raises(SettingsError, match=r"llamaherd\.yaml:1:14: setting `models\.m\.slots`"):
        file.read_models("models: {m: {slots: no}}")
