"""Whether a spec is well formed, fits the others, and accepts its settings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from penstock.config import Origins, nearest, validate
from penstock.errors import CapabilityError, ConfigError, PluginError
from penstock.spi.kinds import KINDS, OBJECT_STORE, REGISTER
from penstock.spi.object_store import RESERVED_PREFIXES, ObjectStoreCapabilities
from penstock.spi.plugin import SPI_VERSION, SPI_VERSION_MIN, PluginSpec
from penstock.spi.settings import Settings


def check_spec(spec: object, kind: str, module_name: str, origin: str) -> None:
    name = getattr(spec, "name", module_name)
    if not isinstance(spec, KINDS[kind].spec):
        raise PluginError(
            f"a plugin's {REGISTER}{kind} must return the spec class of that kind: name={name} from {origin} "
            f"got={type(spec).__name__}"
        )
    if not SPI_VERSION_MIN <= spec.spi_version <= SPI_VERSION:
        newer = "upgrade Penstock" if spec.spi_version > SPI_VERSION else "upgrade the plugin"
        raise PluginError(
            f"plugin was written for SPI version {spec.spi_version} and this Penstock speaks {SPI_VERSION_MIN} to "
            f"{SPI_VERSION}, {newer}: name={name} from {origin}"
        )
    if not re.fullmatch(r"[a-z][a-z0-9_]*", spec.name):
        raise PluginError(
            f"a plugin's name is lowercase letters, digits and _: name={spec.name!r} from {origin}"
        )
    if not (isinstance(spec.settings, type) and issubclass(spec.settings, Settings)):
        raise PluginError(
            f"a plugin's settings must be a subclass of penstock.spi.Settings: name={name} from {origin}"
        )
    fault = spec.fault()
    if fault:
        raise PluginError(f"{fault}: name={name} from {origin}")


def capabilities_of(capabilities: object) -> dict[str, Any]:
    if dataclasses.is_dataclass(capabilities) and not isinstance(capabilities, type):
        return dataclasses.asdict(capabilities)
    return {}


def check_combination(
    specs: Iterable[PluginSpec[Any, Any]], object_store_capabilities: ObjectStoreCapabilities
) -> None:
    """Refuse plugins that need what the object store lacks.

    Called at start with the capabilities that the store's spec claims, and again with those of the opened
    store, which its settings may have narrowed. Raises CapabilityError, or PluginError for a requirement that
    is no capability at all.
    """
    known = {item.name for item in dataclasses.fields(ObjectStoreCapabilities)}
    specs = list(specs)
    store = next((spec.name for spec in specs if spec.kind == OBJECT_STORE.name), "the object store")
    for spec in specs:
        for capability in sorted(spec.requires):
            if capability not in known:
                near = nearest(capability, known)
                advice = f", the nearest is {near}" if near else ""
                raise PluginError(
                    f"plugin requires a capability that object stores don't have{advice}: name={spec.name} "
                    f"capability={capability}"
                )
            if not getattr(object_store_capabilities, capability):
                raise CapabilityError(
                    f"{spec.kind} plugin {spec.name} needs an object store with {capability} and {store} has it not, "
                    f"choose another object_store.plugin or {spec.kind}.plugin: {spec.kind}={spec.name} "
                    f"object_store={store}"
                )


def check_key_prefixes(specs: Mapping[str, PluginSpec[Any, Any]], settings: Mapping[str, Settings]) -> None:
    """Refuse a plugin that would keep its objects among others'. Raises ConfigError.

    Plugins are given by the keys of their tables: those that others open share the broker's store as well.
    """
    taken = [("the broker", prefix) for prefix in RESERVED_PREFIXES]
    for kind, spec in specs.items():
        for prefix in spec.key_prefixes(settings[kind]):
            for owner, other in taken:
                if prefix.startswith(other) or other.startswith(prefix):
                    raise ConfigError(
                        f"the {kind} plugin {spec.name} would keep its objects among those of {owner}, choose "
                        f"another prefix for it: {kind}={prefix!r} {owner.removeprefix('the ')}={other!r}"
                    )
            taken.append((f"the {kind}", prefix))


def validate_settings(
    spec: PluginSpec[Any, Any], raw: Mapping[str, Any], origins: Origins | None = None, *, key: str = ""
) -> Settings:
    """``raw`` as the plugin's settings; ``key`` is that of its table, where that isn't the section of its kind.

    Raises ConfigError: one sentence with origin, key, what is expected, value, and the nearest key.
    """
    model: type[Settings] = spec.settings
    return validate(model, raw, key or spec.kind, origins or {}, siblings=("plugin",))
