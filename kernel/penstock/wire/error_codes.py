"""Kafka's error codes."""

from __future__ import annotations

__all__ = ("ErrorCode",)

from enum import IntEnum
from typing import TYPE_CHECKING


class ErrorCode(IntEnum):
    """Error code of a response, with what Kafka clients take it for.

    ``retriable``: whether clients retry the same request, as org.apache.kafka.common.protocol.Errors says.
    ``message``: a short text for error-message fields and logs, empty for NONE.
    """

    retriable: bool
    message: str

    if not TYPE_CHECKING:  # type checkers take the members for plain ints, which their value is

        def __new__(cls, value: int, message: str, retriable: bool = False) -> ErrorCode:
            member = int.__new__(cls, value)
            member._value_ = value
            member.message = message
            member.retriable = retriable
            return member

    UNKNOWN_SERVER_ERROR = -1, "unexpected error on the server"
    NONE = 0, ""
    OFFSET_OUT_OF_RANGE = 1, "offset is outside the range kept for the partition"
    CORRUPT_MESSAGE = (
        2,
        "batch fails its checksum, is too large, or lacks a key that a compacted topic needs",
        True,
    )
    UNKNOWN_TOPIC_OR_PARTITION = 3, "this broker doesn't host the topic or partition", True
    INVALID_FETCH_SIZE = 4, "requested fetch size is invalid"
    LEADER_NOT_AVAILABLE = 5, "partition has no leader at the moment", True
    NOT_LEADER_OR_FOLLOWER = 6, "this broker doesn't lead the partition", True
    REQUEST_TIMED_OUT = 7, "request timed out", True
    BROKER_NOT_AVAILABLE = 8, "broker is not available"
    REPLICA_NOT_AVAILABLE = 9, "replica is not available on this broker", True
    MESSAGE_TOO_LARGE = 10, "message exceeds the size this broker accepts"
    STALE_CONTROLLER_EPOCH = 11, "controller has moved to another broker"
    OFFSET_METADATA_TOO_LARGE = 12, "offset metadata is too large"
    NETWORK_EXCEPTION = 13, "connection broke before a response arrived", True
    COORDINATOR_LOAD_IN_PROGRESS = 14, "coordinator is still loading", True
    COORDINATOR_NOT_AVAILABLE = 15, "coordinator is not available", True
    NOT_COORDINATOR = 16, "this broker isn't the coordinator", True
    INVALID_TOPIC_EXCEPTION = 17, "topic name or operation on the topic is invalid"
    RECORD_LIST_TOO_LARGE = 18, "record batch exceeds the segment size of this broker"
    NOT_ENOUGH_REPLICAS = 19, "fewer in-sync replicas than required", True
    NOT_ENOUGH_REPLICAS_AFTER_APPEND = 20, "written, but to fewer in-sync replicas than required", True
    INVALID_REQUIRED_ACKS = 21, "acks has an invalid value"
    ILLEGAL_GENERATION = 22, "group generation is not the current one"
    INCONSISTENT_GROUP_PROTOCOL = 23, "member's protocols don't fit those of the group"
    INVALID_GROUP_ID = 24, "group id is invalid"
    UNKNOWN_MEMBER_ID = 25, "member is not known to the coordinator"
    INVALID_SESSION_TIMEOUT = 26, "session timeout is outside the bounds this broker allows"
    REBALANCE_IN_PROGRESS = 27, "group is rebalancing: rejoin"
    INVALID_COMMIT_OFFSET_SIZE = 28, "offset commit is too large"
    TOPIC_AUTHORIZATION_FAILED = 29, "topic access is not authorized"
    GROUP_AUTHORIZATION_FAILED = 30, "group access is not authorized"
    CLUSTER_AUTHORIZATION_FAILED = 31, "cluster access is not authorized"
    INVALID_TIMESTAMP = 32, "record timestamp is out of the accepted range"
    UNSUPPORTED_SASL_MECHANISM = 33, "sasl mechanism is not supported"
    ILLEGAL_SASL_STATE = 34, "request is not valid in the current sasl state"
    UNSUPPORTED_VERSION = 35, "api version is not supported"
    TOPIC_ALREADY_EXISTS = 36, "topic exists already"
    INVALID_PARTITIONS = 37, "number of partitions is invalid"
    INVALID_REPLICATION_FACTOR = 38, "replication factor is invalid"
    INVALID_REPLICA_ASSIGNMENT = 39, "replica assignment is invalid"
    INVALID_CONFIG = 40, "configuration is invalid"
    NOT_CONTROLLER = 41, "this broker isn't the controller", True
    INVALID_REQUEST = 42, "request is malformed or contradicts itself"
    UNSUPPORTED_FOR_MESSAGE_FORMAT = 43, "message format of the topic doesn't support the request"
    POLICY_VIOLATION = 44, "request breaks a policy of the cluster"
    OUT_OF_ORDER_SEQUENCE_NUMBER = 45, "sequence number is not the next one of the producer"
    DUPLICATE_SEQUENCE_NUMBER = 46, "sequence number was written before"
    INVALID_PRODUCER_EPOCH = 47, "producer epoch is older than the current one"
    INVALID_TXN_STATE = 48, "operation doesn't fit the state of the transaction"
    INVALID_PRODUCER_ID_MAPPING = 49, "producer id doesn't belong to the transactional id"
    INVALID_TRANSACTION_TIMEOUT = 50, "transaction timeout exceeds the maximum"
    CONCURRENT_TRANSACTIONS = 51, "another transaction change of this producer is in progress", True
    TRANSACTION_COORDINATOR_FENCED = 52, "transaction coordinator was replaced by a newer one"
    TRANSACTIONAL_ID_AUTHORIZATION_FAILED = 53, "transactional id access is not authorized"
    SECURITY_DISABLED = 54, "security feature is disabled"
    OPERATION_NOT_ATTEMPTED = 55, "operation was not attempted"
    KAFKA_STORAGE_ERROR = 56, "storage failed on the broker", True
    LOG_DIR_NOT_FOUND = 57, "log directory isn't there"
    SASL_AUTHENTICATION_FAILED = 58, "sasl authentication failed"
    UNKNOWN_PRODUCER_ID = 59, "producer id is unknown: its state has expired"
    REASSIGNMENT_IN_PROGRESS = 60, "partition reassignment is in progress"
    DELEGATION_TOKEN_AUTH_DISABLED = 61, "delegation tokens are disabled"
    DELEGATION_TOKEN_NOT_FOUND = 62, "delegation token isn't there"
    DELEGATION_TOKEN_OWNER_MISMATCH = 63, "delegation token belongs to somebody else"
    DELEGATION_TOKEN_REQUEST_NOT_ALLOWED = 64, "delegation token requests need an authenticated channel"
    DELEGATION_TOKEN_AUTHORIZATION_FAILED = 65, "delegation token access is not authorized"
    DELEGATION_TOKEN_EXPIRED = 66, "delegation token has expired"
    INVALID_PRINCIPAL_TYPE = 67, "principal type is not supported"
    NON_EMPTY_GROUP = 68, "group is not empty"
    GROUP_ID_NOT_FOUND = 69, "group isn't there"
    FETCH_SESSION_ID_NOT_FOUND = 70, "fetch session isn't there", True
    INVALID_FETCH_SESSION_EPOCH = 71, "fetch session epoch is invalid", True
    LISTENER_NOT_FOUND = 72, "leader has no listener matching the one asked", True
    TOPIC_DELETION_DISABLED = 73, "topic deletion is disabled"
    FENCED_LEADER_EPOCH = 74, "leader epoch is older than the broker's", True
    UNKNOWN_LEADER_EPOCH = 75, "leader epoch is newer than the broker's", True
    UNSUPPORTED_COMPRESSION_TYPE = 76, "compression type is not supported here"
    STALE_BROKER_EPOCH = 77, "broker epoch is stale"
    OFFSET_NOT_AVAILABLE = 78, "leader's high watermark has not caught up after its election", True
    MEMBER_ID_REQUIRED = 79, "group member needs the id given here: join again with it"
    PREFERRED_LEADER_NOT_AVAILABLE = 80, "preferred leader is not available", True
    GROUP_MAX_SIZE_REACHED = 81, "group has its maximum of members"
    FENCED_INSTANCE_ID = 82, "static member was replaced by another with its instance id"
    ELIGIBLE_LEADERS_NOT_AVAILABLE = 83, "no eligible leader is available", True
    ELECTION_NOT_NEEDED = 84, "leader election is not needed", True
    NO_REASSIGNMENT_IN_PROGRESS = 85, "no reassignment is in progress"
    GROUP_SUBSCRIBED_TO_TOPIC = 86, "group is subscribed to the topic"
    INVALID_RECORD = 87, "record is invalid"
    UNSTABLE_OFFSET_COMMIT = 88, "partition has offset commits of an unfinished transaction", True
    THROTTLING_QUOTA_EXCEEDED = 89, "quota is exceeded", True
    PRODUCER_FENCED = 90, "a newer producer with this transactional id took over"
    RESOURCE_NOT_FOUND = 91, "resource isn't there"
    DUPLICATE_RESOURCE = 92, "resource exists already"
    UNACCEPTABLE_CREDENTIAL = 93, "credential doesn't meet the requirements"
    INCONSISTENT_VOTER_SET = 94, "voter sets differ"
    INVALID_UPDATE_VERSION = 95, "feature update is invalid"
    FEATURE_UPDATE_FAILED = 96, "feature update failed"
    PRINCIPAL_DESERIALIZATION_FAILURE = 97, "forwarded principal can't be read"
    SNAPSHOT_NOT_FOUND = 98, "snapshot isn't there"
    POSITION_OUT_OF_RANGE = 99, "position is outside the snapshot"
    UNKNOWN_TOPIC_ID = 100, "topic id is unknown", True
    DUPLICATE_BROKER_REGISTRATION = 101, "broker id is registered already"
    BROKER_ID_NOT_REGISTERED = 102, "broker id is not registered"
    INCONSISTENT_TOPIC_ID = 103, "topic id doesn't match the topic name", True
    INCONSISTENT_CLUSTER_ID = 104, "cluster id differs"
    TRANSACTIONAL_ID_NOT_FOUND = 105, "transactional id isn't there"
    FETCH_SESSION_TOPIC_ID_ERROR = 106, "fetch session mixes topic ids and topic names", True
    INELIGIBLE_REPLICA = 107, "replica may not join the in-sync set"
    NEW_LEADER_ELECTED = 108, "election changed the leader"
    OFFSET_MOVED_TO_TIERED_STORAGE = 109, "offset has moved to tiered storage"
    FENCED_MEMBER_EPOCH = 110, "member epoch is fenced: rejoin the group"
    UNRELEASED_INSTANCE_ID = 111, "instance id is still held by another member"
    UNSUPPORTED_ASSIGNOR = 112, "assignor is not supported"
    STALE_MEMBER_EPOCH = 113, "member epoch is stale: retry with the new one"
    MISMATCHED_ENDPOINT_TYPE = 114, "request went to an endpoint of the wrong type"
    UNSUPPORTED_ENDPOINT_TYPE = 115, "endpoint type is not supported"
    UNKNOWN_CONTROLLER_ID = 116, "controller id is unknown"
    UNKNOWN_SUBSCRIPTION_ID = 117, "telemetry subscription id is outdated"
    TELEMETRY_TOO_LARGE = 118, "telemetry payload is too large"
    INVALID_REGISTRATION = 119, "controller registration is invalid"
    TRANSACTION_ABORTABLE = 120, "transaction can go on only by aborting"
    INVALID_RECORD_STATE = 121, "record is not in the state the request needs"
    SHARE_SESSION_NOT_FOUND = 122, "share session isn't there", True
    INVALID_SHARE_SESSION_EPOCH = 123, "share session epoch is invalid", True
    FENCED_STATE_EPOCH = 124, "share coordinator's state epoch is newer"
    INVALID_VOTER_KEY = 125, "voter key is invalid"
    DUPLICATE_VOTER = 126, "voter is in the set already"
    VOTER_NOT_FOUND = 127, "voter isn't in the set"
    INVALID_REGULAR_EXPRESSION = 128, "regular expression is invalid"
    REBOOTSTRAP_REQUIRED = 129, "client must bootstrap again"
    STREAMS_INVALID_TOPOLOGY = 130, "streams topology is invalid"
    STREAMS_INVALID_TOPOLOGY_EPOCH = 131, "streams topology epoch is invalid"
    STREAMS_TOPOLOGY_FENCED = 132, "streams topology epoch is outdated"
    SHARE_SESSION_LIMIT_REACHED = 133, "share sessions are at their limit", True
