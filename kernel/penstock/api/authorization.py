"""The terms of authorization: operations on resources, and what a request needs (KIP-11, KIP-133).

The numbers are those of ``org.apache.kafka.common.acl.AclOperation`` and ``...resource.ResourceType``, which stand
in the requests of the ACL APIs and, as bits, in the fields of authorized operations (KIP-430).

There is no authorizer yet: everybody may do everything, and nobody is asked.
"""

from __future__ import annotations

__all__ = (
    "CLUSTER_NAME",
    "DENIED",
    "OPERATIONS",
    "NOBODY",
    "Authorizer",
    "Need",
    "Operation",
    "ResourceType",
    "denied",
    "each",
    "operation_bits",
    "the_cluster",
    "the_group",
    "the_transactional_id",
)

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Protocol

from penstock.api.client import Client
from penstock.wire.error_codes import ErrorCode


class Operation(IntEnum):
    """An operation on a resource, as Kafka numbers them."""

    READ = 3
    WRITE = 4
    CREATE = 5
    DELETE = 6
    ALTER = 7
    DESCRIBE = 8
    CLUSTER_ACTION = 9
    DESCRIBE_CONFIGS = 10
    ALTER_CONFIGS = 11
    IDEMPOTENT_WRITE = 12


class ResourceType(IntEnum):
    """The kinds of things that permissions are about."""

    TOPIC = 2
    GROUP = 3
    CLUSTER = 4
    TRANSACTIONAL_ID = 5


#: The one resource of type CLUSTER.
CLUSTER_NAME: Final = "kafka-cluster"

#: The error code that says that an operation on a resource of a type isn't permitted.
DENIED: Final[Mapping[ResourceType, ErrorCode]] = {
    ResourceType.TOPIC: ErrorCode.TOPIC_AUTHORIZATION_FAILED,
    ResourceType.GROUP: ErrorCode.GROUP_AUTHORIZATION_FAILED,
    ResourceType.CLUSTER: ErrorCode.CLUSTER_AUTHORIZATION_FAILED,
    ResourceType.TRANSACTIONAL_ID: ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}

#: All operations that there are on a resource of a type, as Kafka's ``AclEntry.supportedOperations`` has them.
OPERATIONS: Final[Mapping[ResourceType, frozenset[Operation]]] = {
    ResourceType.TOPIC: frozenset(Operation) - {Operation.CLUSTER_ACTION, Operation.IDEMPOTENT_WRITE},
    ResourceType.GROUP: frozenset(
        {
            Operation.READ,
            Operation.DELETE,
            Operation.DESCRIBE,
            Operation.DESCRIBE_CONFIGS,
            Operation.ALTER_CONFIGS,
        }
    ),
    ResourceType.CLUSTER: frozenset(Operation) - {Operation.READ, Operation.WRITE, Operation.DELETE},
    ResourceType.TRANSACTIONAL_ID: frozenset({Operation.WRITE, Operation.DESCRIBE}),
}


def operation_bits(operations: Collection[Operation]) -> int:
    """The operations as a bit field, as DescribeGroups, Metadata and DescribeCluster tell them."""
    return sum(1 << operation for operation in operations)


@dataclass(frozen=True, slots=True)
class Need:
    """One permission that an API needs.

    ``name_of`` gives the name of the one resource that a whole request is about, or None if this request needs
    no such permission: then the gate asks, before the handler is called. Without ``name_of`` a request lists
    resources, of which some may be permitted and some not: the handler asks, for all of them together
    (``RequestContext.allowed`` or ``denied``), and leaves out or refuses the others one by one.
    """

    operation: Operation
    resource: ResourceType
    name_of: Callable[[Any], str | None] | None = None

    def __str__(self) -> str:
        return f"{_words(self.operation)} {_words(self.resource)}"


def _words(member: IntEnum) -> str:
    """``DESCRIBE_CONFIGS`` as Kafka's documentation spells it: ``DescribeConfigs``."""
    return "".join(part.capitalize() for part in member.name.split("_"))


def the_cluster(operation: Operation) -> Need:
    """``operation`` on the cluster, for every request of the API."""
    return Need(operation, ResourceType.CLUSTER, lambda _request: CLUSTER_NAME)


def the_group(operation: Operation) -> Need:
    """``operation`` on the group that the request's ``group_id`` names."""
    return Need(operation, ResourceType.GROUP, lambda request: str(request.group_id))


def the_transactional_id(operation: Operation) -> Need:
    """``operation`` on the request's ``transactional_id``, if it has one."""
    return Need(operation, ResourceType.TRANSACTIONAL_ID, _transactional_id)


def _transactional_id(request: Any) -> str | None:
    name: str | None = request.transactional_id
    return name


def each(operation: Operation, resource: ResourceType) -> Need:
    """``operation`` on each of the resources that the request is about; its handler asks."""
    return Need(operation, resource)


class Authorizer(Protocol):
    """Decides who may do what. Called on the event loop, and often: answers come from memory, without I/O."""

    def allowed(
        self, client: Client, operation: Operation, resource: ResourceType, names: Collection[str]
    ) -> Collection[str]:
        """The names on which ``client.principal`` may do ``operation``."""


#: No names: everybody may do everything.
NOBODY: Final[frozenset[str]] = frozenset()


def denied(
    authorizer: Authorizer | None,
    client: Client,
    operation: Operation,
    resource: ResourceType,
    names: Iterable[str],
) -> frozenset[str]:
    """The names on which the client may not do ``operation``; they aren't looked at if nobody decides."""
    if authorizer is None:
        return NOBODY
    asked = list(dict.fromkeys(names))
    return (
        frozenset(asked).difference(authorizer.allowed(client, operation, resource, asked))
        if asked
        else NOBODY
    )
