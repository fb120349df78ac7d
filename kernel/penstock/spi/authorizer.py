"""Authorizer: decides which client may do what with which resource (KIP-11, KIP-290, KIP-504).

The terms are Kafka's: a *principal* (``User:alice``) does an *operation* (Read) on a *resource*, which has a type
(Topic) and a name. The kernel knows for each Kafka API which permissions it needs, asks for them, and answers what is
refused as Kafka does; an authorizer only decides.

The numbers are those of ``org.apache.kafka.common.acl.AclOperation`` and ``...resource.ResourceType``, which stand
in the requests of the ACL APIs and, as bits, in the fields of authorized operations (KIP-430).
"""

from __future__ import annotations

__all__ = (
    "ANONYMOUS",
    "CLUSTER_NAME",
    "OPERATIONS",
    "Authorizer",
    "Operation",
    "Principal",
    "Requester",
    "ResourceType",
)

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol


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
    """The kinds of things that permissions are about, as Kafka numbers them."""

    TOPIC = 2
    GROUP = 3
    CLUSTER = 4
    TRANSACTIONAL_ID = 5


#: The name of the one resource of type CLUSTER.
CLUSTER_NAME: Final = "kafka-cluster"

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


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever permissions are given to, in Kafka's form: ``User:alice``."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


#: The principal of a connection that doesn't authenticate, as Kafka calls it.
ANONYMOUS: Final = Principal("User", "ANONYMOUS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requester:
    """The client that a question is about, as far as permissions may depend on it. Can be the key of a cache."""

    #: ``ANONYMOUS`` where the listener doesn't authenticate. Nothing is asked of clients that have yet to.
    principal: Principal
    #: The address that the client connects from, as text: ``192.0.2.7``, ``2001:db8::7``.
    host: str
    #: The name of the listener that it came in by: ``PLAINTEXT``.
    listener: str


class Authorizer(Protocol):
    """The contract of an authorizer.

    It is asked about each request, before anything is done for it: about the one resource that a whole request is
    for, and about those that it lists, for all of one type and operation at once. So it is asked often, on the thread
    of the event loop, which everything else waits for: answers come from memory. It must not block, do I/O or wait;
    what it has to load it loads when it is opened, and follows in tasks of its own.
    """

    @property
    def permits_all(self) -> bool:
        """Whether everybody may do everything.

        Then ``allowed`` is never called, and requests take the ways that they take without any authorizer, of which
        some are shorter. Read when the broker starts and never again, so it must not change: it is False where
        somebody may be refused something later, also if nobody is yet.
        """

    def allowed(
        self, requester: Requester, operation: Operation, resource: ResourceType, names: Collection[str]
    ) -> Collection[str]:
        """The names, out of ``names``, on which ``requester`` may do ``operation``, in the order in which they came.

        Names are whole names of resources of type ``resource``, which need not exist; there may be none. That a rule
        is for all names or for a prefix (KIP-290) is known to the authorizer only, and so is which permission implies
        which (in Kafka Describe comes with Read, Write, Delete or Alter, and DescribeConfigs with AlterConfigs).

        What isn't returned is refused. An operation or a type that the authorizer doesn't know, as later versions
        may ask for, is to be refused too. Must not raise: a request whose question fails isn't done, and is answered
        like any other fault of the broker, or its connection is closed.
        """
