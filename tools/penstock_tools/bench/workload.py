"""Workload and driver files in the YAML of the OpenMessaging Benchmark.

Keys and meanings are those of ``Workload.java`` and of the Kafka driver's ``Config.java`` in
https://github.com/openmessaging/benchmark; ``driver`` inside a workload is an addition, and durations and the
backlog may be fractions.
"""

from __future__ import annotations

__all__ = ("HEADER_BYTES", "Driver", "KeyDistributor", "Workload", "load_driver", "load_workload")

import enum
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from penstock.config import nearest
from penstock.errors import ConfigError

#: What a message begins with: when it was sent, by whom, and which one it is.
HEADER_BYTES = 16


class KeyDistributor(enum.Enum):
    """How messages get their keys; the values are those of the YAML."""

    NO_KEY = "NO_KEY"
    KEY_ROUND_ROBIN = "KEY_ROUND_ROBIN"
    RANDOM_NANO = "RANDOM_NANO"


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """How clients and topics are configured. Properties are librdkafka's, which knows most of Java's names too."""

    name: str = "librdkafka"
    #: Accepted so that the benchmark's own files can be read; it must be a Kafka driver.
    driverClass: str = ""  # noqa: N815 # keys of the YAML
    replicationFactor: int = 1  # noqa: N815
    #: Accepted; topics of a run are new and are deleted after it in any case.
    reset: bool = True
    topicConfig: dict[str, str] = field(default_factory=dict)  # noqa: N815
    commonConfig: dict[str, str] = field(default_factory=dict)  # noqa: N815
    producerConfig: dict[str, str] = field(default_factory=dict)  # noqa: N815
    consumerConfig: dict[str, str] = field(default_factory=dict)  # noqa: N815


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One workload; the names of the fields are the keys of the YAML.

    ``producerRate`` is messages per second of all producers together, 0: as fast as they can.
    ``consumerBacklogSizeGB`` above 0 first holds the consumers until so many GiB wait for them, lets them catch up,
    and only then runs for ``testDurationMinutes``.
    """

    name: str
    topics: int = 1
    partitionsPerTopic: int = 1  # noqa: N815
    keyDistributor: KeyDistributor = KeyDistributor.NO_KEY  # noqa: N815
    messageSize: int = 1024  # noqa: N815
    useRandomizedPayloads: bool = False  # noqa: N815
    randomBytesRatio: float = 0.0  # noqa: N815
    randomizedPayloadPoolSize: int = 0  # noqa: N815
    payloadFile: str | None = None  # noqa: N815
    subscriptionsPerTopic: int = 1  # noqa: N815
    producersPerTopic: int = 1  # noqa: N815
    consumerPerSubscription: int = 1  # noqa: N815
    producerRate: float = 0.0  # noqa: N815
    consumerBacklogSizeGB: float = 0.0  # noqa: N815
    backlogDrainRatio: float = 1.0  # noqa: N815
    testDurationMinutes: float = 5.0  # noqa: N815
    warmupDurationMinutes: float = 1.0  # noqa: N815
    driver: Driver = field(default_factory=Driver)

    @property
    def test_s(self) -> float:
        """Length of what is measured, in seconds."""
        return self.testDurationMinutes * 60

    @property
    def warmup_s(self) -> float:
        """Length of the warm-up, in seconds."""
        return self.warmupDurationMinutes * 60

    @property
    def backlog_bytes(self) -> int:
        """``consumerBacklogSizeGB`` in bytes; the benchmark counts 1024**3 as one."""
        return int(self.consumerBacklogSizeGB * 2**30)

    def lasting(self, seconds: float) -> Workload:
        """A copy with another test duration, and with a warm-up of at most a quarter of it."""
        warmup = min(self.warmupDurationMinutes, seconds / 60 / 4)
        return replace(self, testDurationMinutes=seconds / 60, warmupDurationMinutes=warmup)

    def as_dict(self) -> dict[str, Any]:
        """Plain values by key, for JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["keyDistributor"] = self.keyDistributor.value
        values["driver"] = {item.name: getattr(self.driver, item.name) for item in fields(Driver)}
        return values


def load_workload(path: Path) -> Workload:
    """The workload in ``path``. Raises ConfigError: file, key, what is expected, the nearest key that there is."""
    tree = _read(path)
    given = tree.pop("driver", None)
    values = _checked(tree, Workload, path, "")
    if given is not None:
        if isinstance(given, str):
            values["driver"] = load_driver(path.parent / given)
        else:
            values["driver"] = _driver(given, path, "driver.")
    if values.get("payloadFile"):
        values["payloadFile"] = str(path.parent / values["payloadFile"])
    values.setdefault("name", path.stem)
    workload = Workload(**values)
    _check_ranges(workload, path)
    return workload


def load_driver(path: Path) -> Driver:
    """The driver file ``path``. Raises ConfigError like :func:`load_workload`."""
    return _driver(_read(path), path, "")


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"file can't be read, {error.strerror}: path={path}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f":{place.line + 1}" if place is not None else ""
        raise ConfigError(f"{path}{line}: this is no YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys with values, like 'topics: 1'")
    return tree


def _driver(tree: Any, path: Path, prefix: str) -> Driver:
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: driver is a file name or a section with keys: value={tree!r}")
    tree = {
        key: _properties(value, path, prefix + key) if str(key).endswith("Config") else value
        for key, value in tree.items()
    }
    driver = Driver(**_checked(tree, Driver, path, prefix))
    if driver.driverClass and "kafka" not in driver.driverClass.lower():
        raise ConfigError(f"{path}: only Kafka's driver is known: {prefix}driverClass={driver.driverClass!r}")
    if driver.replicationFactor < 1:
        raise ConfigError(f"{path}: {prefix}replicationFactor must be at least 1")
    return driver


def _properties(value: Any, path: Path, key: str) -> dict[str, str]:
    """Properties as the benchmark writes them (a text of ``name=value`` lines) or as a mapping."""
    if isinstance(value, dict):
        return {str(name): _text(text) for name, text in value.items()}
    if value is None:
        return {}
    if not isinstance(value, str):
        raise ConfigError(f"{path}: {key} takes lines of name=value, or keys with values: value={value!r}")
    found: dict[str, str] = {}
    for line in value.splitlines():
        line = line.strip()
        if not line or line.startswith(("#", "!")):
            continue
        name, equals, text = line.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"{path}: {key} takes lines of name=value: line={line!r}")
        found[name.strip()] = text.strip()
    return found


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _checked(
    tree: dict[str, Any], kind: type[Workload] | type[Driver], path: Path, prefix: str
) -> dict[str, Any]:
    """The values of ``tree`` as the fields of ``kind`` want them."""
    known = {item.name: item for item in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in known:
            near = nearest(str(key), known)
            advice = f"the nearest key is {prefix}{near}" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{path}: {prefix}{key} is no key, {advice}: value={value!r}")
        item = known[key]
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        values[key] = _value(value, default, f"{path}: {prefix}{key}", optional=default is None)
    return values


def _value(value: Any, default: Any, where: str, *, optional: bool) -> Any:
    """``value`` if it has the type of the field's default; names without one are text."""
    if isinstance(default, dict):
        return value
    if isinstance(default, KeyDistributor):
        try:
            return KeyDistributor(value)
        except ValueError:
            names = ", ".join(one.value for one in KeyDistributor)
            raise ConfigError(f"{where} must be one of {names}: value={value!r}") from None
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{where} must be true or false: value={value!r}")
        return value
    if isinstance(default, int | float):
        wanted = int if isinstance(default, int) else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            kind = "an integer" if isinstance(default, int) else "a number"
            raise ConfigError(f"{where} must be {kind}: value={value!r}")
        return type(default)(value)
    if value is None and optional:
        return None
    if not isinstance(value, str):
        raise ConfigError(f"{where} must be text: value={value!r}")
    return value


def _check_ranges(workload: Workload, path: Path) -> None:
    """Refuse values that no run can have."""
    endless = float("inf")
    ranges: dict[str, tuple[float, float]] = {
        **dict.fromkeys(("topics", "partitionsPerTopic", "producersPerTopic"), (1, endless)),
        **dict.fromkeys(("subscriptionsPerTopic", "consumerPerSubscription"), (0, endless)),
        **dict.fromkeys(("producerRate", "consumerBacklogSizeGB", "warmupDurationMinutes"), (0, endless)),
        **dict.fromkeys(("randomBytesRatio", "backlogDrainRatio"), (0, 1)),
        "testDurationMinutes": (1e-3, endless),
        "messageSize": (HEADER_BYTES, endless),  # the header holds the time and number of the message
        "randomizedPayloadPoolSize": (1 if workload.useRandomizedPayloads else 0, endless),
    }
    for key, (low, high) in ranges.items():
        value = getattr(workload, key)
        if not low <= value <= high or value == endless:
            limits = f"at least {low:g}" if high == endless else f"between {low:g} and {high:g}"
            raise ConfigError(f"{path}: {key} must be {limits}: value={value!r}")
    if not workload.useRandomizedPayloads:
        _check_payload(workload, path)
    if workload.consumerBacklogSizeGB > 0:
        if workload.producerRate == 0:
            raise ConfigError(
                f"{path}: consumerBacklogSizeGB needs a producerRate, or consumers never catch up"
            )
        if not workload.subscriptionsPerTopic * workload.consumerPerSubscription:
            raise ConfigError(f"{path}: consumerBacklogSizeGB needs consumers, there are none")


def _check_payload(workload: Workload, path: Path) -> None:
    if workload.payloadFile is None:
        raise ConfigError(f"{path}: say what messages hold, with useRandomizedPayloads or payloadFile")
    try:
        size = Path(workload.payloadFile).stat().st_size
    except OSError as error:
        raise ConfigError(
            f"{path}: can't read payloadFile: {error.strerror}, path={workload.payloadFile}"
        ) from error
    if size != workload.messageSize:
        raise ConfigError(
            f"{path}: payloadFile must have messageSize bytes: file={size} messageSize={workload.messageSize}"
        )
