"""Cloud buckets through asynchronous fsspec file systems: attempts, retries and what their errors mean.

Each client library retries by itself, and aiohttp sends a PUT once more when a kept-alive connection drops. So a
conditional creation may report a conflict with itself: on every conflict, and after every attempt of unknown
outcome, the object is read back and compared.
"""

from __future__ import annotations

__all__ = ("SWAP_MARK", "Backoff", "DeniedError", "RemoteBackend", "shown_code", "status_of")

import random
import re
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import anyio

from penstock.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    UnavailableError,
    again,
    kept,
)
from penstock.spi.object_store import MultipartUpload, ObjectInfo, ObjectStoreCapabilities
from penstock.spi.plugin import Buffer
from penstock_object_store_fsspec._backend import Health, body_size, check_range
from penstock_object_store_fsspec._settings import Settings

T = TypeVar("T")

#: What an object that was swapped has beside its bytes, under a name that every store takes: whose swap it was.
SWAP_MARK = "penstockswap"
_CAPABILITIES = ObjectStoreCapabilities(
    put_if_absent=True, compare_and_swap=True, durable=True, durability_domain="region"
)
_DELAY_S_MIN = 0.05
_DELAY_S_MAX = 2.0
_DELETES_IN_FLIGHT_MAX = 16
#: Somebody waits for a connection to fail.
_CLEAR_UP_S_MAX = 5
#: A start waits for it, and no broker swaps or appends. GCS takes one write of an object a second.
_PROOF_S_MAX = 3
#: One request whatever the size: in more than one, some stores forget the condition. S3 takes 5 GiB.
_ONE_REQUEST_BYTES = 5 * 2**30
#: What S3 answers with 400.
_REFUSED_TOKENS = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})
_BUGS = (AssertionError, NameError, NotImplementedError)
#: What a library or this module stumbles over where an answer has something of another type than the API has.
_UNREADABLE = frozenset({"AttributeError", "TypeError"})
#: Requests that may be told of an object that is there, and those that no missing object is an answer to.
_CONDITIONAL = frozenset({"create", "probe", "swap"})
_OF_NO_OBJECT = frozenset({"create", "create upload", "delete many", "list", "probe", "put"})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/")
_CODE = re.compile(r"[A-Za-z0-9._-]{1,64}")


class DeniedError(UnavailableError):
    """Another attempt gives the same: refused or missing credentials, no bucket, an answer that lacks something."""


class RangeError(InvalidRequestError):
    """The store answered 416, range not satisfiable."""


def _endpoint(options: Mapping[str, Any]) -> str:
    """Scheme, host and port of the server that the options name; no user, password, path or query."""
    client = options.get("client_kwargs")
    for named in (
        options.get("endpoint_url"),
        client.get("endpoint_url") if isinstance(client, dict) else None,
    ):
        if isinstance(named, str) and named:
            parts = urlsplit(named)
            return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return ""


class RemoteBackend:
    """What stores over the network have in common; a subclass for each has its requests."""

    def __init__(
        self,
        filesystem: Any,
        location: str,
        bucket: str,
        prefix: str,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self.filesystem = filesystem
        self.location = location
        self.bucket = bucket
        self.prefix = prefix
        self.settings = settings
        self.capabilities = _CAPABILITIES
        self.endpoint = _endpoint(settings.options)
        self.health = Health()
        self._clock = clock

    # --- requests, one attempt each --------------------------------------------------------------------

    async def start_session(self) -> None:
        """Connect, where the library has a step for that."""

    async def end_session(self) -> None:
        """Close connections."""
        session = getattr(self.filesystem, "_session", None)
        client = getattr(self.filesystem, "service_client", None)
        for closable in (session, client):
            if closable is not None:
                await closable.close()

    async def request_get(self, key: str, start: int, end: int | None) -> Buffer:
        """The range; at least one byte of it is asked for."""
        raise NotImplementedError

    async def request_head(self, key: str) -> ObjectInfo:
        """Size and token."""
        raise NotImplementedError

    async def request_put(self, key: str, data: bytes, mode: str) -> str:
        """Write, replacing (``overwrite``) or only if there is no such object (``create``); the token."""
        raise NotImplementedError

    async def request_swap(self, key: str, data: bytes, token: str, mark: str) -> str:
        """Write, only if the object's token is ``token``, and ``mark`` beside it; the new token."""
        raise NotImplementedError

    async def request_mark(self, key: str) -> tuple[str, str]:
        """The mark of the swap that wrote the object, empty if none did, and the token."""
        raise NotImplementedError

    async def delete_one(self, key: str) -> None:
        """Delete one object."""
        raise NotImplementedError

    async def request_delete(self, keys: Sequence[str]) -> None:
        """Delete all of them, each request repeated by itself; here with one request a key."""
        limiter = anyio.CapacityLimiter(_DELETES_IN_FLIGHT_MAX)
        errors: list[UnavailableError] = []

        async def delete(key: str) -> None:
            async with limiter:
                try:
                    await self.request("delete", key, lambda: self.delete_one(key))
                except NotFoundError:
                    return
                except UnavailableError as error:
                    errors.append(kept(error))

        async with anyio.create_task_group() as tasks:
            for key in keys:
                tasks.start_soon(delete, key)
        if errors:
            raise again(errors[0])

    def request_list(self, prefix: str, start_after: str) -> AsyncIterator[Sequence[ObjectInfo]]:
        """Pages in order, each request repeated by itself."""
        raise NotImplementedError

    # --- attempts --------------------------------------------------------------------------------------

    async def attempt(self, action: str, key: str, call: Callable[[], Awaitable[T]]) -> T:
        """One attempt with a deadline, its errors translated."""
        try:
            with anyio.fail_after(self.settings.request_timeout_ms / 1000):
                result = await call()
        except (PenstockError, *_BUGS):
            raise
        except Exception as error:
            raise self._noted(self._translate(action, key, error)) from error
        self.health.worked()
        return result

    def _noted(self, error: PenstockError) -> PenstockError:
        if isinstance(error, UnavailableError):
            self.health.failed(error)
        else:
            self.health.worked()
        return error

    async def request(self, action: str, key: str, call: Callable[[], Awaitable[T]]) -> T:
        """Attempts until one succeeds or the budget is used up; for what may be done twice."""
        backoff = Backoff(self._clock, self.settings.retry_budget_ms)
        while True:
            try:
                return await self.attempt(action, key, call)
            except DeniedError:
                raise
            except UnavailableError:
                if not await backoff.wait():
                    raise

    def told(self, action: str, key: str, field: str, value: T | None) -> T:
        """``value``, which the answer has as ``field``. Raises DeniedError if the answer has none."""
        if value is None:
            raise self.lacks(action, key, field)
        return value

    def lacks(self, action: str, key: str, field: str) -> DeniedError:
        """Whatever answers leaves out what the store's API has."""
        return DeniedError(
            "an answer of the object store lacks a field, its endpoint must be that of the store's API, without a "
            f"proxy that leaves something out: {self._where(action, key, field=field)}"
        )

    def check_told_range(self, key: str, start: int, told: str | None, size: int) -> None:
        """That an answer of ``size`` bytes is from ``start`` on and whole, by what it has as ``Content-Range``."""
        found = _CONTENT_RANGE.match(told or "")
        first, last = map(int, found.groups()) if found else (0, size - 1)
        if first != start:
            raise self.ignores_ranges(key)
        if last - first + 1 != size:
            raise ValueError("the answer was cut")

    def ignores_ranges(self, key: str) -> DeniedError:
        """Whatever answers gives another part of an object, or all of it, for a part."""
        return DeniedError(
            "the object store answers with another range than it was asked for, its endpoint must be that "
            f"of the store's API, without a proxy that leaves something out: {self._where('get', key)}"
        )

    def _where(self, action: str, key: str, **values: str) -> str:
        """What was asked of which store, and ``values`` that aren't empty, for the end of a sentence."""
        known = {
            "key": repr(key) if key else "",
            "location": self.location,
            "endpoint": self.endpoint,
            "action": action,
        }
        return " ".join(f"{name}={value}" for name, value in (known | values).items() if value)

    def _translate(self, action: str, key: str, error: Exception) -> PenstockError:
        """What went wrong, and what to do about it: another attempt (UnavailableError), or something else first.

        Messages of client libraries aren't shown: some contain signed URLs.
        """
        status, code = status_of(error)
        name = type(error).__name__
        where = self._where(action, key, status=str(status or ""), code="" if code == str(status) else code)
        if name == "ProfileNotFound":
            return DeniedError(
                "the profile isn't in AWS's configuration files, correct AWS_PROFILE or "
                f"object_store.options.profile: {where}"
            )
        if name in {"NoCredentialsError", "PartialCredentialsError"}:
            return DeniedError(
                "no credentials for the object store were found, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a "
                f"profile, a role of this machine, or object_store.options.key and secret: {where}"
            )
        refused = status in {401, 403} or isinstance(error, PermissionError) or code in _REFUSED_TOKENS
        if refused or "Credential" in name:
            return DeniedError(
                f"the object store refused the credentials, check them and their rights: {where}"
            )
        if code in {"NoSuchBucket", "ContainerNotFound"}:
            return DeniedError(f"the bucket doesn't exist, create it or correct the url: {where}")
        if code in {"InvalidBucketName", "InvalidResourceName"} or name == "ParamValidationError":
            return DeniedError(f"the bucket's name isn't one, correct the url: {where}")
        if status in {405, 501}:
            return DeniedError(
                f"what answers doesn't know this request, the endpoint must be that of the store's API: {where}"
            )
        if refusal := self._refusal_of(action, error, where):
            return refusal
        if name in _UNREADABLE:
            problem = "the object store's answer can't be read, its endpoint must be that of the store's API"
        elif "SSL" in name or "Certificate" in name:
            problem = "there is no TLS with the object store, its endpoint must speak https, and be trusted"
        elif "Connect" in name:
            problem = "the object store can't be reached, check its endpoint, and whether it runs"
        else:
            problem = "a request to the object store failed"
        return UnavailableError(f"{problem}: {where} error={name}")

    def _refusal_of(self, action: str, error: Exception, where: str) -> PenstockError | None:
        """What is an answer to the request; None for what makes no sense as one, which is a failure as others are."""
        status, code = status_of(error)
        exists = status == 412 or isinstance(error, FileExistsError) or code == "BlobAlreadyExists"
        if exists and action in _CONDITIONAL:
            return AlreadyExistsError(f"the object exists: {where}")
        if code == "InvalidWriteOffset" and action == "append":
            return ConflictError(f"the object ends elsewhere: {where}")
        if code == "TooManyParts" and action == "append":
            return InvalidRequestError(f"the object takes no more appends: {where}")
        if status == 404 or isinstance(error, FileNotFoundError):
            if action in _OF_NO_OBJECT:
                return DeniedError(f"the bucket doesn't exist, create it or correct the url: {where}")
            return NotFoundError(f"no such object: {where}")
        if status == 416 and action == "get":
            return RangeError(f"range outside of the object: {where}")
        return None

    # --- the backend -----------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Connect, and create, swap and append to one object twice: a store without conditions lets both win."""
        await self.request("connect", "", self.start_session)
        key = f".penstock-probe/{uuid4().hex}"
        made = [key]
        try:
            try:
                token = await self.request("probe", key, lambda: self.request_put(key, b"first", "overwrite"))
            except DeniedError:
                made.clear()
                raise
            try:
                token = await self.request("probe", key, lambda: self.request_put(key, b"second", "create"))
                self.capabilities = replace(self.capabilities, put_if_absent=False)
            except AlreadyExistsError:
                pass
            if not await self._proves_swaps(key, token):
                self.capabilities = replace(self.capabilities, compare_and_swap=False)
            if self.capabilities.append:
                made.append(grown := f".penstock-probe/{uuid4().hex}")
                if not await self._proves_appends(grown):
                    self.capabilities = replace(self.capabilities, append=False)
            await self.delete(made)
            made.clear()
        finally:
            if made:
                with anyio.move_on_after(_CLEAR_UP_S_MAX, shield=True), suppress(PenstockError):
                    await self.delete(made)

    async def _proves_swaps(self, key: str, token: str) -> bool:
        """Whether the object is swapped for its token once, and has then the mark and the token that a swap gives it.

        Whatever else a store does, the start goes on.
        """
        last_error = self.health.last_error
        backoff = Backoff(self._clock, min(self.settings.retry_budget_ms, _PROOF_S_MAX * 1000))
        asked = False
        answered = ""
        while True:
            try:
                if not asked:
                    found = await self.attempt("probe", key, lambda: self.request_head(key))
                    if found.token != token:
                        return False
                    asked = True
                try:
                    new = await self.attempt(
                        "probe", key, lambda: self.request_swap(key, b"third", token, "probe")
                    )
                except AlreadyExistsError:
                    # by the first swap, which may have got no answer, or by nobody
                    mark, new = await self.attempt("head", key, lambda: self.request_mark(key))
                    return mark == "probe" and answered in ("", new)
                if answered:
                    return False
                answered = new
            except PenstockError as error:
                refused = isinstance(error, DeniedError) or not isinstance(error, UnavailableError)
                if refused or status_of(error)[0] == 400 or not await backoff.wait():
                    self.health.last_error = last_error  # there is nothing to be mended
                    return False

    async def _proves_appends(self, key: str) -> bool:
        """Whether an object grows where it ends, and nowhere else. Whatever else a store does, the start goes on."""
        last_error = self.health.last_error
        with anyio.move_on_after(_PROOF_S_MAX), suppress(PenstockError):
            await self.append(key, [b"a"], 0)
            try:
                await self.append(key, [b"b"], 0)
            except ConflictError:
                await self.append(key, [b"c"], 1)
                if await self.get(key, 0, None) == b"ac":
                    return True
        self.health.last_error = last_error
        return False

    async def close(self) -> None:
        """Close connections."""
        try:
            await self.end_session()
        finally:
            _forget_finalizers(self.filesystem)

    async def get(self, key: str, start: int, end: int | None) -> Buffer:
        data: Buffer = b""
        if end is None or end > start:
            try:
                data = await self.request("get", key, lambda: self.request_get(key, start, end))
            except RangeError:
                data = b""
        if end is not None and len(data) > end - start:
            raise self.ignores_ranges(key)
        if not data:  # empty object, empty range, or a start at or past the end
            check_range(key, (await self.head(key)).size, start, end)
        return data

    async def head(self, key: str) -> ObjectInfo:
        return await self.request("head", key, lambda: self.request_head(key))

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        data = self._join(key, body)
        return await self.request("put", key, lambda: self.request_put(key, data, "overwrite"))

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        data = self._join(key, body)
        backoff = Backoff(self._clock, self.settings.retry_budget_ms)
        while True:
            try:
                return await self.attempt("create", key, lambda: self.request_put(key, data, "create"))
            except DeniedError:
                raise
            except (AlreadyExistsError, UnavailableError) as error:
                # 409, a lost reply, or a conflict that may be with ourselves: the object itself tells.
                try:
                    # the token first: a later one may be of what another made of the object
                    token = (await self.head(key)).token
                    if await self.get(key, 0, None) == data:
                        return token
                    raise AlreadyExistsError(
                        f"the object exists: key={key!r} location={self.location}"
                    ) from error
                except NotFoundError:
                    if not await backoff.wait():
                        raise error from None

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        data = self._join(key, body)
        # Some stores close the connection to a large body that they refuse, which tells nothing: so ask first.
        with suppress(NotFoundError):
            if (await self.head(key)).token == token:
                return await self._swap(key, data, token)
        raise ConflictError(f"the object is another: key={key!r} location={self.location}")

    async def _swap(self, key: str, data: bytes, token: str) -> str:
        mark = uuid4().hex
        unknown: UnavailableError | None = None
        backoff = Backoff(self._clock, self.settings.retry_budget_ms)
        while True:
            try:
                return await self.attempt("swap", key, lambda: self.request_swap(key, data, token, mark))
            except DeniedError:
                raise
            except (AlreadyExistsError, NotFoundError, UnavailableError) as error:
                # as after a creation; but another's swap may have left the same bytes, so the mark tells
                new_token = ""
                with suppress(NotFoundError):
                    found, new_token = await self.request("head", key, lambda: self.request_mark(key))
                    if found == mark:
                        return new_token
                if not isinstance(error, UnavailableError) and new_token != token:
                    if unknown is not None:  # it may have taken effect, and been replaced
                        raise again(unknown) from error
                    raise ConflictError(
                        f"the object is another: key={key!r} location={self.location}"
                    ) from error
                if isinstance(error, UnavailableError):
                    if status_of(error)[0] != 409:  # which tells of no effect
                        unknown = kept(error)
                    if not await backoff.wait():
                        raise
                elif not await backoff.wait():
                    raise UnavailableError(
                        f"the object store refuses to swap what hasn't changed: {self._where('swap', key)}"
                    ) from error

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        raise InvalidRequestError(
            f"appends aren't supported here: key={key!r} location={self.location} offset={offset}"
        )

    async def create_multipart(self, key: str) -> MultipartUpload:
        raise InvalidRequestError(
            f"uploads in parts aren't supported here: key={key!r} location={self.location}"
        )

    async def delete(self, keys: Sequence[str]) -> None:
        await self.request_delete(keys)

    async def list(self, prefix: str, start_after: str) -> AsyncIterator[ObjectInfo]:
        async with aclosing(self.request_list(prefix, start_after)) as pages:  # type: ignore[type-var]
            async for page in pages:
                for info in page:
                    yield info

    def _join(self, key: str, body: Sequence[Buffer]) -> bytes:
        if body_size(body) > _ONE_REQUEST_BYTES:
            raise InvalidRequestError(f"an object of more than 5 GiB is uploaded in parts: key={key!r}")
        return b"".join(body)


class Backoff:
    """Growing waits with jitter until a budget is used up."""

    def __init__(self, clock: Callable[[], float], budget_ms: int) -> None:
        self._clock = clock
        self._end = clock() + budget_ms / 1000
        self._delay_s = _DELAY_S_MIN

    async def wait(self) -> bool:
        """Wait before the next attempt; False at once if there is to be none."""
        if self._clock() + self._delay_s > self._end:
            return False
        await anyio.sleep(self._delay_s * random.uniform(0.5, 1))
        self._delay_s = min(self._delay_s * 2, _DELAY_S_MAX)
        return True


def status_of(error: BaseException) -> tuple[int, str]:
    """HTTP status and error code out of what the client libraries raise, 0 and '' if there is none."""
    seen: BaseException | None = error
    for _ in range(5):
        if seen is None:
            break
        response = getattr(seen, "response", None)
        if isinstance(response, dict):  # botocore's ClientError
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), shown_code(response.get("Error", {}).get("Code", ""))
        status = getattr(seen, "status_code", None) or getattr(seen, "code", None)  # azure, gcsfs
        if str(status).isdigit():
            told = getattr(seen, "error_code", "") or ""  # azure: an enumeration
            return int(str(status)), shown_code(getattr(told, "value", told))
        seen = seen.__cause__ or seen.__context__
    return 0, ""


def shown_code(told: object) -> str:
    """The code of an error as it may be logged; empty if what the server sent isn't one."""
    return code if _CODE.fullmatch(code := str(told)) else ""


def _forget_finalizers(filesystem: Any) -> None:
    """Have the library not close once more, at exit and on a loop that is gone, what is closed.

    It would print a traceback for each store that was opened, and one library keeps the whole file system until then.
    """
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        alive = finalizer.peek()
        if alive is not None and alive[0] is filesystem:
            finalizer.detach()
