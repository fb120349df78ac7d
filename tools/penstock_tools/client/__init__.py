"""A small Kafka client over Penstock's own codecs: for the command line, for producing in process, for tests.

It speaks to any Kafka broker from 2.1 on, in plaintext. Start with :class:`Cluster`; the others work on one.
"""

from __future__ import annotations

__all__ = (
    "Admin",
    "ClientSettings",
    "Cluster",
    "Connection",
    "Consumer",
    "ConsumerSettings",
    "Delivery",
    "Fetched",
    "Membership",
    "MembershipSettings",
    "Producer",
    "ProducerSettings",
)

from penstock_tools.client.admin import Admin
from penstock_tools.client.cluster import ClientSettings, Cluster
from penstock_tools.client.connection import Connection
from penstock_tools.client.consumer import Consumer, ConsumerSettings, Fetched
from penstock_tools.client.membership import Membership, MembershipSettings
from penstock_tools.client.producer import Delivery, Producer, ProducerSettings
