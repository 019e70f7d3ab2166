"""Draws what the panels of a dashboard show, without Grafana: one HTML file with a chart for each panel."""

import html
import json
import re
import time
import urllib.parse
import urllib.request

WIDTH, HEIGHT, LEFT, BOTTOM = 560, 200, 60, 22
COLOURS = ("#3274d9", "#e02f44", "#299c46", "#ff9830", "#8f3bb8", "#00a5a5", "#6b6b6b", "#b877d9")


def filled(query, interval):
    """A panel's query as Grafana sends it with every variable at All."""
    return re.sub(r"\$(model|instance|server)\b", ".*", query.replace("$__rate_interval", interval))


def legend(template, labels):
    text = re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda m: labels.get(m.group(1), ""), template or "")
    return text.strip() or json.dumps(labels)


def series_of(base, panel, seconds, interval):
    """What Prometheus answers to each query of a panel: (legend, [(time, value)])."""
    end, found = time.time(), []
    for target in panel["targets"]:
        asked = {"query": filled(target["expr"], interval), "start": end - seconds, "end": end, "step": max(0.5, seconds / 120)}
        path = base + "/api/v1/query_range?" + urllib.parse.urlencode(asked)
        for row in json.load(urllib.request.urlopen(path, timeout=10))["data"]["result"]:
            points = [(float(t), float(v)) for t, v in row["values"]]
            found.append((legend(target.get("legendFormat"), row["metric"]), [p for p in points if p[1] == p[1]]))
    return found


def chart(panel, series):
    values = [v for _, points in series for _, v in points if abs(v) != float("inf")]
    times = [t for _, points in series for t, _ in points]
    if not values:
        return "<p class=none>no data</p>"
    low, high = min(values + [0.0]), max(values + [1e-9])
    first, last = min(times), max(max(times), min(times) + 1)

    def at(t, v):
        x = LEFT + (t - first) / (last - first) * (WIDTH - LEFT - 8)
        return "%.1f,%.1f" % (x, 8 + (high - v) / (high - low) * (HEIGHT - BOTTOM - 8))

    parts = []
    for share in (0, 0.5, 1):
        value = low + share * (high - low)
        x, y = at(first, value).split(",")
        parts.append('<line x1="%s" y1="%s" x2="%d" y2="%s" stroke="#ddd"/>' % (x, y, WIDTH - 8, y))
        parts.append('<text x="%d" y="%s" text-anchor="end">%.3g</text>' % (LEFT - 4, float(y) + 4, value))
    parts.append('<text x="%d" y="%d">%d s, unit: %s</text>' % (
        LEFT, HEIGHT - 4, last - first, panel["fieldConfig"]["defaults"].get("unit", "none")))
    names = []
    for i, (name, points) in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        line = " ".join(at(t, v) for t, v in points if abs(v) != float("inf"))
        parts.append('<polyline fill="none" stroke="%s" stroke-width="1.5" points="%s"/>' % (colour, line))
        names.append('<span style="color:%s">%s</span>' % (colour, html.escape(name)))
    return '<svg viewBox="0 0 %d %d">%s</svg><div>%s</div>' % (WIDTH, HEIGHT, "".join(parts), " &nbsp; ".join(names))


def write(path, base, dashboards, seconds, interval):
    """Writes the page; returns titles of panels without data."""
    empty, body = [], []
    for dashboard in dashboards:
        body.append("<h1>%s</h1><main>" % html.escape(dashboard["title"]))
        for panel in dashboard["panels"]:
            series = series_of(base, panel, seconds, interval)
            if not any(points for _, points in series):
                empty.append(panel["title"])
            body.append("<section><h2>%s</h2>%s</section>" % (html.escape(panel["title"]), chart(panel, series)))
        body.append("</main>")
    with open(path, "w") as out:
        out.write("<!doctype html><meta charset=utf-8><title>panels</title><style>body{font:13px sans-serif;margin:16px}"
                  "main{display:grid;grid-template-columns:1fr 1fr;gap:12px}section{border:1px solid #ccc;padding:8px}"
                  "h2{font-size:14px;margin:0}text{font-size:11px;fill:#555}.none{color:#b00}</style>" + "".join(body))
    return empty
