"""From raw values to a typed model, and from pydantic's complaints to one sentence."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from penstock.config._toml import parse_value
from penstock.errors import ConfigError
from penstock.spi.settings import Settings
from penstock.units import format_duration, format_size

S = TypeVar("S", bound=Settings)

#: Names of what must not be shown, as Python, Java or HTTP write them. ``key`` alone is an access key; in
#: ``partition_key`` or ``keys_max`` it is none.
_SECRET = re.compile(
    r"secret|passw(or)?d|passphrase|credential|token|signature|authorization|cookie|connection[-_.]?string|"
    r"^(pwd|pass|sas|sig|key)$|(access|account|api|auth|customer|encryption|private|shared|sas)[-_.]?key",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"(//)[^/@\s]+@")
_PARAMETER = re.compile(r"(?<=[?&])([^=&\s]+)=([^&#\s]+)")
_VALUE_LENGTH_MAX = 120


class Origin(NamedTuple):
    """The place that a value came from."""

    #: ``default``, ``file``, ``environment``, ``set``, ``program``, ``derived`` or ``several``.
    layer: str
    #: The place for people: ``penstock.toml:12``, ``PENSTOCK__BROKER__RACK``, ``--set broker.rack``.
    place: str

    @property
    def is_text(self) -> bool:
        """Values of these layers are always strings; their type is the key's business."""
        return self.layer in {"environment", "set"}


DEFAULT = Origin("default", "default")

#: Origins by path, for instance ``("listener", "bind")``; a nested key may only have its parent's.
Origins = Mapping[tuple[str, ...], Origin]


def dotted(path: Iterable[str]) -> str:
    """A key as people write it: ``wal.replicas[1].url`` for ``("wal", "replicas", "1", "url")``."""
    key = ""
    for name in path:
        key += f"[{name}]" if name.isdecimal() and key else f".{name}" if key else name
    return key


def path_of(key: str) -> tuple[str, ...]:
    """The path of a dotted key; the inverse of :func:`dotted`, which ``wal.replicas.1.url`` is as good for."""
    return tuple(key.replace("[", ".").replace("]", "").split("."))


def origin_of(path: tuple[str, ...], origins: Origins) -> Origin:
    """The origin of a key or of its nearest parent."""
    for depth in range(len(path), 0, -1):
        if path[:depth] in origins:
            return origins[path[:depth]]
    return DEFAULT


def origin_of_table(path: tuple[str, ...], origins: Origins) -> Origin:
    """The origin of a key; for a table, all places that its keys came from."""
    places = {place for known, place in origins.items() if known[: len(path)] == path != known}
    own = origins.get(path)
    if own is not None and own.layer not in {place.layer for place in places}:
        places.add(own)  # a table written in one go, with keys from elsewhere on top
    if len(places) > 1:
        return Origin("several", ", ".join(place.place for place in sorted(places)))
    return places.pop() if places else origin_of(path, origins)


def nearest(name: str, candidates: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The candidate that ``name`` most probably meant, or None."""
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=cutoff)
    return found[0] if found else None


def redact(path: tuple[str, ...], value: Any) -> Any:
    """``value`` without secrets: of keys that sound like one, and users and such parameters of URLs."""
    if value in (None, "", (), {}) or isinstance(value, bool):
        return value
    if path and _SECRET.search(path[-1]):
        return "***"
    if isinstance(value, str):
        value = _USERINFO.sub(r"\1***@", value)
        return _PARAMETER.sub(lambda one: f"{one[1]}=***" if _SECRET.search(one[1]) else one[0], value)
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        return {key: redact((*path, str(key)), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(path, inner) for inner in value]
    return value


def refusal(
    path: tuple[str, ...], problem: str, value: Any, origins: Origins, field: FieldInfo | None = None
) -> ConfigError:
    """The one sentence: origin, key, what is wrong with it, value (unless that is a secret)."""
    shown = "***" if field is not None and is_secret(field) else repr(redact(path, value))
    if len(shown) > _VALUE_LENGTH_MAX:
        shown = f"{shown[:_VALUE_LENGTH_MAX]}..."
    return ConfigError(f"{origin_of_table(path, origins).place}: {dotted(path)} {problem}: value={shown}")


def unknown_key(
    path: tuple[str, ...], candidates: Iterable[str], value: Any, origins: Origins
) -> ConfigError:
    """The sentence for a key that isn't there. ``candidates`` are full dotted keys."""
    candidates = sorted(candidates)
    key = dotted(path)
    leaves = {candidate.rpartition(".")[2]: candidate for candidate in reversed(candidates)}
    section = f"{dotted(path[:-1])}."
    # Keys of the same section are compared without it: what all have in common makes no two of them alike.
    siblings = {
        candidate.removeprefix(section): candidate
        for candidate in candidates
        if candidate.startswith(section)
    }
    near = (
        siblings.get(nearest(path[-1], siblings) or "")
        or nearest(key, [candidate for candidate in candidates if candidate not in siblings.values()])
        or leaves.get(nearest(path[-1], leaves) or "")
    )
    if near is not None:
        advice = f"the nearest key is {near}"
    elif candidates:
        advice = f"the keys are {', '.join(siblings.values() or candidates)}"
    else:
        advice = f"there are no keys in {dotted(path[:-1])}"
    return refusal(path, f"is no configuration key, {advice}", value, origins)


def validate(
    model: type[S],
    raw: Mapping[str, Any],
    section: str,
    origins: Origins,
    *,
    siblings: Iterable[str] = (),
) -> S:
    """``raw`` as a ``model``. ``siblings`` are further keys of the section, for suggestions only.

    ``section`` may be the dotted key of a table within one. Raises ConfigError, about the first thing that is wrong
    in the order of the file.
    """
    values = {}
    within = path_of(section)
    for name, value in raw.items():
        path = (*within, name)
        field = model.model_fields.get(name)
        values[name] = value if field is None else _prepare(field, path, value, origins)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        details = sorted(error.errors(), key=lambda detail: _place_order((*within, *_names(detail)), origins))
        raise _sentence(model, details[0], within, origins, siblings) from None


def _place_order(path: tuple[str, ...], origins: Origins) -> tuple[bool, int]:
    place = origin_of(path, origins).place
    line = place.rpartition(":")[2]
    return (not line.isdecimal(), int(line) if line.isdecimal() else 0)


def _names(detail: Any) -> tuple[str, ...]:
    """The path of the key, without pydantic's marks for alternatives of a union, and for items that are no tables."""
    parts = detail["loc"]
    names = []
    for at, part in enumerate(parts):
        if not re.fullmatch(r"[\w-]+", str(part)) or (isinstance(part, int) and at + 1 == len(parts)):
            break
        names.append(str(part))
    return tuple(names)


def _sentence(
    model: type[Settings], detail: Any, within: tuple[str, ...], origins: Origins, siblings: Iterable[str]
) -> ConfigError:
    names = _names(detail)
    path = (*within, *names)
    section = dotted(within)
    value = detail.get("input")
    if detail["type"] == "extra_forbidden":
        keys = {f"{section}.{name}" for name in (*model.model_fields, *siblings)}
        if len(names) > 1:
            keys = _nested_keys(model, path)
        return unknown_key(path, keys, value, origins)
    field = model.model_fields.get(names[0]) if names else None
    if detail["type"] == "missing":
        return ConfigError(
            f"{dotted(path)} is required and has no default: set it in the file, with --set, or with the "
            f"variable PENSTOCK__{'__'.join(path).upper()}"
        )
    if detail["type"] == "value_error" and (field is None or field_format(field) is None):
        reason = str(detail.get("ctx", {}).get("error", detail["msg"]))
        reason = " ".join(reason.partition(": value=")[0].split())
        if not names:  # about several keys together: the values are all of the section, so they are left out
            places = sorted(
                {origin.place for known, origin in origins.items() if known[: len(within)] == within}
            )
            return ConfigError(
                f"{', '.join(places) or 'default'}: the keys of {section} don't fit together, {reason}"
            )
        return refusal(path, f"is wrong, {reason}", value, origins, field)
    expected = expectation(field) if field is not None else ""
    return refusal(
        path, f"must be {expected}" if expected else f"is wrong, {detail['msg']}", value, origins, field
    )


def _nested_keys(model: type[Settings], path: tuple[str, ...]) -> set[str]:
    inner: Any = model
    for name in path[1:-1]:
        field = getattr(inner, "model_fields", {}).get(name)
        inner = field.annotation if field is not None else None
    return {dotted((*path[:-1], name)) for name in getattr(inner, "model_fields", {})}


def is_secret(field: FieldInfo) -> bool:
    """Whether a field's author marked it, ``json_schema_extra={"secret": True}``, as not to be shown."""
    return isinstance(field.json_schema_extra, Mapping) and bool(field.json_schema_extra.get("secret"))


def _metadata(field: FieldInfo) -> list[Any]:
    """The annotations of a field's type, also those of ``Size | None``, which pydantic leaves in the union."""
    inner = [item for item in get_args(field.annotation) if get_origin(item) is Annotated]
    return [*field.metadata, *(extra for item in inner for extra in get_args(item)[1:])]


def field_format(field: FieldInfo) -> str | None:
    """``size``, ``duration`` or ``size or -1`` for such fields, else None."""
    for item in _metadata(field):
        schema = getattr(item, "json_schema", None)
        if isinstance(schema, Mapping) and "format" in schema:
            return str(schema["format"])
    return None


_TYPE_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
}
_FORMAT_WORDS = {
    "size": "a size like 512MiB",
    "size or -1": "a size like 512MiB, or -1",
    "duration": "a duration like 250ms, 30s or 7d",
}
_FORMATTERS: dict[str, Callable[[int], str]] = {
    "size": format_size,
    "size or -1": lambda bound: "-1" if bound == -1 else format_size(bound),
    "duration": format_duration,
}


def expectation(field: FieldInfo) -> str:
    """The values that ``field`` takes, for people: ``an integer, at least 1``."""
    written = field_format(field)
    words = _FORMAT_WORDS[written] if written in _FORMAT_WORDS else _type_words(field.annotation)
    bounds = " and ".join(_bounds(field))
    return f"{words}, {bounds}" if bounds else words


def _type_words(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type_words(get_args(annotation)[0])
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join(_type_words(item) for item in get_args(annotation) if item is not type(None))
    if origin in (list, tuple, set, frozenset):
        if any(hasattr(item, "model_fields") for item in get_args(annotation)):
            return "a list of tables"
        return "a list of strings" if str in get_args(annotation) else "a list"
    if origin in (dict, Mapping) or annotation is dict or hasattr(annotation, "model_fields"):
        return "a table"
    return _TYPE_WORDS.get(annotation, getattr(annotation, "__name__", "of another type"))


def _bounds(field: FieldInfo) -> Iterable[str]:
    for item in _metadata(field):
        for name, words in (
            ("ge", "at least {}"),
            ("gt", "above {}"),
            ("le", "at most {}"),
            ("lt", "below {}"),
            ("min_length", "at least {} long"),
            ("max_length", "at most {} long"),
        ):
            bound = getattr(item, name, None)
            if bound is not None:
                yield words.format(_FORMATTERS.get(field_format(field) or "", str)(bound))
        pattern = getattr(item, "pattern", None)
        if isinstance(pattern, str):
            example = f", like {field.default}" if isinstance(field.default, str) else ""
            yield f"of the form {pattern.removeprefix('^').removesuffix('$')}{example}"


def _prepare(field: FieldInfo, path: tuple[str, ...], value: Any, origins: Origins) -> Any:
    """The value for pydantic: text from the environment as the key's type, a TOML value only if it is of that type.

    Pydantic alone would take ``true`` for an integer and ``"12"`` from a file for 12.
    """
    annotation = plain_type(field.annotation)
    origin = origin_of(path, origins)
    if isinstance(value, str) and origin.is_text:
        if get_origin(annotation) in (list, tuple, set, frozenset):
            tables = any(hasattr(item, "model_fields") for item in get_args(annotation))
            return parse_value(value) if tables else _split(value)
        is_table = annotation is dict or get_origin(annotation) is dict or hasattr(annotation, "model_fields")
        return parse_value(value) if is_table else value
    if (
        field_format(field) == "duration"
        and origin.layer == "file"
        and value != -1
        and not isinstance(value, str)
    ):
        raise refusal(path, f"must be {expectation(field)}", value, origins, field)
    written = field_format(field) is not None or any(hasattr(item, "func") for item in _metadata(field))
    if written or annotation not in (bool, int, float, str):
        return value
    wanted = (int, float) if annotation is float else annotation
    if value is not None and (
        not isinstance(value, wanted) or (isinstance(value, bool) and annotation is not bool)
    ):
        raise refusal(path, f"must be {expectation(field)}", value, origins, field)
    return value


def plain_type(annotation: Any) -> Any:
    """``X`` for ``X | None`` and for ``Annotated[X, ...]``."""
    if get_origin(annotation) in (Union, types.UnionType):
        others = [item for item in get_args(annotation) if item is not type(None)]
        return plain_type(others[0]) if len(others) == 1 else annotation
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _split(text: str) -> list[str]:
    """``a,b`` or ``["a", "b"]`` as a list."""
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    return [item.strip().strip("\"'") for item in inner.split(",") if item.strip()]
