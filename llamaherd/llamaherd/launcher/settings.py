"""What a herd is started with: options over environment over `llamaherd.yaml` over defaults."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import yaml

from llamaherd.failures import Misused
from llamaherd.launcher.probe import pick_port
from llamaherd.permissions import SERVICES
from llamaherd_shared.addresses import is_loopback
from llamaherd_shared.settings import CommonSettings, SettingsError, load_models, load_settings

LISTENERS: Final = ("gateway", "ui")
"""Services with an address of their own."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The command line of `up`; `None`: not given."""

    demo: bool = False
    config: Path | None = None
    data_dir: Path | None = None
    models_dir: Path | None = None
    host: str | None = None
    port: int | None = None
    ui_port: int | None = None
    nats_url: str | None = None
    nats_port: int = 4222
    llama_server: Path | None = None
    insecure: bool = False
    """The web UI may listen beyond this machine."""


class Address(msgspec.Struct, frozen=True):
    host: str
    port: int

    @property
    def url(self) -> str:
        """Where a program on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is decided before the first process is started."""

    common: CommonSettings
    options: Options
    gateway: Address
    ui: Address
    other_ports: dict[str, int]
    """Whose clients look for the gateway where, beside its own port: `Ollama`, `LM Studio`."""
    models_dir: Path
    llama_server: Path | None
    """As the supervisor's settings name it; the command line and `LLAMAHERD_LLAMA_SERVER` come before it."""
    own_nats: bool
    """Whether we run nats-server ourselves."""
    environ: dict[str, str]
    """For every service; says the same as this plan."""


def make_plan(options: Options, environ: Mapping[str, str]) -> Plan:
    """Raises `Misused` with one sentence when any service's settings cannot be used."""
    _check(options)
    given = dict(environ) | _environ_of(options)
    try:
        loaded = {service: _load(service, options.config, given) for service in SERVICES}
        load_models(config=options.config, environ=given)
    except SettingsError as error:
        raise Misused(error.message) from error
    common = loaded["gateway"][0]
    common = msgspec.structs.replace(common, data_dir=common.data_dir.expanduser().absolute())
    addresses = {name: _address(loaded[name][1]) for name in LISTENERS}
    in_file = _content(options.config)
    supervisor = loaded["supervisor"][1]
    models_dir = common.data_dir / "models"
    if "LLAMAHERD_SUPERVISOR_MODELS_DIR" in given or "models_dir" in (in_file.get("supervisor") or {}):
        models_dir = supervisor.models_dir.expanduser().absolute()
    given |= {
        "LLAMAHERD_DATA_DIR": str(common.data_dir),
        "LLAMAHERD_NODE": common.node,
        "LLAMAHERD_SUPERVISOR_MODELS_DIR": str(models_dir),
    }
    for name, address in addresses.items():
        given[f"LLAMAHERD_{name.upper()}_HOST"] = address.host
        given[f"LLAMAHERD_{name.upper()}_PORT"] = str(address.port)
    return Plan(
        common=common,
        options=options,
        gateway=addresses["gateway"],
        ui=addresses["ui"],
        other_ports=_other_ports(loaded["gateway"][1]),
        models_dir=models_dir,
        own_nats="LLAMAHERD_NATS_URL" not in given and "nats_url" not in in_file,
        llama_server=supervisor.llama_server,
        environ=given,
    )


def _check(options: Options) -> None:
    """What the services would refuse too, in the words of the command line."""
    for option, port in (("--port", options.port), ("--ui-port", options.ui_port), ("--nats-port", options.nats_port)):
        if port is not None and not 0 <= port <= 65_535:
            raise Misused(f"{option} {port}: a port is a number from 0 (any free one) to 65535")
    if options.host is not None and not (is_loopback(options.host) or options.insecure):
        raise Misused(
            f"--host {options.host}: the web UI has no users yet, so anybody on that network could unload your models "
            "and make API keys; leave --host out, open the gateway alone (`gateway.host`: it asks for keys), "
            "or add --insecure if that network is yours alone"
        )


def _environ_of(options: Options) -> dict[str, str]:
    """The options as the variables that services read."""
    named = {
        "LLAMAHERD_DATA_DIR": options.data_dir,
        "LLAMAHERD_NATS_URL": options.nats_url,
        "LLAMAHERD_SUPERVISOR_MODELS_DIR": options.models_dir,
        "LLAMAHERD_GATEWAY_HOST": options.host,
        "LLAMAHERD_GATEWAY_PORT": options.port,
        "LLAMAHERD_UI_HOST": options.host,
        "LLAMAHERD_UI_PORT": options.ui_port,
    }
    if options.insecure:
        # Not the gateway's: bound wider it asks for keys.
        named |= {"LLAMAHERD_UI_INSECURE": "true"}
    return {name: str(value) for name, value in named.items() if value is not None}


def _load(service: str, config: Path | None, environ: Mapping[str, str]) -> tuple[CommonSettings, Any]:
    try:
        module = importlib.import_module(f"llamaherd_{service}.settings")
    except ModuleNotFoundError as error:
        raise Misused(f"the service {service} is not installed ({error}); install llamaherd-{service}") from error
    type_ = cast(type[msgspec.Struct], getattr(module, f"{service.capitalize()}Settings"))
    return load_settings(type_, service, config=config, environ=environ)


def _address(settings: Any) -> Address:
    return Address(str(settings.host), int(settings.port) or pick_port(0))


def _other_ports(gateway: Any) -> dict[str, int]:
    ports = {"Ollama": int(gateway.ollama_port), "LM Studio": int(gateway.lmstudio_port)}
    return {name: port for name, port in ports.items() if port}


def _content(config: Path | None) -> dict[str, Any]:
    """What stands in a file that `load_settings` has accepted."""
    return yaml.safe_load(config.read_text()) or {} if config is not None else {}
