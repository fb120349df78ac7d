"""What Kafka APIs need of an authorizer, and how the kernel asks it.

The terms, operations on resources, are those of the contract: :mod:`penstock.spi.authorizer`.

There is no authorizer yet: everybody may do everything, and nobody is asked.
"""

from __future__ import annotations

__all__ = (
    "DENIED",
    "NOBODY",
    "Need",
    "deciding",
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
from typing import Any, Final

from penstock.api.client import Client
from penstock.spi.authorizer import CLUSTER_NAME, Authorizer, Operation, ResourceType
from penstock.wire.error_codes import ErrorCode

#: The error code that says that an operation on a resource of a type isn't permitted.
DENIED: Final[Mapping[ResourceType, ErrorCode]] = {
    ResourceType.TOPIC: ErrorCode.TOPIC_AUTHORIZATION_FAILED,
    ResourceType.GROUP: ErrorCode.GROUP_AUTHORIZATION_FAILED,
    ResourceType.CLUSTER: ErrorCode.CLUSTER_AUTHORIZATION_FAILED,
    ResourceType.TRANSACTIONAL_ID: ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
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


#: No names: everybody may do everything.
NOBODY: Final[frozenset[str]] = frozenset()


def deciding(authorizer: Authorizer | None) -> Authorizer | None:
    """The authorizer, if it has anything to decide; None if there is none, or if it permits everything."""
    return None if authorizer is None or authorizer.permits_all else authorizer


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
        frozenset(asked).difference(authorizer.allowed(client.requester, operation, resource, asked))
        if asked
        else NOBODY
    )
