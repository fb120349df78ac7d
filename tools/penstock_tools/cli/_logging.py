"""The log of `penstock serve`: lines for people, or JSON for collectors; to stderr, or to a file that rotates."""

from __future__ import annotations

__all__ = ("JsonFormatter", "check_log_file", "set_up_logging")

import errno
import io
import json
import logging
import os
import sys
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import TYPE_CHECKING, Final

from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.config import Config

_TEXT_FORMAT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
#: Client libraries of object stores.
_TALKATIVE: Final = (
    "adlfs",
    "aiobotocore",
    "azure",
    "botocore",
    "fsspec",
    "gcsfs",
    "google",
    "msal",
    "s3fs",
)
#: What every record has: the rest came with ``extra``.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, then what came with it.

    A traceback is the string ``exception``. Fields that a log call added with ``extra`` follow under their names.
    """

    def format(self, record: logging.LogRecord) -> str:
        """``record`` as JSON, without a line end in it."""
        time = datetime.fromtimestamp(record.created, UTC)
        fields: dict[str, object] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return json.dumps(fields, default=str, ensure_ascii=False)


class _LogFile(WatchedFileHandler):
    """Appends; opens the file anew after it was renamed or removed. Its readers are the owner and the group."""

    def _open(self) -> io.TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        return open(descriptor, "a", encoding="utf-8", errors="backslashreplace")


def set_up_logging(config: Config) -> None:
    """Have the root logger write as the section ``logging`` says. Raises ConfigError if its file can't be opened."""
    settings = config.tree.logging
    handler: logging.Handler
    if settings.file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            handler = _LogFile(os.path.expanduser(settings.file))
        except OSError as error:
            raise _refused_file(config, error) from error
    handler.setFormatter(JsonFormatter() if settings.format == "json" else logging.Formatter(_TEXT_FORMAT))
    logging.basicConfig(level=settings.level.upper(), handlers=[handler])
    # They tell of each request with its headers, session token included, from DEBUG on, and of where credentials came
    # from at INFO.
    least = logging.INFO if settings.level == "debug" else logging.WARNING
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(least)


def check_log_file(config: Config) -> None:
    """Raise ConfigError if the log's file couldn't be opened; it isn't made."""
    if config.tree.logging.file is None:
        return
    path = os.path.expanduser(config.tree.logging.file)
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if os.path.exists(path):
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC))
        else:
            directory = os.path.dirname(os.path.abspath(path))
            os.stat(directory)
            if not os.access(directory, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _refused_file(config, error) from error


def _refused_file(config: Config, error: OSError) -> ConfigError:
    return ConfigError(
        f"{config.origin('logging.file').place}: logging.file can't be opened, make its directory and let "
        f"the broker write there: path={config.tree.logging.file} error={error.strerror}"
    )
