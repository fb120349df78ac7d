"""What a run shows while it runs: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

__all__ = ("Progress",)

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from penstock_tools.bench.results import Sample

_ROWS = 12
_LINE_EACH_S = 5.0
_COUNTS = ("phase", "s", "pub msg/s", "pub MB/s", "con msg/s", "con MB/s", "backlog")
_COLUMNS = (*_COUNTS, "pub p50", "pub p99", "e2e p50", "e2e p99", "broker cpu")


class Progress:
    """Told each phase and sample of a run; a context manager, for the terminal's sake."""

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._console = console
        self._samples: list[Sample] = []
        self._phase = ""
        self._shown_s = 0.0
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.__enter__()
        else:
            self._console.print(self._title, highlight=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def phase(self, name: str) -> None:
        """A phase begins."""
        self._phase = name
        self._shown_s = 0.0
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def sample(self, sample: Sample) -> None:
        """A period ended."""
        if sample.phase == "setting up":
            return
        self._samples.append(sample)
        del self._samples[:-_ROWS]
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif sample.time_s - self._shown_s >= _LINE_EACH_S or not self._shown_s:
            self._shown_s = sample.time_s
            self._console.print(_line(sample), highlight=False, soft_wrap=True)

    def _table(self) -> Group:
        table = Table(box=None, padding=(0, 1), header_style="dim")
        for number, column in enumerate(_COLUMNS):
            table.add_column(column, justify="right" if number else "left", no_wrap=True)
        for sample in self._samples:
            table.add_row(*_cells(sample), style="" if sample.phase == "measuring" else "dim")
        return Group(Text(f"{self._title}: {self._phase}", style="bold"), table)


def _cells(sample: Sample) -> list[str]:
    broker = "" if sample.broker_cpu is None else f"{sample.broker_cpu:.2f}"
    latencies = [
        f"{sample.latency_ms(name, q):.1f} ms" for name in ("publish", "endToEnd") for q in (0.5, 0.99)
    ]
    return [
        sample.phase,
        f"{sample.time_s:.1f}" if sample.time_s < 10 else f"{sample.time_s:.0f}",
        f"{sample.publish_rate:,.0f}",
        f"{sample.publish_bytes_rate / 1e6:,.1f}",
        f"{sample.consume_rate:,.0f}",
        f"{sample.consume_bytes_rate / 1e6:,.1f}",
        f"{sample.backlog:,}",
        *latencies,
        broker,
    ]


def _line(sample: Sample) -> str:
    errors = f" | errors {sample.error_rate:,.0f}/s" if sample.error_rate else ""
    return (
        f"{sample.phase:<12} {sample.time_s:>5.0f} s | pub {sample.publish_rate:,.0f} msg/s "
        f"{sample.publish_bytes_rate / 1e6:,.1f} MB/s | con {sample.consume_rate:,.0f} msg/s "
        f"{sample.consume_bytes_rate / 1e6:,.1f} MB/s | backlog {sample.backlog:,} | pub p50 "
        f"{sample.latency_ms('publish', 0.5):.1f} p99 {sample.latency_ms('publish', 0.99):.1f} ms | e2e p50 "
        f"{sample.latency_ms('endToEnd', 0.5):.1f} p99 {sample.latency_ms('endToEnd', 0.99):.1f} ms{errors}"
    )
