"""One self-contained HTML page from one or several results: tables, latency and throughput plots."""

from __future__ import annotations

__all__ = ("page",)

from collections.abc import Callable, Sequence
from typing import Any
from xml.sax.saxutils import escape

from penstock_tools.bench._svg import (
    Axis,
    Line,
    chart,
    linear_axis,
    log_axis,
    quantile_axis,
    short,
    time_axis,
)

_STYLE = """
:root{color-scheme:light dark;--ink:#1d2733;--soft:#66727f;--line:#d9dee4;--paper:#fff;--panel:#f6f8fa}
@media (prefers-color-scheme:dark){:root{--ink:#e3e8ee;--soft:#98a4b0;--line:#333c46;--paper:#14181d;--panel:#1b2027}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1560px;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}.soft{color:var(--soft);margin-top:.2rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,540px),1fr));gap:1rem}
figure{margin:0;padding:.8rem;background:var(--panel);border-radius:8px}
figcaption{font-weight:600;margin-bottom:.3rem}
svg{width:100%;height:auto;display:block}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
.grid{stroke:var(--line);stroke-width:1}.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.dash{stroke-dasharray:5 4}
.c0{stroke:#2f6fdf}.c1{stroke:#e0711c}.c2{stroke:#1f9e62}.c3{stroke:#c23b6b}.c4{stroke:#8557d3}.c5{stroke:#0e9aa7}
.c6{stroke:#a07c16}.c7{stroke:#7a8794}
.key{display:inline-flex;align-items:center;gap:.4rem;margin-right:1rem;color:var(--soft);font-size:.85rem}
.key svg{width:26px;height:8px}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .8rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{border-bottom-width:2px}
.bad{color:#c8321f;font-weight:700}
details{margin-top:1rem}pre{background:var(--panel);padding:.8rem;border-radius:8px;overflow-x:auto}
"""

#: Row of the table, how to get it from a result, decimals; None is shown as a dash.
_ROWS: tuple[tuple[str, Callable[[dict[str, Any]], float | None], int], ...] = (
    ("published, messages/s", lambda r: _mean(r["publishRate"]), 0),
    ("published, MB/s", lambda r: _mean(r.get("publishMB") or _megabytes(r, "publishRate")), 1),
    ("consumed, messages/s", lambda r: _mean(r["consumeRate"]), 0),
    ("consumed, MB/s", lambda r: _mean(r.get("consumeMB") or _megabytes(r, "consumeRate")), 1),
    ("publish latency p50, ms", lambda r: r.get("aggregatedPublishLatency50pct"), 2),
    ("publish latency p99, ms", lambda r: r.get("aggregatedPublishLatency99pct"), 2),
    ("publish latency p99.9, ms", lambda r: r.get("aggregatedPublishLatency999pct"), 2),
    ("publish latency max, ms", lambda r: r.get("aggregatedPublishLatencyMax"), 2),
    ("end-to-end latency p50, ms", lambda r: r.get("aggregatedEndToEndLatency50pct"), 2),
    ("end-to-end latency p99, ms", lambda r: r.get("aggregatedEndToEndLatency99pct"), 2),
    ("end-to-end latency p99.9, ms", lambda r: r.get("aggregatedEndToEndLatency999pct"), 2),
    ("largest backlog, messages", lambda r: max(r.get("backlog") or [0]), 0),
    ("broker, processors busy", lambda r: _mean(r.get("brokerCpu")), 2),
    ("broker, peak resident MB", lambda r: r.get("broker", {}).get("residentMaxMB"), 0),
    ("clients, processors busy", lambda r: _mean(r.get("clientCpu")), 2),
)


def _mean(values: Sequence[float | None] | None) -> float | None:
    present = [value for value in values or () if value is not None]
    return sum(present) / len(present) if present else None


def _megabytes(result: dict[str, Any], key: str) -> list[float]:
    return [rate * result.get("messageSize", 0) / 1e6 for rate in result[key]]


def page(results: Sequence[dict[str, Any]], title: str) -> str:
    """The page; results of the OpenMessaging Benchmark itself may be among them."""
    names = _names(results)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_subtitle(results))}</p>',
        _table(results, names),
        '<div class="charts">',
        *_charts(results, names),
        "</div>",
        "<h2>What was run</h2>",
        *(_details(result, name) for result, name in zip(results, names, strict=True)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _names(results: Sequence[dict[str, Any]]) -> list[str]:
    """What tells runs apart: the label, else workload, else driver; a number when that is taken."""
    names: list[str] = []
    for result in results:
        label = result.get("label")
        name = str(label or result["workload"])
        if len({str(r["workload"]) for r in results}) > 1 and label:
            name = f"{label}: {result['workload']}"
        names.append(name if name not in names else f"{name} #{len(names) + 1}")
    return names


def _subtitle(results: Sequence[dict[str, Any]]) -> str:
    first = results[0]
    parts = [", ".join(dict.fromkeys(str(r["workload"]) for r in results))]
    parts += [str(first["beginTime"])] if "beginTime" in first else []
    machine = first.get("machine", {})
    if machine:
        parts.append(f"{machine.get('processors')} x {machine.get('processor')}, {machine.get('system')}")
    return " · ".join(parts)


# -- tables --------------------------------------------------------------------------------------------------


def _table(results: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for label, get, decimals in _ROWS:
        values = [get(result) for result in results]
        if any(value is not None for value in values):
            cells = "".join(f"<td>{'-' if v is None else f'{v:,.{decimals}f}'}</td>" for v in values)
            rows.append(f"<tr><td>{escape(label)}</td>{cells}</tr>")
    for key, label in (("lost", "acknowledged and lost"), ("duplicates", "duplicates"), ("errors", "failed")):
        counts = [result.get("account", {}).get(key) for result in results]
        if any(count is not None for count in counts):
            cells = "".join(_count_cell(count) for count in counts)
            rows.append(f"<tr><td>messages {label}</td>{cells}</tr>")
    body = "".join(rows)
    return (
        f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _count_cell(value: int | None) -> str:
    if value is None:
        return "<td>-</td>"
    return f'<td class="bad">{value:,}</td>' if value else "<td>0</td>"


def _details(result: dict[str, Any], name: str) -> str:
    lines = [f"workload: {result['workload']}"]
    for key in ("workloadConfig", "machine", "broker", "account", "backlogPhase"):
        if result.get(key):
            lines += [f"{key}:", *_plain(result[key], 1)]
    lines += [f"failure: {failure}" for failure in result.get("failures", [])]
    return f"<details><summary>{escape(name)}</summary><pre>{escape(chr(10).join(lines))}</pre></details>"


def _plain(value: dict[str, Any], depth: int) -> list[str]:
    lines = []
    for key, inner in value.items():
        if isinstance(inner, dict):
            lines += [f"{'  ' * depth}{key}:", *_plain(inner, depth + 1)]
        elif isinstance(inner, list):
            lines += [f"{'  ' * depth}{key}:", *(f"{'  ' * (depth + 1)}{item}" for item in inner)]
        else:
            lines.append(f"{'  ' * depth}{key}: {inner}")
    return lines


# -- charts --------------------------------------------------------------------------------------------------


def _charts(results: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    many = len(results) > 1

    def series(*keys: tuple[str, str]) -> list[Line]:
        """Lines over time: for one run each key has a colour, for several each run has one."""
        lines = []
        for run, (result, name) in enumerate(zip(results, names, strict=True)):
            for number, (key, label) in enumerate(keys):
                values = result.get(key) or []
                points = [(t, v) for t, v in zip(_times(result), values, strict=False) if v is not None]
                if points:
                    text = f"{name}, {label}" if many else label
                    lines.append(Line(text, points, run if many else number, many and number > 0))
        return lines

    figures = [
        _quantile_figure(
            results, names, "aggregatedPublishLatencyQuantiles", "Publish latency by percentile"
        ),
        _quantile_figure(
            results, names, "aggregatedEndToEndLatencyQuantiles", "End-to-end latency by percentile"
        ),
        _time_figure(
            "Publish latency over time",
            series(("publishLatency50pct", "p50"), ("publishLatency99pct", "p99")),
            "ms",
            log=True,
        ),
        _time_figure(
            "End-to-end latency over time",
            series(("endToEndLatency50pct", "p50"), ("endToEndLatency99pct", "p99")),
            "ms",
            log=True,
        ),
        _time_figure(
            "Throughput over time",
            series(("publishRate", "published"), ("consumeRate", "consumed")),
            "messages/s",
        ),
        _time_figure("Backlog over time", series(("backlog", "backlog")), "messages"),
        _time_figure(
            "Processors busy", series(("brokerCpu", "broker"), ("clientCpu", "all clients")), "processors"
        ),
        _time_figure("Resident memory of the broker", series(("brokerResidentMB", "resident")), "MB"),
    ]
    return [figure for figure in figures if figure]


def _times(result: dict[str, Any]) -> list[float]:
    """Ends of the periods; the OpenMessaging Benchmark doesn't write them, its periods are 10 s."""
    return result.get("time") or [10.0 * (number + 1) for number in range(len(result["publishRate"]))]


def _quantile_figure(results: Sequence[dict[str, Any]], names: Sequence[str], key: str, title: str) -> str:
    lines = []
    for run, (result, name) in enumerate(zip(results, names, strict=True)):
        found = sorted((float(percent) / 100, float(ms)) for percent, ms in (result.get(key) or {}).items())
        inside = [(part, ms) for part, ms in found if part < 1]
        if inside and inside[-1][1] > 0:
            lines.append(Line(name, [*inside, (1.0, found[-1][1])] if found[-1][0] >= 1 else inside, run))
    if not lines:
        return ""
    deepest = max(point[0] for line in lines for point in line.points if point[0] < 1)
    return _figure(title, lines, quantile_axis(deepest), _log_over(lines), "percentile", "ms")


def _time_figure(title: str, lines: list[Line], unit: str, *, log: bool = False) -> str:
    if not lines or not any(value > 0 for line in lines for _, value in line.points):
        return ""
    x_axis = time_axis(max(point[0] for line in lines for point in line.points))
    y_axis = (
        _log_over(lines) if log else linear_axis(max(point[1] for line in lines for point in line.points))
    )
    return _figure(title, lines, x_axis, y_axis, "seconds", unit)


def _log_over(lines: Sequence[Line]) -> Axis:
    values = [value for line in lines for _, value in line.points if value > 0]
    return log_axis(min(values), max(values))


def _figure(title: str, lines: Sequence[Line], x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> str:
    legend = "".join(
        f'<span class="key"><svg viewBox="0 0 26 8"><path class="line c{line.colour % 8}'
        f'{" dash" if line.dashed else ""}" d="M0 4H26"/></svg>{escape(line.label)}'
        f"{f' (max {short(max(v for _, v in line.points))})'}</span>"
        for line in lines
    )
    drawn = chart(lines, x_axis, y_axis, x_label, y_label, title)
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawn}<div>{legend}</div></figure>"
