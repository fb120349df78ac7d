"""The differences from Apache Kafka that are meant, with their reasons: the one list of them."""

from __future__ import annotations

__all__ = ("MEANT", "SKIPPED", "Meant")

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tests.differential.compare import Difference

ANY: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Meant:
    """One kind of difference. What isn't given holds for all."""

    name: str
    reason: str
    #: The comparisons, by API or scenario, that it is looked for in; it has to be in each of them, unless it is
    #: what another comparison left behind, which may have run before or not.
    where: tuple[str, ...]
    is_left_behind: bool = False
    #: Patterns that must match the whole of the request's label and of the path of the field.
    request: str = ".*"
    path: str = ".*"
    kafka: Any = ANY
    penstock: Any = ANY

    def covers(self, found: Difference) -> bool:
        """Whether a difference is of this kind."""
        return (
            re.fullmatch(self.path, found.path) is not None
            and re.fullmatch(self.request, found.request, re.DOTALL) is not None
            and (self.kafka is ANY or found.kafka == self.kafka)
            and (self.penstock is ANY or found.penstock == self.penstock)
        )


#: (API, request) that aren't sent. Kafka never answers the first ones: its handler fails, and the connection stays.
SKIPPED: Final = (
    (
        "produce",
        "topic_data.partition_data.records is (null|None)",
    ),  # null records (KAFKA-style NullPointerException)
    (
        "join_group",
        r"protocols holds all twice|protocols.metadata is b'\\xff.*",
    ),  # metadata that isn't the protocol's
    ("alter_configs", "resources holds all twice"),
    # Kafka deletes them, with all groups, and nothing else could be compared after that. Penstock refuses.
    ("delete_topics", ".*'__(consumer_offsets|transaction_state)'.*"),
)

_CLOSED: Final = "the connection is closed"

MEANT: Final = (
    # -- what isn't there yet
    Meant(
        name="fewer APIs",
        reason="an API that Penstock doesn't have isn't advertised",
        where=("api_versions",),
        path=r"api_keys\[\d+\]",
        penstock=None,
    ),
    Meant(
        name="no features",
        reason="features say which of Kafka's own formats and protocols a cluster has agreed on; there is none here",
        where=("api_versions",),
        path=r"(supported|finalized)_features.*",
    ),
    Meant(
        name="no transactions",
        reason="a producer with a transactional id is refused, before it relies on what isn't there",
        where=("produce", "init_producer_id"),
        request="transactional_id is 'odd'",
    ),
    Meant(
        name="no transactions of other requests",
        reason="the transactional id that Kafka gave a producer id for, and that is refused here",
        where=("describe_transactions", "list_transactions", "patterns"),
        path=r"transaction_states.*",
        is_left_behind=True,
    ),
    Meant(
        name="no new group protocol",
        reason="KIP-848 isn't there yet; a client that asks all the same gets one answer that it gives up on",
        where=("consumer_group_heartbeat",),
    ),
    Meant(
        name="no share groups",
        reason="KIP-932 isn't there; Kafka says COORDINATOR_NOT_AVAILABLE, about which clients ask again and again",
        where=("groups twice",),
        request="a share group",
        path=r"coordinators\[?.*",
        penstock=42,
    ),
    Meant(
        name="no cluster-wide configs",
        reason="Kafka's storage tool sets min.insync.replicas as a default of the cluster; here it is the default",
        where=(
            "describe_configs",
            "create_topics",
            "synonyms of topic configs",
            "kinds of configs",
            "empty values",
            "described twice",
        ),
        path=r".*configs\[min.insync.replicas\](.(config_source|synonyms))?",
    ),
    Meant(
        name="no dynamic broker configs",
        reason="settings are read at start, so all are read-only",
        where=("broker configs",),
        path=r".*configs\[.*\].read_only",
        penstock=True,
    ),
    Meant(
        name="no dynamic configs",
        reason="Kafka stores any config of a broker; here they come from the configuration, and nothing is stored",
        where=("faults of config changes",),
        request="resource 4 .*",
        path=r".*error_code",
        penstock=40,
    ),
    Meant(
        name="no configs of groups",
        reason="nothing here would go by them, so none are stored; each is refused with one code",
        where=("configs of groups",),
        request="resource (32, consumer|16, interval).*",
        path=r".*error_code",
        penstock=40,
    ),
    Meant(
        name="loggers of its own",
        reason="levels are read at start, and they are Python's",
        where=("kinds of configs",),
        request="resource 8 .*",
        path=r".*configs\[root\].(value|read_only)",
    ),
    Meant(
        name="no compaction",
        reason="a topic that is to be compacted is refused, instead of one that never is",
        where=("empty values",),
        request=".*cleanup.policy='compact.*",
        path=r".*error_code|topics\[.*",
    ),
    Meant(
        name="one replica",
        reason="a topic that wants more replicas in sync than there are is refused, instead of each write to it",
        where=("empty values",),
        request=".*min.insync.replicas='2'",
    ),
    # -- what is better
    Meant(
        name="the time of a duplicate",
        reason="Kafka tells the client's own time as the time of the append, which it isn't",
        where=("sequences of producers", "claims of batches"),
        path=r".*\.log_append_time_ms",
        penstock=-1,
    ),
    Meant(
        name="when a producer wrote last",
        reason="Kafka tells the time that the client gave its last records; here it is when they came",
        where=("times of producers",),
        path=r".*\.last_timestamp",
        penstock="<now>",
    ),
    Meant(
        name="the greatest timestamp of what is there",
        reason="Kafka goes on to name a record that DeleteRecords has deleted, until its whole segment is",
        where=("offsets by time",),
        request="(from [67] on|written again): offset at -3",
    ),
    Meant(
        name="topics are there when they are answered",
        reason="Kafka answers UNKNOWN_TOPIC_OR_PARTITION while it creates a topic that Metadata asked for",
        where=("metadata",),
        path=r"topics\[.*\](\.error_code|\.partitions\[0\])",
    ),
    Meant(
        name="unknown ACL words",
        reason="Kafka closes the connection at a code of ACLs that it doesn't know; here it is refused like others",
        where=("describe_acls", "create_acls", "delete_acls"),
        kafka=_CLOSED,
    ),
    Meant(
        name="fetch sessions with impossible ids",
        reason="Kafka fails on ids outside of its cache's ranges; here such a session just isn't there",
        where=("fetch",),
        request="session_id is -?214748364[78]",
    ),
    Meant(
        name="no topic has the id zero",
        reason="Kafka fails on a session that begins with it; here it is a topic that isn't there",
        where=("no ids",),
        request="epoch 0, id 0",
        path=r"error_code|session_id|responses.*",
    ),
    Meant(
        name="an empty topic name is illegal everywhere",
        reason="Kafka answers UNKNOWN_SERVER_ERROR to DescribeTopicPartitions of it",
        where=("describe_topic_partitions",),
        request="topics.name is ''",
    ),
    Meant(
        name="unknown operations",
        reason="Kafka answers UNKNOWN_SERVER_ERROR to an operation that it doesn't know, here it is INVALID_REQUEST",
        where=("incremental_alter_configs",),
        request="resources.configs.config_operation is 4",
    ),
    Meant(
        name="each partition and group once",
        reason="a short request mustn't make a response of any length",
        where=("describe_producers", "describe_groups", "groups twice"),
        request=r".* holds all twice|\['(group|no|)', '\1'\] described",
    ),
    Meant(
        name="an id only for what is made",
        reason="Kafka draws an id that nothing will have when it only validates",
        where=("create_topics", "empty values"),
        path=r"topics\[.*\].topic_id",
        kafka="<id>",
        penstock="00000000000000000000000000000000",
    ),
    Meant(
        name="values as they are understood",
        reason="configs are stored without the blanks around them",
        where=("create_topics", "empty values"),
        request="topics.configs.value is ' 1 '|created with .*",
        path=r".*\.value",
    ),
    Meant(
        name="partitions are bounded",
        reason="topics.partitions_max holds for CreatePartitions as for CreateTopics",
        where=("create_partitions",),
        request=r"topics.count is (10001|2147483647)",
    ),
    Meant(
        name="bytes behind the last batch",
        reason="Kafka ignores what is too short to be a batch; here records that aren't whole batches are refused",
        where=("produce",),
        request=r"topic_data.partition_data.records is b['\"].*\(77\)",
    ),
    Meant(
        name="negative times are compressed, too",
        reason="Kafka fails on a record of a time below -1 where it compresses anew, and takes it everywhere else",
        where=("negative times",),
        request="a record of -[23] ms, gzip",
        path=r"responses\[.*",
    ),
    Meant(
        name="batches without a producer id",
        reason="Kafka fails with the whole request where a batch ends before that; here it is refused alone",
        where=("frames",),
        request="length (14|38), and no more, .*",
    ),
    Meant(
        name="lz4 that Java can't read",
        reason="Kafka fails on records that aren't what their codec says; here they are refused",
        where=("lz4 frames",),
        request="linked blocks|a frame to skip",
        path=r"responses\[.*error_code",
        kafka=-1,
        penstock=87,
    ),
    Meant(
        name="sizes of tagged fields",
        reason="Kafka reads a tagged field that it knows whatever size is said of it; here the size has to be right",
        where=("tags of known fields",),
        request="a size too large",
        penstock=_CLOSED,
    ),
    Meant(
        name="tagged fields of later versions",
        reason="Kafka closes the connection at a tag that only later versions have; here it is one of those unknown",
        where=("tags of known fields",),
        request="the state of a replica",
        kafka=_CLOSED,
    ),
    Meant(
        name="aborted transactions where nothing was read",
        reason="Kafka says null where the first batch is larger than what is left; clients read both as none",
        where=("limits of fetches",),
        request=".* level=1",
        path=r".*\.aborted_transactions",
        kafka=None,
    ),
    Meant(
        name="fetches end with a whole batch",
        reason="Kafka's end where the limit is, and clients drop the piece of a batch that comes last",
        where=("no wait for what doesn't fit",),
        request="[0-9]+ bytes from 0 on",
        path=r".*\.records",
    ),
    Meant(
        name="ids that come as static members",
        reason="Kafka fails where an id that it gave to a dynamic member comes with an instance id",
        where=("pending members",),
        request="it comes as a static member",
    ),
    Meant(
        name="who never came leaves quietly",
        reason="Kafka lets all members join again when an id goes that no member ever had",
        where=("pending members",),
        request="the member beside one that left",
        kafka=27,
        penstock=0,
    ),
    # -- what is kept to the coordinator
    Meant(
        name="internal topics are fixed",
        reason="nobody grows __consumer_offsets, changes its configs or deletes it: groups live in it",
        where=(
            "alter_configs",
            "incremental_alter_configs",
            "create_partitions",
            "growth",
            "faults of config changes",
        ),
        request=".*('__(consumer_offsets|transaction_state)'.*|__consumer_offsets to .*)",
    ),
    Meant(
        name="what is in internal topics",
        reason="the coordinators write other records, and so many as they need",
        where=("describe_log_dirs", "fetch", "list_offsets", "offset_for_leader_epoch"),
        path=r".*(records|high_watermark|last_stable_offset|offset|partition_size)",
        request=".*(__consumer_offsets|__transaction_state|topics is null).*",
    ),
)
