"""Produce: the synchronous way from a request to the partitions, and the response once all are durable.

No task and no future per request. ``ProduceCall.advance`` hands each partition's records to its log in the order
of the request; the partitions answer through callbacks, and the last answer completes the call.
"""

from __future__ import annotations

__all__ = (
    "APIS",
    "PORTION_PARTITIONS",
    "CheckedRequest",
    "ProduceCall",
    "ProduceSink",
    "check_request",
    "failed_append",
    "response_of_one",
)

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol, cast

from anyio.lowlevel import checkpoint

from penstock.api.authorization import denied, each, the_transactional_id
from penstock.api.context import ApiContext, Client
from penstock.api.declaration import Api, Frame
from penstock.api.errors import error_code_of, error_message_of, is_expected
from penstock.errors import FullError, NotNowError, PenstockError
from penstock.log.append_outcome import AppendOutcome
from penstock.log.frame_memory import SharedFrame, release_part
from penstock.log.partition import Partition
from penstock.log.unsupported import TRANSACTIONAL_BATCH, TRANSACTIONAL_PRODUCE
from penstock.spi.allocator import Allocation
from penstock.spi.authorizer import Operation, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.produce import (
    BatchIndexAndErrorMessage,
    PartitionProduceData,
    PartitionProduceResponse,
    ProduceRequest,
    ProduceResponse,
    TopicProduceData,
    TopicProduceResponse,
)
from penstock.wire.record_batch import BatchError, batch_end, is_transactional
from penstock.wire.validation import check_frames

logger = logging.getLogger("penstock.api")

_TOPIC_IDS_VERSION: Final = 13
_ACKS: Final = frozenset({-1, 0, 1})
#: A request of so many partitions is handed over in one go, in about two milliseconds.
PORTION_PARTITIONS: Final = 64
#: Of one that has more, so many are; then others get their turn.
_PORTION_OF_MANY: Final = 16


class ProduceSink(Protocol):
    """The receiver of a Produce's outcome. One of the two methods is called, once; it must not raise."""

    def complete(self, response: ProduceResponse | None) -> None:
        """The response to send; None when there is none to send (acks=0)."""

    def complete_one(self, topic: TopicProduceData, index: int, result: AppendOutcome) -> None:
        """The request had one partition, and its records are durable: the case to be quick in."""


class ProduceCall:
    """One Produce request on its way. Every partition of it ends with exactly one result.

    ``sink`` gets the outcome when ``advance`` or a partition's callback fills the last result. ``failed`` then says
    whether any partition failed (acks=0: the connection is to be closed, which is all that a client that wants no
    answer can be told).

    ``allocation``, if given, holds the frame that the request's records view. The call owns it: it goes to the
    partitions that take records, and back to the allocator if none does (``penstock.log.frame_memory`` has the rule).
    """

    __slots__ = (
        "_allocation",
        "_api",
        "_client",
        "_cursor",
        "_denied",
        "_due",
        "_fault",
        "_gone",
        "_is_prepared",
        "_is_working",
        "_partition_at",
        "_portion",
        "_prepared",
        "_remaining",
        "_request",
        "_results",
        "_sink",
        "_topic_at",
        "failed",
        "version",
    )

    def __init__(
        self,
        request: ProduceRequest,
        version: int,
        api: ApiContext,
        client: Client,
        allocation: Allocation | None,
        sink: ProduceSink,
        checked: CheckedRequest | None = None,
    ) -> None:
        """``checked`` is what ``check_request`` made of ``request`` already, in a thread."""
        found = check_request(request, version) if checked is None else checked
        self._request = request = found.request
        #: What is wrong with all of it.
        self._fault = found.fault
        self.version = version
        self._api = api
        self._client = client
        self._allocation = allocation
        self._sink = sink
        count = 0
        for topic in request.topic_data:
            count += len(topic.partition_data)
        self._remaining = count
        self._results: list[PartitionProduceResponse | None] = [None] * count
        self._cursor = 0
        #: Where the cursor is: of which topic the next partition is, and which one there. Topics may be thousands.
        self._topic_at = self._partition_at = 0
        self._portion = count if count <= PORTION_PARTITIONS else _PORTION_OF_MANY
        #: The topics that the client may not write to.
        self._denied = denied(
            api.authorizer, client, Operation.WRITE, ResourceType.TOPIC, self._topic_names()
        )
        #: What has to be done to the batch at the cursor before it can be handed over.
        self._due: Callable[[], Awaitable[tuple[memoryview, Allocation | None]]] | None = None
        #: Whether that was done, and where the outcome is if not in the request's own memory.
        self._is_prepared = False
        self._prepared: Allocation | None = None
        self._is_working = False
        self._gone = False
        self.failed = False
        if count > 1 and allocation is not None:
            self._allocation = SharedFrame(allocation)

    @property
    def timeout_ms(self) -> int:
        """Milliseconds that the client waits for the answer."""
        return self._request.timeout_ms

    @property
    def is_handed_over(self) -> bool:
        """Whether every partition has its result, or the log will say it."""
        return self._cursor == len(self._results)

    @property
    def has_work(self) -> bool:
        """Whether something has to be done to the batch at the cursor first, which ``wait`` does."""
        return self._due is not None

    def rebind(self, request: ProduceRequest) -> None:
        """Go on with the same request decoded from other memory (the scratch buffer is needed elsewhere)."""
        self._request = _distinct(request, self.version)

    def adopt(self, request: ProduceRequest, allocation: Allocation) -> None:
        """Go on with the same request in ``allocation``, which the call owns from now on."""
        assert self._allocation is None, "the call has its memory"
        self._request = _distinct(request, self.version)
        self._allocation = SharedFrame(allocation) if len(self._results) > 1 else allocation

    def advance(self) -> None:
        """Hand over what isn't handed over yet.

        Raises:
            NotNowError: not all could go now; ``wait``, then call again. What went before is on its way.
        """
        self._due = None
        index = self._cursor
        fault = self._fault
        end = index + self._portion
        topics = self._request.topic_data
        while self._topic_at < len(topics):
            topic = topics[self._topic_at]
            for data in topic.partition_data[self._partition_at :]:
                if index == end:
                    raise NotNowError("others get their turn", checkpoint, is_work=True)
                if fault is not None:
                    self._refuse(index, data, *fault)
                else:
                    self._append(index, topic, data)
                data.records = None  # drop the view: the log owns that memory now
                if self._is_prepared:
                    self._drop_prepared()
                index += 1
                self._cursor = index
                self._partition_at += 1
            self._topic_at += 1
            self._partition_at = 0
        if self._allocation is not None:
            self._allocation.release()
            self._allocation = None
        if index == 0:
            self._complete()

    async def _wait_for_preparation(self) -> None:
        """Return when the batch at the cursor is prepared, or refused. Cancellable."""
        work, self._due = self._due, None
        assert work is not None
        topic, data = self._next()
        self._is_working = True
        try:
            view, own = await work()
        except BatchError as error:
            if not self._gone:
                self._drop_prepared()
                data.records = None
                index, self._cursor = self._cursor, self._cursor + 1
                self._partition_at += 1
                found = self._find(topic, data.index)
                if isinstance(found, ErrorCode):  # it was deleted meanwhile
                    self._refuse(index, data, found, None)
                else:
                    self._done(index, data.index, found.refused_batch(error))
            return
        finally:
            self._is_working = False
            if self._gone:
                self._release()
        if self._gone:
            if own is not None:
                own.release()
            return
        if own is not None:
            self._drop_prepared()
            self._prepared = own
        self._is_prepared = True
        data.records = view

    def _next(self) -> tuple[TopicProduceData, PartitionProduceData]:
        topic = self._request.topic_data[self._topic_at]
        return topic, topic.partition_data[self._partition_at]

    def _drop_prepared(self) -> None:
        own, self._prepared = self._prepared, None
        self._is_prepared = False
        if own is not None:
            own.release()

    def refuse(self, error: PenstockError) -> None:
        """Have what isn't handed over yet refused with the code of ``error`` as ``advance`` comes to it."""
        self._fault = error_code_of(error), str(error)

    def give_up(self, error: PenstockError) -> None:
        """Refuse what isn't handed over yet with the code of ``error``, in one go."""
        self.refuse(error)
        self._portion = len(self._results)
        self.advance()
        self.drop()

    def drop(self) -> None:
        """Give back the memory of what isn't handed over: the connection is gone."""
        self._gone = True
        if not self._is_working:  # else a thread reads that memory, and ``wait`` gives it back
            self._release()

    def _release(self) -> None:
        self._drop_prepared()
        if self._allocation is not None:
            self._allocation.release()
            self._allocation = None

    def _append(self, index: int, topic: TopicProduceData, data: PartitionProduceData) -> None:
        """Hand over what may be written.

        Of several faults the one is told that Kafka finds first: there is no such partition, the frames of its
        records, acks, a topic that is the broker's own, and last what the log finds.
        """
        found = self._find(topic, data.index)
        if isinstance(found, ErrorCode):
            self._refuse(index, data, found, None)
            return
        records = data.records
        if not isinstance(records, memoryview):
            self._refuse(index, data, ErrorCode.INVALID_RECORD, "the partition has no records")
            return
        refusal = self._refusal_by_topic(found)
        if refusal is None:
            self._append_to(found, index, data, records)
            return
        try:
            check_frames(records, self.version)
        except BatchError as error:
            self._refuse(index, data, error.error_code, str(error))
        else:
            self._refuse(index, data, *refusal)

    def _refusal_by_topic(self, partition: Partition) -> tuple[int, str | None] | None:
        acks = self._request.acks
        if acks not in _ACKS:
            return ErrorCode.INVALID_REQUIRED_ACKS, f"acks must be -1, 0 or 1: acks={acks}"
        name = partition.topic
        if name.startswith("__"):
            known = self._api.logs.topics().get(name)
            if known is not None and known.internal:
                return ErrorCode.INVALID_TOPIC_EXCEPTION, None
        return None

    def _append_to(
        self, partition: Partition, index: int, data: PartitionProduceData, records: memoryview
    ) -> None:
        allocation = self._allocation if self._prepared is None else self._prepared
        charge = allocation.share(len(records)) if type(allocation) is SharedFrame else allocation
        taken = False
        try:
            taken = partition.append(
                records,
                produce_version=self.version,
                now_ms=self._api.now_ms(),
                charge=charge,
                on_done=self._done_one if len(self._results) == 1 else partial(self._done, index, data.index),
                is_prepared=self._is_prepared,
            )
        except FullError as error:
            release_part(charge, allocation)
            raise NotNowError(str(error), self._api.logs.wait_for_room, is_work=False) from None
        except NotNowError as error:
            release_part(charge, allocation)
            self._due = error.wait
            raise NotNowError(str(error), self._wait_for_preparation, is_work=error.is_work) from None
        except Exception as error:  # noqa: BLE001 - logged and answered
            # Of a bug below it isn't known whether the log took the memory, so it stays accounted for.
            taken = not isinstance(error, PenstockError)
            self._refuse(index, data, *failed_append(error, partition))
        if taken:
            if self._prepared is not None:
                self._prepared = None
            elif charge is allocation:
                self._allocation = None
        else:
            release_part(charge, allocation)

    def _topic_names(self) -> Iterator[str]:
        for topic in self._request.topic_data:
            if self.version < _TOPIC_IDS_VERSION:
                yield topic.name
            else:
                known = self._api.logs.topic_by_id(topic.topic_id)
                if known is not None:
                    yield known.name

    def _find(self, topic: TopicProduceData, index: int) -> Partition | ErrorCode:
        logs = self._api.logs
        if self.version >= _TOPIC_IDS_VERSION:
            known = logs.topic_by_id(topic.topic_id)
            if known is None:
                return ErrorCode.UNKNOWN_TOPIC_ID
            topic.name = known.name
        name = topic.name
        if name in self._denied:
            return ErrorCode.TOPIC_AUTHORIZATION_FAILED
        partition = logs.partition(name, index)
        return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION if partition is None else partition

    def _refuse(
        self,
        index: int,
        data: PartitionProduceData,
        code: int,
        message: str | None,
        record_errors: Sequence[tuple[int, str | None]] = (),
    ) -> None:
        response = PartitionProduceResponse(
            index=data.index, error_code=int(code), base_offset=-1, error_message=message
        )
        response.record_errors = _record_errors(record_errors)
        self._fill(index, response)

    def _done_one(self, result: AppendOutcome) -> None:
        topic = self._request.topic_data[0] if len(self._request.topic_data) == 1 else None
        if result.error_code or topic is None or not self._request.acks:
            data = next(data for topic in self._request.topic_data for data in topic.partition_data)
            self._done(0, data.index, result)
        elif self._remaining:
            self._remaining = 0
            self._sink.complete_one(topic, topic.partition_data[0].index, result)

    def _done(self, index: int, partition_index: int, result: AppendOutcome) -> None:
        response = PartitionProduceResponse(
            index=partition_index,
            error_code=result.error_code,
            base_offset=result.base_offset,
            log_append_time_ms=result.log_append_time_ms,
            log_start_offset=result.log_start_offset,
        )
        if result.error_code:
            response.error_message = result.error_message
            response.record_errors = _record_errors(result.record_errors)
        self._fill(index, response)

    def _fill(self, index: int, response: PartitionProduceResponse) -> None:
        if self._results[index] is not None or not self._remaining:
            return  # a bug already answered for this partition
        self._results[index] = response
        if response.error_code:
            self.failed = True
        self._remaining -= 1
        if not self._remaining:
            self._complete()

    def _complete(self) -> None:
        if self._request.acks == 0:
            self._sink.complete(None)
            return
        responses: list[TopicProduceResponse] = []
        at = 0
        results = self._results
        for topic in self._request.topic_data:
            end = at + len(topic.partition_data)
            partitions = cast("list[PartitionProduceResponse]", results[at:end])  # each has its result
            at = end
            responses.append(
                TopicProduceResponse(topic_id=topic.topic_id, name=topic.name, partition_responses=partitions)
            )
        self._sink.complete(ProduceResponse(responses=responses))


def failed_append(error: Exception, partition: Partition) -> tuple[int, str | None]:
    """Code and message for an append that raised what doesn't end by waiting; logged where it is a bug."""
    if not isinstance(error, PenstockError) or not is_expected(error):
        logger.error("append failed: topic=%s partition=%s", partition.topic, partition.index, exc_info=error)
    return error_code_of(error), error_message_of(error)


def response_of_one(topic: str, topic_id: bytes, index: int, outcome: AppendOutcome) -> ProduceResponse:
    """The answer to a request of one partition."""
    response = PartitionProduceResponse(
        index=index,
        error_code=outcome.error_code,
        base_offset=outcome.base_offset,
        log_append_time_ms=outcome.log_append_time_ms,
        log_start_offset=outcome.log_start_offset,
    )
    if outcome.error_code:
        response.error_message = outcome.error_message
        response.record_errors = _record_errors(outcome.record_errors)
    return ProduceResponse(
        responses=[TopicProduceResponse(topic_id=topic_id, name=topic, partition_responses=[response])]
    )


def _record_errors(errors: Sequence[tuple[int, str | None]]) -> list[BatchIndexAndErrorMessage]:
    return [BatchIndexAndErrorMessage(batch_index=at, batch_index_error_message=text) for at, text in errors]


class CheckedRequest(NamedTuple):
    """A request with each partition once, and the code and message for all of them where it is at fault."""

    request: ProduceRequest
    fault: tuple[int, str] | None


def check_request(request: ProduceRequest, version: int) -> CheckedRequest:
    """Look at a request as a whole; where it has thousands of partitions, that is work for a thread."""
    fault = _fault_of(request)  # as in Kafka, it may be in what is named again later
    return CheckedRequest(_distinct(request, version), fault)


def _fault_of(request: ProduceRequest) -> tuple[int, str] | None:
    try:
        if _is_transactional(request) and request.transactional_id is None:
            return TRANSACTIONAL_BATCH
    except BatchError as error:
        return error.error_code, str(error)
    if request.transactional_id is not None and request.acks in _ACKS:
        return TRANSACTIONAL_PRODUCE
    return None


def _is_transactional(request: ProduceRequest) -> bool:
    """Whether the first batch of a partition says so. Raises BatchError if, before that one, one is no batch."""
    for topic in request.topic_data:
        for data in topic.partition_data:
            records = memoryview(data.records or b"")
            if batch_end(records) and is_transactional(records):
                return True
    return False


def _distinct(request: ProduceRequest, version: int) -> ProduceRequest:
    """The request with each partition once, as Kafka answers one that is named twice: what comes last counts, or else
    what isn't a batch.

    Topics of which no partition is named aren't answered.
    """
    topics = request.topic_data
    if len(topics) == 1 and len(topics[0].partition_data) == 1:
        return request
    found: dict[tuple[bytes, str], TopicProduceData] = {}
    partitions: dict[tuple[bytes, str], dict[int, PartitionProduceData]] = {}
    for topic in topics:
        if topic.partition_data:
            key = (bytes(topic.topic_id), topic.name)
            found.setdefault(key, topic)
            named = partitions.setdefault(key, {})
            for data in topic.partition_data:
                before = named.setdefault(data.index, data)
                if before is not data and _are_frames(before.records, version):
                    named[data.index] = data
    for key, topic in found.items():
        topic.partition_data = list(partitions[key].values())
    request.topic_data = list(found.values())
    return request


def _are_frames(records: object, version: int) -> bool:
    """Whether records are one batch, as far as Kafka looks before it asks the log."""
    try:
        check_frames(records if isinstance(records, memoryview) else memoryview(b""), version)
    except BatchError:
        return False
    return True


APIS: Final = (
    Api(
        key=ApiKey.PRODUCE,
        low_advertised=0,  # KAFKA-18659: librdkafka compresses only if it sees 0
        needs=(the_transactional_id(Operation.WRITE), each(Operation.WRITE, ResourceType.TOPIC)),
        frame=Frame.RECORDS,
        note="advertised as 0-13, because librdkafka compresses only then; 0-2 close the connection, as in Kafka 4",
    ),
)
