from pathlib import Path
from typing import Literal

import msgspec
import pytest

from llamaherd_shared.settings import SettingsError, load_settings


class Gateway(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    port: int = 8080
    wait_s: float = 5.0
    names: list[str] = []
    folder: Path | None = None


def read(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> tuple[object, Gateway]:
    config = tmp_path / "llamaherd.yaml"
    config.write_text(text)
    return load_settings(Gateway, "gateway", config=config, environ=environ or {})


def test_without_file_and_environment_the_defaults_serve() -> None:
    common, own = load_settings(Gateway, "gateway", config=None, environ={})

    assert own == Gateway()
    assert common.node


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    _, own = read(
        tmp_path,
        "gateway:\n  port: 1\n  wait_s: 2\n",
        {"LLAMAHERD_GATEWAY_PORT": "3", "LLAMAHERD_GATEWAY_NAMES": "[a, b]", "LLAMAHERD_GATEWAY_FOLDER": "~/x"},
    )

    assert own == Gateway(port=3, wait_s=2.0, names=["a", "b"], folder=Path("~/x").expanduser())


def test_sections_of_other_services_are_left_to_them(tmp_path: Path) -> None:
    _, own = read(tmp_path, "supervisor: {whatever: 1}\n")

    assert own == Gateway()


def test_an_unknown_key_is_named_with_file_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"llamaherd\.yaml:3:3: unknown setting `gateway\.prot`; known here: .*port"
    ):
        read(tmp_path, "node: n\ngateway:\n  prot: 1\n")
    with pytest.raises(SettingsError, match=r"llamaherd\.yaml:1:1: unknown setting `nodes`"):
        read(tmp_path, "nodes: n\n")


def test_a_wrong_type_is_named_with_file_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"llamaherd\.yaml:2:3: setting `gateway\.port`: expected `int`, got `str`"):
        read(tmp_path, "gateway:\n  port: many\n")


def test_a_wrong_item_of_a_list_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"llamaherd\.yaml:3:11: setting `gateway\.names\.1`: expected `str`"):
        read(tmp_path, "gateway:\n  names:\n    [a,   5]\n")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"llamaherd\.yaml:3:3: `gateway\.port` stands here twice"):
        read(tmp_path, "gateway:\n  port: 1\n  port: 2\n")


def test_what_has_moved_is_told_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"llamaherd\.yaml:2:3: `gateway\.models` has moved: write `models` at the"):
        read(tmp_path, "gateway:\n  models: {}\n")
    with pytest.raises(SettingsError, match=r"environment variable LLAMAHERD_GATEWAY_MODELS: `gateway\.models` has"):
        read(tmp_path, "", {"LLAMAHERD_GATEWAY_MODELS": "{}"})


def test_what_is_said_about_models_is_not_a_common_setting(tmp_path: Path) -> None:
    _, own = read(tmp_path, "models: {m: {slots: 1}}\n")

    assert own == Gateway()


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="environment variable LLAMAHERD_GATEWAY_PORT"):
        read(tmp_path, "", {"LLAMAHERD_GATEWAY_PORT": "many"})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gateway: [", r"llamaherd\.yaml:\d+:\d+: not valid YAML"),
        ("- a\n", r"llamaherd\.yaml:1:1: expected settings as `key: value`"),
        ("gateway: 5\n", r"llamaherd\.yaml:1:1: `gateway` must be a mapping"),
    ],
)
def test_a_file_that_is_no_configuration_says_where(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        read(tmp_path, text)


def test_off_means_the_word_where_a_setting_knows_it(tmp_path: Path) -> None:
    class Section(msgspec.Struct):
        keys: Literal["auto", "off"] = "auto"
        loud: bool = True

    path = tmp_path / "llamaherd.yaml"
    path.write_text("gateway:\n  keys: off\n  loud: off\n")

    _, section = load_settings(Section, "gateway", config=path, environ={})

    assert (section.keys, section.loud) == ("off", False)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SettingsError, match=r"cannot read the configuration missing\.yaml: No such file"):
        load_settings(Gateway, "gateway", config=Path("missing.yaml"), environ={})
