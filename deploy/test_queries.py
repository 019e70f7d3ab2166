#!/usr/bin/env python3
"""Asks a real Prometheus every query of the dashboard and of the alert rules: `python3 deploy/test_queries.py`.

Needs `prometheus` and `promtool` (Debian package prometheus) on PATH. Serves a page like vLLM's with figures that
provoke each alert, lets Prometheus scrape it twice a second, and requires an answer with data from every query. The
windows of the rules are shortened from minutes to seconds, so that the run takes half a minute.
With `--kvwise PROGRAM` it also runs `kvwise attach --export` against that page and a server that is down, asks the queries
of the fleet's dashboard and alerts, and makes a recording from that Prometheus (`kvwise attach --prometheus`).
With `--vllm http://HOST:PORT` a real server takes the place of that page, and the alerts are left out: send it requests
meanwhile. `--page FILE.html` draws what every panel shows. Where the Python package grafana-foundation-sdk is installed,
Grafana's own schema reads the dashboards, and nothing of them may be unknown to it.
"""

import argparse
import http.server
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

import panels_page

HERE = os.path.dirname(os.path.abspath(__file__))
BEGIN = time.time()
EXPORTER_PORT = 39091


def page():
    age = time.time() - BEGIN
    labels = 'engine="0",model_name="m"'
    lines = ["process_start_time_seconds %.2f" % (BEGIN - 100 if age < 10 else BEGIN + 9)]
    for name, value in (("kv_cache_usage_perc", 0.95 if age < 16 else 0.5), ("num_requests_running", 8), ("num_requests_waiting", 3),
                        ("prefix_cache_queries_total", 100 * age), ("prefix_cache_hits_total", 40 * age),
                        ("num_preemptions_total", age), ("request_success_total", 2 * age),
                        ("generation_tokens_total", 500 * age), ("prompt_tokens_total", 900 * age)):
        lines.append("vllm:%s{%s} %f" % (name, labels, value))
    lines.append('vllm:cache_config_info{engine="0",num_gpu_blocks="101",block_size="16"} 1')
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "request_queue_time_seconds"):
        for bound, share in (("0.1", 0.5), ("1.0", 0.9), ("+Inf", 1.0)):
            lines.append('vllm:%s_bucket{%s,le="%s"} %f' % (name, labels, bound, share * age))
        lines.append("vllm:%s_sum{%s} %f" % (name, labels, age / 4))
        lines.append("vllm:%s_count{%s} %f" % (name, labels, age))
    return "\n".join(lines) + "\n"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = page().encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def shorten(rules):
    """Minutes become seconds: [5m] is [5s], `for: 5m` is immediate."""
    rules = re.sub(r"\[(\d+)m\]", lambda m: "[%ss]" % m.group(1), rules)
    return re.sub(r"for: \d+m", "for: 0s", rules)


def ask(base, path):
    return json.load(urllib.request.urlopen(base + path, timeout=10))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--prometheus", default="prometheus")
    parser.add_argument("--promtool", default="promtool")
    parser.add_argument("--kvwise")
    parser.add_argument("--vllm", metavar="URL", help="a real server")
    parser.add_argument("--seconds", type=float, default=32, help="how long to watch")
    parser.add_argument("--page", metavar="FILE", help="draw the panels")
    arguments = parser.parse_args()
    rules_path = os.path.join(HERE, "prometheus", "kvwise-alerts.yaml")
    subprocess.run([arguments.promtool, "check", "rules", rules_path], check=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    watched = urllib.parse.urlsplit(arguments.vllm).netloc if arguments.vllm else "127.0.0.1:%d" % server.server_port
    port = 39090
    base = "http://127.0.0.1:%d" % port
    with tempfile.TemporaryDirectory() as folder:
        with open(rules_path) as rules, open(os.path.join(folder, "rules.yaml"), "w") as out:
            out.write(shorten(rules.read()))
        with open(os.path.join(folder, "prometheus.yaml"), "w") as out:
            out.write("global: {scrape_interval: 500ms, evaluation_interval: 500ms}\nrule_files: [rules.yaml]\n"
                      "scrape_configs:\n- job_name: vllm\n  static_configs: [{targets: ['%s']}]\n" % watched)
        exporter = None
        if arguments.kvwise:
            with open(os.path.join(folder, "prometheus.yaml"), "a") as out:
                out.write("- job_name: kvwise\n  static_configs: [{targets: ['127.0.0.1:%d']}]\n" % EXPORTER_PORT)
            exporter = subprocess.Popen([arguments.kvwise, "attach", "http://" + watched, "http://127.0.0.1:9",
                                         "--interval", "500ms", "--export", "127.0.0.1:%d" % EXPORTER_PORT])
        log = open(os.path.join(folder, "log"), "w")
        prometheus = subprocess.Popen([arguments.prometheus, "--config.file=prometheus.yaml", "--storage.tsdb.path=data",
                                       "--web.listen-address=127.0.0.1:%d" % port], cwd=folder, stdout=log, stderr=log)
        try:
            sys.exit(check(base, folder, arguments))
        finally:
            for process in filter(None, (prometheus, exporter)):
                process.terminate()
                process.wait()


def unknown_to_grafana(dashboard):
    """Parts of a dashboard that Grafana's own schema does not keep; `None` where its package is not installed."""
    try:
        from grafana_foundation_sdk.cog import encoder, plugins
        from grafana_foundation_sdk.models.dashboard import Dashboard
    except ImportError:
        return None
    plugins.register_default_plugins()
    kept = json.loads(encoder.JSONEncoder().encode(Dashboard.from_json(dashboard)))

    def lost(ours, theirs, path):
        if isinstance(ours, dict):
            return [f for key, value in ours.items() for f in lost(value, (theirs or {}).get(key), path + "/" + key)]
        if isinstance(ours, list):
            pairs = enumerate(ours)
            return [f for i, value in pairs for f in lost(value, theirs[i] if theirs and i < len(theirs) else None, "%s/%d" % (path, i))]
        return [] if ours == theirs else [path]

    return lost(dashboard, kept, "")


def check(base, folder, arguments):
    fired, failed = set(), 0
    begin = time.time()
    while time.time() - begin < arguments.seconds:
        time.sleep(0.5)
        try:
            for alert in ask(base, "/api/v1/alerts")["data"]["alerts"]:
                if alert["state"] == "firing":
                    fired.add(alert["labels"]["alertname"])
        except OSError:
            pass  # still starting
    with open(os.path.join(HERE, "prometheus", "kvwise-alerts.yaml")) as rules:
        names = re.findall(r"alert: (\w+)", rules.read())
    for name in names:
        if arguments.vllm or (name.startswith("KvFleet") and not arguments.kvwise):
            continue
        good = name in fired
        failed += not good
        print("%-7s alert %s fired" % ("ok" if good else "FAILED", name))
    dashboards = []
    for name in ["kvwise-kv-cache.json"] + (["kvwise-fleet.json"] if arguments.kvwise else []):
        with open(os.path.join(HERE, "grafana", name)) as text:
            dashboards.append(json.load(text))
        unknown = unknown_to_grafana(dashboards[-1])
        if unknown is None:
            print("skipped the schema of %s: grafana-foundation-sdk is not installed" % name)
        else:
            failed += bool(unknown)
            print("%-7s schema of %s %s" % ("FAILED" if unknown else "ok", name, " ".join(unknown)))
    for panel in (panel for dashboard in dashboards for panel in dashboard["panels"]):
        for target in panel["targets"]:
            query = panels_page.filled(target["expr"], "5s")
            answer = ask(base, "/api/v1/query?query=" + urllib.parse.quote(query))
            values = [float(r["value"][1]) for r in answer["data"]["result"]]
            # a real server that is idle at the end has quantiles of nothing
            good = bool(values) and (bool(arguments.vllm) or all(v == v for v in values))
            failed += not good
            print("%-7s panel %s: %s" % ("ok" if good else "FAILED", panel["title"], values))
    if arguments.page:
        empty = panels_page.write(arguments.page, base, dashboards, arguments.seconds, "5s")
        failed += len(empty)
        print("%-7s panels drawn in %s %s" % ("FAILED" if empty else "ok", arguments.page, empty or ""))
    if arguments.kvwise and not arguments.vllm:
        recording = os.path.join(folder, "recording")
        subprocess.run([arguments.kvwise, "attach", base, "--prometheus", "--duration", "60s", "-q", "-o", recording], check=True)
        report = json.loads(subprocess.run([arguments.kvwise, "report", recording, "--format", "json"], check=True,
                                           stdout=subprocess.PIPE).stdout)
        engine = report["engines"][0]
        good = engine["scrapes"] > 30 and 0.39 < engine["prefix_hit_rate"] < 0.41 and any(e["kind"] == "restart" for e in report["events"])
        failed += not good
        print("%-7s recording from history: %d scrapes, hit rate %.3f" % ("ok" if good else "FAILED", engine["scrapes"], engine["prefix_hit_rate"]))
    return 1 if failed else 0


if __name__ == "__main__":
    main()
