import pytest

from llamaherd_gateway.settings import GatewaySettings
from llamaherd_shared.settings import SettingsError


def test_an_address_others_reach_needs_insecure() -> None:
    with pytest.raises(SettingsError, match=r"setting `gateway\.host`: 0\.0\.0\.0 lets others use the models"):
        GatewaySettings(host="0.0.0.0")

    assert GatewaySettings(host="0.0.0.0", insecure=True).host == "0.0.0.0"
    assert GatewaySettings(host="::1").host == "::1"
