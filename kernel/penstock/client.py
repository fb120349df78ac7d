"""A Kafka client in Python on anyio, for programs; the code is in :mod:`penstock_tools.client`.

It is what the ``penstock`` command is made of, without TLS, SASL and transactions.
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

from penstock_tools.client import (
    Admin,
    ClientSettings,
    Cluster,
    Connection,
    Consumer,
    ConsumerSettings,
    Delivery,
    Fetched,
    Membership,
    MembershipSettings,
    Producer,
    ProducerSettings,
)
