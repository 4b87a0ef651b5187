"""What `llamaherd up` decides before it starts anything."""

from pathlib import Path

import pytest

from llamaherd.failures import Misused
from llamaherd.launcher.settings import Options, make_plan
from llamaherd_gateway.access.keys import keys_required
from llamaherd_gateway.settings import GatewaySettings
from llamaherd_shared.addresses import is_loopback
from llamaherd_shared.settings import load_settings


def asks_for_keys(environ: dict[str, str]) -> bool:
    """Whether the gateway that is started so asks for keys (`llamaherd_gateway.app`)."""
    _, gateway = load_settings(GatewaySettings, "gateway", config=None, environ=environ)
    return keys_required(gateway.keys, loopback_only=is_loopback(gateway.host) or gateway.insecure)


def test_on_this_machine_alone_no_keys_are_asked_for() -> None:
    assert not asks_for_keys(make_plan(Options(), {}).environ)


def test_insecure_opens_the_web_ui_and_not_the_models() -> None:
    plan = make_plan(Options(host="0.0.0.0", insecure=True), {})

    assert (plan.gateway.host, plan.ui.host) == ("0.0.0.0", "0.0.0.0")
    assert asks_for_keys(plan.environ)


def test_the_gateway_alone_may_listen_wider_and_asks_for_keys() -> None:
    plan = make_plan(Options(), {"LLAMAHERD_GATEWAY_HOST": "0.0.0.0"})

    assert (plan.gateway.host, plan.ui.host) == ("0.0.0.0", "127.0.0.1")
    assert asks_for_keys(plan.environ)


def test_the_web_ui_is_opened_to_others_only_when_told_so() -> None:
    for options, environ, said in (
        (Options(host="0.0.0.0"), {}, "the web UI has no users yet"),
        (Options(), {"LLAMAHERD_UI_HOST": "0.0.0.0"}, r"ui\.host.*no users yet"),
    ):
        with pytest.raises(Misused, match=said):
            make_plan(options, environ)


def test_a_mistake_in_what_is_said_about_models_is_told_before_anything_is_started(tmp_path: Path) -> None:
    config = tmp_path / "llamaherd.yaml"
    config.write_text("models:\n  cria: {slots: none}\n")

    with pytest.raises(Misused, match=r"llamaherd\.yaml:2:10: setting `models\.cria\.slots`: expected"):
        make_plan(Options(config=config), {})
