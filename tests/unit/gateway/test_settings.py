import pytest

from llamaherd_gateway.settings import GatewaySettings
from llamaherd_shared.settings import SettingsError


def test_an_address_others_reach_asks_for_keys_unless_that_is_meant() -> None:
    assert GatewaySettings(host="0.0.0.0").keys == "auto"
    assert GatewaySettings(host="0.0.0.0", keys="off", insecure=True).host == "0.0.0.0"
    with pytest.raises(SettingsError, match=r"gateway\.insecure"):
        GatewaySettings(host="0.0.0.0", keys="off")
    assert GatewaySettings(keys="off").host == "127.0.0.1"
