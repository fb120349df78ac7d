"""Errors of catalogs, stores and libraries, as Penstock's: one sentence, and no secret in it."""

from __future__ import annotations

__all__ = ("NotSentError", "Secrets", "cause_of", "passed_over", "translated")

import errno
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyiceberg.exceptions import (
    CommitFailedException,
    ForbiddenError,
    NoSuchIcebergTableError,
    NoSuchNamespaceError,
    NoSuchPropertyException,
    NoSuchTableError,
    RESTError,
    UnauthorizedError,
    ValidationError,
)
from requests.exceptions import RequestException
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from penstock.errors import ConflictError, CorruptError, NotFoundError, PenstockError, UnavailableError

logger = logging.getLogger("penstock.lake.iceberg")

_SECRET_KEY = re.compile(
    r"secret|password|token|credential|key|connection.?string|authorization|signature|cookie", re.IGNORECASE
)
#: Secrets within values: behind a user's name, as a parameter of a URL, in a connection string, behind a scheme.
_WITHIN = re.compile(
    r"://[^/@:]*:([^/@]+)@|[?&;](?:password|sig|(?:account|sharedaccess)(?:key|signature))=([^&;\s]+)|"
    r"(?:bearer|basic) (\S+)",
    re.IGNORECASE,
)
_TAKEN = (
    "the catalog has something of this name that is no table of Iceberg's, choose another name with "
    "penstock.lake.table, or drop it"
)
#: Errors of Hive's metastore come from these, and those of clouds' SDKs from those, in classes without a common base.
_METASTORE = ("hive_metastore", "thrift")
_CLOUDS = ("aiobotocore", "aiohttp", "azure", "boto3", "botocore", "fsspec", "gcsfs", "google", "s3fs")


class NotSentError(UnavailableError):
    """A commit wasn't sent, and never will be: what it waited for didn't come."""


class Secrets:
    """Takes passwords and keys out of texts."""

    def __init__(self, properties: Mapping[str, str]) -> None:
        found = {value for key, value in properties.items() if _SECRET_KEY.search(key)}
        for value in properties.values():
            found.update(part for parts in _WITHIN.findall(value) for part in parts)
        self._found = sorted((one for one in found if len(one) > 3), key=len, reverse=True)

    def hide(self, text: str) -> str:
        """The text with ``***`` for each of them."""
        for secret in self._found:
            text = text.replace(secret, "***")
        return text


def cause_of(error: Exception) -> str:
    """What an error says, in one line; of a database's without the statement and SQLAlchemy's advice around it."""
    said = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return " ".join(str(said).split()) or type(said).__name__


@contextmanager
def translated(what: str, secrets: Secrets, **places: object) -> Iterator[None]:
    """Raise errors from outside as Penstock's; ``what`` was to be done, and ``places`` are the values for the end.

    Bugs pass as they are.
    """
    try:
        yield
    except PenstockError:
        raise
    except Exception as error:
        kind = _kind(error)
        if kind is None:
            raise
        why, known = kind
        cause = secrets.hide(cause_of(error))[:300]
        where = "".join(f" {key}={value}" for key, value in places.items())
        raise known(
            f"{what} failed, {why}:{where} cause={cause}"
        ) from None  # of the cause secrets weren't taken out


@contextmanager
def passed_over(what: str) -> Iterator[None]:
    """Go on after an error from outside: ``what`` was to be done is done by somebody later. Bugs pass as they are."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, PenstockError) and _kind(error) is None:
            raise
        logger.debug("%s failed, which is passed over: error=%s", what, type(error).__name__)


def _kind(error: Exception) -> tuple[str, type[PenstockError]] | None:
    """What to say, and the class; None for what isn't from outside."""
    if isinstance(error, CommitFailedException):
        return "somebody else changed the table meanwhile", ConflictError
    if isinstance(error, NoSuchIcebergTableError | NoSuchPropertyException):
        return _TAKEN, ConflictError
    if isinstance(error, NoSuchTableError | NoSuchNamespaceError):
        return "there is no such table", NotFoundError
    if isinstance(error, UnauthorizedError | ForbiddenError):
        return "the catalog refuses these credentials", UnavailableError
    if isinstance(error, RESTError | RequestException | SQLAlchemyError):
        return "the catalog can't be used for now", UnavailableError
    if isinstance(error, ValidationError):
        return (
            "what the catalog or the table's metadata say can't be understood, they are damaged or newer",
            CorruptError,
        )
    if isinstance(error, FileNotFoundError):
        return "the bucket or a file of the table isn't there", CorruptError
    if isinstance(error, PermissionError):
        return "the warehouse refuses access, check its credentials and rights", UnavailableError
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "the warehouse is full, make room", UnavailableError
        return "the warehouse can't be used for now", UnavailableError
    library = type(error).__module__.partition(".")[0]
    if library in _METASTORE:
        return "the catalog can't be used for now", UnavailableError
    if library in _CLOUDS:
        return "the warehouse can't be used for now", UnavailableError
    return None
