"""The names allowed in ``options``: a mistyped name is refused before anything is connected.

The file systems of fsspec take any keyword and ignore those that they don't know, so a typing mistake in
``endpoint_url`` would send a broker to another store.
"""

from __future__ import annotations

__all__ = ("check_options", "find_filesystem", "protocol_of")

import difflib
import inspect
import os
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

#: The extra of this distribution that brings the package for a protocol.
_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}
_BUILT_IN = frozenset({"file", "local", "memory"})
#: What every fsspec file system takes, beside the names in its signature.
_GENERIC = frozenset({"max_paths", "listings_expiry_time"})
#: What the plugin decides itself.
_OURS = frozenset({"asynchronous", "loop", "skip_instance_cache", "use_listings_cache"})


def protocol_of(url: str) -> str:
    """The protocol of a store's URL. Raises ValueError if the URL means nothing to this plugin."""
    protocol, separator, place = url.partition("://")
    if not separator or not protocol:
        raise ValueError("it has no protocol, write it like file://objects or s3://bucket/prefix")
    if protocol in {"file", "local"} and not place:
        raise ValueError("it names no directory, write it like file://objects")
    if protocol in _BUILT_IN:
        return protocol
    bucket = place.partition("/")[0]
    if protocol not in _EXTRAS or not bucket or "@" in bucket:
        raise ValueError(
            "it is not understood, write it like file://objects, memory://name, s3://bucket/prefix, "
            "gs://bucket/prefix or az://container/prefix"
        )
    return protocol


def find_filesystem(protocol: str) -> tuple[Any, str]:
    """The fsspec class for a protocol, and the extra that it came with; (None, "") for local files and memory.

    Raises ImportError that says what to install.
    """
    if protocol in _BUILT_IN:
        return None, ""
    extra = _EXTRAS[protocol]
    try:
        import fsspec

        return fsspec.get_filesystem_class(protocol), extra
    except ImportError as error:
        raise ImportError(
            f"a package for {protocol}:// is missing, install it with pip install 'penstock[{extra}]'"
        ) from error


def check_options(protocol: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError, without any value in it, if a name or an address in ``options`` can't be meant.

    Raises ImportError if the package for the protocol is missing.
    """
    found, extra = find_filesystem(protocol)
    if found is None:
        if options:
            raise ValueError(f"a {protocol}:// url takes no options")
        return
    ours = sorted(_OURS & options.keys())
    if ours:
        raise ValueError(f"{ours[0]} is decided by the plugin, take it out")
    if isinstance(found, type):
        _check_names(found.__name__, options, _parameters(found) | _GENERIC)
    if extra == "s3":
        _check_s3(options)


def _parameters(filesystem: type) -> frozenset[str]:
    """Names that the constructors of a class and its bases take."""
    names: set[str] = set()
    for base in filesystem.__mro__:
        if "__init__" not in vars(base):
            continue
        for parameter in inspect.signature(vars(base)["__init__"]).parameters.values():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                names.add(parameter.name)
    return frozenset(names - {"self"})


def _check_names(what: str, given: Iterable[str], known: frozenset[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
            advice = (
                f"the nearest is {near[0]}"
                if near
                else f"those there are: {', '.join(sorted(known - _OURS))}"
            )
            raise ValueError(f"{name} is no option of {what}, {advice}")


def _check_s3(options: Mapping[str, Any]) -> None:
    from botocore.config import Config
    from botocore.session import Session

    create_client = frozenset(inspect.signature(Session.create_client).parameters) - {"self", "service_name"}
    for name, known in (
        ("client_kwargs", create_client - {"config"}),
        ("config_kwargs", frozenset(Config.OPTION_DEFAULTS)),
    ):
        table = options.get(name)
        if table is not None:
            if not isinstance(table, Mapping):
                raise ValueError(f"{name} must be a table")
            _check_names(name, table, known)
    for endpoint in (options.get("endpoint_url"), (options.get("client_kwargs") or {}).get("endpoint_url")):
        if endpoint is None:
            continue
        parts = urlsplit(endpoint) if isinstance(endpoint, str) else None
        if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("endpoint_url must be an http or https URL, like https://minio.example.org:9000")
    verify = (options.get("client_kwargs") or {}).get("verify")
    if isinstance(verify, str) and not os.path.exists(verify):
        raise ValueError("client_kwargs.verify names no file that is there")
    if ("key" in options) != ("secret" in options):
        raise ValueError("key and secret go together, give both or leave both to the usual chain of AWS")
