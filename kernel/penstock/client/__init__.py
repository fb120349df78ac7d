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

from penstock.client.admin import Admin
from penstock.client.cluster import ClientSettings, Cluster
from penstock.client.connection import Connection
from penstock.client.consumer import Consumer, ConsumerSettings, Fetched
from penstock.client.membership import Membership, MembershipSettings
from penstock.client.producer import Delivery, Producer, ProducerSettings
