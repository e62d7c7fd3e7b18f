"""A dashboard as one SVG: what its panels show, from the data of a run, without a Grafana. Each panel stands where Grafana has it."""

import html
import math
import re

COLUMN, ROW, POINTS, SERIES = 50, 25, 90, 6
COLOURS = ["#3274d9", "#e0752d", "#56a64b", "#a352cc", "#c4162a", "#8a8f98"]
UNITS = {"percentunit": ("%", 100), "s": (" s", 1), "Bps": (" B/s", 1), "bytes": (" B", 1), "cps": ("/s", 1), "ops": ("/s", 1), "reqps": ("/s", 1)}


def number(value, unit):
    suffix, factor = UNITS.get(unit, ("", 1))
    value = 0 if abs(value) < 1e-9 else value * factor
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{' ' if suffix.startswith(' ') else ''}{prefix}{suffix.strip()}"
    return f"{value:.3g}{suffix}"


def text(x, y, content, more=""):
    return f'<text x="{x}" y="{y}"{more}>{html.escape(content)}</text>'


def cut(content, width):
    """About what fits at 11 px."""
    room = int(width / 6)
    return content if len(content) <= room else content[: room - 1] + "…"


def lines(targets):
    """The series of a panel with their names, the largest first."""
    out = []
    for legend, result in targets:
        for series in result:
            points = [(t, v) for t, v in series["values"] if math.isfinite(v)]
            name = re.sub(r"{{\s*(\w+)\s*}}", lambda m: series["labels"].get(m[1], ""), legend)
            if points:
                # Addresses and ports differ from run to run and say nothing.
                out.append((re.sub(r"127\.0\.0\.1:\d+", "sluice-0", name), points))
    return sorted(out, key=lambda line: -max(v for _, v in line[1]))


def chart(x, y, w, h, series, unit, start, end):
    shown = series[:SERIES]
    legend = 14 * ((len(shown) + 1) // 2)
    left, top, right, bottom = x + 52, y + 28, x + w - 10, y + h - 10 - legend - 6
    high = max((v for _, points in shown for _, v in points), default=0) or 1
    low = min(0, min((v for _, points in shown for _, v in points), default=0))
    out = [f'<path class="g" d="M{left} {top}H{right}M{left} {(top + bottom) // 2}H{right}M{left} {bottom}H{right}"/>']
    for at, value in ((top, high), (bottom, low)):
        out.append(text(left - 5, at + 4, number(value, unit), ' class="s" text-anchor="end"'))
    for i, (name, points) in enumerate(shown):
        step = max(1, len(points) // POINTS)
        path = " ".join(f"{left + (t - start) / (end - start) * (right - left):.0f},{bottom - (v - low) / (high - low) * (bottom - top):.0f}" for t, v in points[::step])
        out.append(f'<polyline stroke="{COLOURS[i]}" points="{path}"/>')
        lx, ly = x + 12 + (i % 2) * (w - 20) // 2, y + h - 8 - legend + 14 * (i // 2) + 10
        more = f" and {len(series) - SERIES} more" if i == SERIES - 1 and len(series) > SERIES else ""
        out.append(f'<path stroke="{COLOURS[i]}" stroke-width="3" d="M{lx} {ly - 4}h8"/>' + text(lx + 12, ly, cut((name or "value") + more, w / 2 - 20), ' class="s"'))
    return out


def dashboard(title, panels, start, end):
    """The SVG of (panel, [(legend, series)…]) pairs."""
    height = max((p["gridPos"]["y"] + p["gridPos"]["h"]) for p, _ in panels) * ROW + 40
    width = 24 * COLUMN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" fill="#24292e">',
        f"<title>{html.escape(title)}</title>",
        "<style>polyline{fill:none;stroke-width:1.5}.g{stroke:#e3e6ea}.s{font-size:11px;fill:#57606a}.p{fill:#fff;stroke:#d0d7de}.t{font-weight:bold}</style>",
        f'<rect width="{width}" height="{height}" fill="#f6f8fa"/>',
        text(10, 24, f"{title}: {end - start:.0f} seconds of .ci/panels.sh", ' class="t" font-size="15"'),
    ]
    for panel, targets in panels:
        at = panel["gridPos"]
        x, y, w, h = at["x"] * COLUMN, at["y"] * ROW + 36, at["w"] * COLUMN, at["h"] * ROW
        if panel["type"] == "row":
            out.append(text(x + 10, y + 17, panel["title"], ' class="t" font-size="14"'))
            continue
        unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "")
        out.append(f'<rect class="p" x="{x + 3}" y="{y + 3}" width="{w - 6}" height="{h - 6}" rx="3"/>')
        name = panel["title"]
        out += [f"<g><title>{html.escape(name)}</title>", text(x + 12, y + 19, cut(name, w - 20), ' class="t"'), "</g>"]
        series = lines(targets)
        if panel["type"] == "stat":
            value = series[0][1][-1][1] if series else math.nan
            out.append(text(x + w // 2, y + h // 2 + 20, number(value, unit), ' font-size="30" text-anchor="middle"'))
        else:
            out += chart(x, y, w, h, series, unit, start, end)
    return "\n".join(out + ["</svg>", ""])
