"""The broker: the one place that builds everything, in order, and takes it down again.

``async with Broker(...) as broker`` is a whole Kafka broker in this process; ``SyncBroker`` is the same for
code without an event loop. It runs on the asyncio backend (uvloop where it is installed).
"""

from __future__ import annotations

__all__ = (
    "Broker",
    "BrokerStatistics",
    "Collector",
    "DirectoryInUseError",
    "SyncBroker",
    "own_directory",
    "uvloop_installed",
)

from penstock.broker._broker import Broker
from penstock.broker._collector import Collector
from penstock.broker._process import DirectoryInUseError, own_directory
from penstock.broker._statistics import BrokerStatistics
from penstock.broker._sync import SyncBroker, uvloop_installed
