"""A proxy that makes a bucket of a real S3 server one of S3 Express One Zone, as far as its documentation says.

Requests carry the token of a session (CreateSession) and are signed with its credentials, not with the account's.
Objects can be appended to. Listings are in no order and ignore ``start-after``; below a prefix that doesn't end in a
slash they find nothing.
"""

from __future__ import annotations

__all__ = ("DirectoryBucketProxy", "serving_directory_bucket")

import itertools
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from html import unescape
from urllib.parse import parse_qs, quote, urlsplit

from tests.patience import HANG_S
from tests.s3_server import S3Server
from tests.store_proxy import StoreProxy

_CONTENTS = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
_ENCODING = re.compile(rb"<EncodingType>.+?</EncodingType>")
_TOKEN = re.compile(rb"<NextContinuationToken>(.+?)</NextContinuationToken>")
#: What the server's answer depends on; it is signed anew, with the account's credentials.
_PASSED_ON = (
    "range",
    "if-none-match",
    "if-match",
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-meta-penstockswap",
)

_Answer = tuple[int, list[tuple[str, str]], bytes]


class DirectoryBucketProxy(StoreProxy):
    """In front of ``server``; ``life_s`` is that of a session, ``page_keys`` those in a page of a listing."""

    def __init__(self, server: S3Server, life_s: float, page_keys: int) -> None:
        super().__init__(server)
        self.life_s = life_s
        self.page_keys = page_keys
        #: Without, what is to be appended replaces what is there.
        self.appends = True
        #: Tokens of sessions, with what begins the signatures made in it.
        self._sessions: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._appending = threading.Lock()

    @property
    def sessions(self) -> int:
        """How many were made."""
        return len(self._sessions)

    def exchange(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> _Answer:
        """See ``StoreProxy``."""
        query = parse_qs(urlsplit(path).query, keep_blank_values=True)
        signer = re.match(r".*Credential=(\S+?)/\d{8}/[^/]+/s3express/", headers.get("Authorization", ""))
        key = signer[1] if signer else ""
        if "session" in query:
            return self._new_session() if key == S3Server.access_key else _refused(403, "AccessDenied")
        token = headers.get("x-amz-s3session-token", "")
        if not key or self._sessions.get(token) != key:
            return _refused(403, "AccessDenied")
        if "list-type" in query:
            return self._list(urlsplit(path).path, {name: values[0] for name, values in query.items()})
        assert isinstance(self.server, S3Server)
        if self.appends and (offset := headers.get("x-amz-write-offset-bytes")) is not None:
            return self._append(path, int(offset), body)
        passed = {name: value for name, value in headers.items() if name.lower() in _PASSED_ON}
        return self.server.ask(method, path, body, passed)

    def _new_session(self) -> _Answer:
        number = next(self._numbers)
        key, token = f"session-key-{number}", f"session-token-{number}"
        self._sessions[token] = key
        ends = datetime.now(UTC) + timedelta(seconds=self.life_s)
        answer = (
            "<?xml version='1.0'?><CreateSessionResult><Credentials>"
            f"<SessionToken>{token}</SessionToken><SecretAccessKey>s</SecretAccessKey><AccessKeyId>{key}</AccessKeyId>"
            f"<Expiration>{ends:%Y-%m-%dT%H:%M:%SZ}</Expiration></Credentials></CreateSessionResult>"
        )
        return 200, [("Content-Type", "application/xml")], answer.encode()

    def _append(self, path: str, offset: int, body: bytes) -> _Answer:
        """The server can't, so all is put anew, one after the other."""
        assert isinstance(self.server, S3Server)
        with self._appending:
            status, _, there = self.server.ask("GET", path)
            there = there if status == 200 else b""
            if len(there) != offset:
                return _refused(400, "InvalidWriteOffset")
            return self.server.ask("PUT", path, there + body)

    def _list(self, bucket: str, query: Mapping[str, str]) -> _Answer:
        prefix = query.get("prefix", "")
        found: list[bytes] = []
        encoding = b""  # as the server tells, which needn't encode keys
        if not prefix or prefix.endswith("/"):
            assert isinstance(self.server, S3Server)
            asked = f"{bucket}?encoding-type=url&list-type=2&prefix={quote(prefix, safe='')}"
            more: str | None = ""
            while more is not None:
                status, _, body = self.server.ask("GET", asked + more)
                assert status == 200, body
                found += _CONTENTS.findall(body)
                encoding = encoding or b"".join(_ENCODING.findall(body)[:1])
                token = _TOKEN.search(body)
                more = f"&continuation-token={quote(unescape(token[1].decode()), safe='')}" if token else None
        shuffled = found[1::2] + found[::2][::-1]
        at = int(query.get("continuation-token", "0"))
        rest = len(shuffled) > at + self.page_keys
        told = f"<NextContinuationToken>{at + self.page_keys}</NextContinuationToken>" if rest else ""
        answer = (
            b"<?xml version='1.0'?><ListBucketResult>%s<IsTruncated>%s</IsTruncated>%s%s</ListBucketResult>"
        ) % (
            encoding,
            str(rest).lower().encode(),
            told.encode(),
            b"".join(shuffled[at : at + self.page_keys]),
        )
        return 200, [("Content-Type", "application/xml")], answer


def _refused(status: int, code: str) -> _Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    return status, [("Content-Type", "application/xml")], body


@contextmanager
def serving_directory_bucket(
    server: S3Server, *, life_s: float = 300, page_keys: int = 3
) -> Iterator[tuple[DirectoryBucketProxy, str]]:
    """A running proxy, and the name of a new bucket behind it."""
    proxy = DirectoryBucketProxy(server, life_s, page_keys)
    thread = threading.Thread(target=proxy.run, name="directory-bucket")
    thread.start()
    try:
        yield proxy, server.make_bucket(f"logs-{id(proxy):x}--euc1-az1--x-s3")
    finally:
        proxy.stop()
        thread.join(HANG_S)
