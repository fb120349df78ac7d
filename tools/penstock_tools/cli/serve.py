"""Run a broker until it is told to stop."""

from __future__ import annotations

__all__ = ("app",)

import json
import logging
import os
import signal
import sys
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import anyio
import typer

from penstock_tools.cli._app import ConfigOption, PluginOption, PluginsDirOption, SetOption, Setup
from penstock_tools.cli._logging import set_up_logging

if TYPE_CHECKING:
    from penstock.broker import Broker, Collector

app = typer.Typer(add_completion=False)

#: Parameters of mallopt(3), from glibc's malloc.h.
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


@app.command()
def serve(
    context: typer.Context,
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
    log_level: Annotated[
        str | None,
        typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error (logging.level)."),
    ] = None,
    statistics_interval: Annotated[
        float,
        typer.Option(
            "--statistics-interval", metavar="SECONDS", min=0, help="Log statistics this often; 0: never."
        ),
    ] = 0.0,
) -> None:
    """Run a broker; without any configuration it is the embedded default in ./penstock-data.

    SIGTERM and SIGINT drain: answer what is in flight, upload, commit, close. SIGUSR1 logs the statistics.
    """
    levels = [f"logging.level={log_level.lower()}"] if log_level is not None else []
    setup = Setup.of(context, config, [*(sets or ()), *levels], plugins_dir, plugin)
    from penstock.broker import Broker, uvloop_installed

    loaded = setup.load_config()
    set_up_logging(loaded)
    _bound_malloc()
    broker = Broker(loaded, registry=setup.registry())
    anyio.run(
        _serve,
        broker,
        statistics_interval,
        backend="asyncio",
        backend_options={"use_uvloop": uvloop_installed()},
    )


async def _serve(broker: Broker, statistics_interval: float) -> None:
    from penstock.broker import Collector
    from penstock.work.periodic import PeriodicJob

    started = time.perf_counter()
    log = logging.getLogger("penstock")
    async with anyio.create_task_group() as tasks:
        # signals are ours before the broker starts, so that one during recovery stops it too
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) as signals:
            stop = anyio.Event()
            collector: Collector | None = None

            async def listen() -> None:
                async for number in signals:
                    if number == signal.SIGUSR1:
                        if collector is not None:
                            _log_statistics(broker, collector)
                        continue
                    if stop.is_set():
                        log.warning("stopping already; the WAL keeps what isn't uploaded")
                        continue
                    broker.stop_reason(signal.Signals(number).name)
                    stop.set()
                    if collector is None:
                        log.info("stopping before the start is complete; the WAL keeps what isn't uploaded")
                        start.cancel()

            tasks.start_soon(listen)
            with anyio.CancelScope() as start:
                async with broker:
                    collector = Collector(broker.unaccounted_bytes)
                    collector.start()
                    _print_banner(broker, (time.perf_counter() - started) * 1000)
                    async with anyio.create_task_group() as running:
                        running.start_soon(collector.run)
                        if statistics_interval > 0:
                            tell = partial(_log_statistics, broker, collector)
                            job = PeriodicJob("statistics", tell, statistics_interval, logger=log)
                            running.start_soon(job.run)
                        await stop.wait()
                        running.cancel_scope.cancel()
                    log.info("stopping: answering, uploading, closing")
                    collector = None
            tasks.cancel_scope.cancel()
    log.info("stopped")


def _bound_malloc() -> None:
    """Have large blocks go back to the system when they are freed, whatever was freed before (mallopt(3)).

    By default glibc raises its threshold to the largest block ever freed and keeps up to 8 heaps per core; buffers
    of cold reads, made in threads, then leave holes: 100 MiB after some GiB (measured). No-op without glibc.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 128 * 1024)
        mallopt(_M_ARENA_MAX, 2)


def _print_banner(broker: Broker, start_ms: float) -> None:
    import penstock
    from penstock.wire.native_code import status

    tree = broker.config.tree
    lines = [
        f"Penstock {penstock.__version__} is ready in {start_ms:.0f} ms",
        f"  listening    {broker.bootstrap_servers} (PLAINTEXT)",
        f"  cluster      {broker.cluster_id}, node {tree.broker.node_id}",
        f"  durability   acknowledged records survive the loss of: {_domain(broker.durability_domain)}",
        f"  validation   {tree.topics.validate_records}, in {status()}",
        f"  wal identity {broker.wal_identity or 'none: a lost or exchanged WAL would not be noticed'}",
    ]
    lines += [f"  {kind:<12} {name}" for kind, name in broker.plugins.items()]
    lines += [f"  {kind:<12} {place}" for kind, place in broker.places.items()]
    _say("\n".join(lines) + "\n")


def _say(text: str) -> None:
    """Write to stdout, if that takes it: a broker that serves doesn't end for want of somebody who reads this."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        logging.getLogger("penstock").warning("nothing can be written to stdout: error=%s", error.strerror)
        # what is buffered must go somewhere when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _domain(domain: str) -> str:
    meanings = {
        "process": "nothing; they live in this process",
        "host": "this process (kill -9, power loss); they are on this host's disk",
        "zone": "this host; they are stored in this zone",
        "region": "a whole zone; they are stored in this region",
    }
    return meanings.get(domain, domain)


def _log_statistics(broker: Broker, collector: Collector) -> None:
    statistics = {**broker.statistics().as_dict(), "garbage_collector": asdict(collector.statistics())}
    logging.getLogger("penstock.statistics").info("%s", json.dumps(statistics))
