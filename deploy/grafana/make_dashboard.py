#!/usr/bin/env python3
"""Writes the Grafana dashboards: `python3 deploy/grafana/make_dashboard.py`.

kvwise-kv-cache.json asks for vLLM's own metrics, kvwise-fleet.json for those of `kvwise attach ... --export`.
"""

import json
import os

MODEL = '{model_name=~"$model",instance=~"$instance"}'
BY = "by (instance, model_name)"

PANELS = [
    ("KV pool held by requests", "percentunit", [("avg %s (vllm:kv_cache_usage_perc%s)" % (BY, MODEL), "{{instance}} {{model_name}}")]),
    ("Requests", "short", [
        ("sum %s (vllm:num_requests_running%s)" % (BY, MODEL), "running {{instance}}"),
        ("sum %s (vllm:num_requests_waiting%s)" % (BY, MODEL), "waiting {{instance}}"),
    ]),
    ("Prefix hit rate", "percentunit", [(
        "sum %s (rate(vllm:prefix_cache_hits_total%s[$__rate_interval])) / (sum %s (rate(vllm:prefix_cache_queries_total%s[$__rate_interval])) > 0)"
        % (BY, MODEL, BY, MODEL), "{{instance}} {{model_name}}")]),
    ("Preemptions a minute", "short", [("60 * sum %s (rate(vllm:num_preemptions_total%s[$__rate_interval]))" % (BY, MODEL), "{{instance}} {{model_name}}")]),
    ("Tokens a second", "short", [
        ("sum %s (rate(vllm:generation_tokens_total%s[$__rate_interval]))" % (BY, MODEL), "generated {{instance}}"),
        ("sum %s (rate(vllm:prompt_tokens_total%s[$__rate_interval]))" % (BY, MODEL), "prompt {{instance}}"),
    ]),
    ("Time to first token", "s", [
        ("histogram_quantile(%s, sum by (le, instance) (rate(vllm:time_to_first_token_seconds_bucket%s[$__rate_interval])))" % (q, MODEL), "p%s {{instance}}" % name)
        for q, name in (("0.5", "50"), ("0.99", "99"))
    ]),
    ("Time between tokens", "s", [
        ("histogram_quantile(%s, sum by (le, instance) (rate(vllm:inter_token_latency_seconds_bucket%s[$__rate_interval])))" % (q, MODEL), "p%s {{instance}}" % name)
        for q, name in (("0.5", "50"), ("0.99", "99"))
    ]),
    ("Time in the queue, 90th percentile", "s", [
        ("histogram_quantile(0.9, sum by (le, instance) (rate(vllm:request_queue_time_seconds_bucket%s[$__rate_interval])))" % MODEL, "{{instance}}")]),
]


FLEET = '{server=~"$server",model_name=~"$model"}'
WINDOW = '{server=~"$server",model_name=~"$model",window="5m"}'
ENGINE = "{{server}} {{model_name}} {{rank}}"

FLEET_PANELS = [
    ("Servers that answer", "short", [("kvwise_server_up", "{{server}}")]),
    ("What is wrong now", "short", [("sum by (server, rule) (kvwise_finding%s)" % FLEET, "{{rule}} {{server}}")]),
    ("KV pool: held now, and at most in five minutes", "percentunit", [
        ("kvwise_kv_usage_ratio%s" % FLEET, "now " + ENGINE),
        ("kvwise_kv_usage_peak_ratio%s" % WINDOW, "peak " + ENGINE),
    ]),
    ("KV pool that no request held in five minutes, tokens", "short", [("kvwise_kv_never_held_tokens%s" % WINDOW, ENGINE)]),
    ("Prefix hit rate of five minutes", "percentunit", [("kvwise_prefix_hit_ratio%s" % WINDOW, ENGINE)]),
    ("Preemptions a minute", "short", [("60 * rate(kvwise_preemptions_total%s[$__rate_interval])" % FLEET, ENGINE)]),
    ("Tokens a second of the whole fleet", "short", [
        ("sum(rate(kvwise_generation_tokens_total%s[$__rate_interval]))" % FLEET, "generated"),
        ("sum(rate(kvwise_prompt_tokens_total%s[$__rate_interval]))" % FLEET, "prompt"),
    ]),
    ("Time to first token, 99th percentile of a minute", "s", [
        ('kvwise_time_to_first_token_seconds{server=~"$server",model_name=~"$model",quantile="0.99"}', ENGINE)]),
    ("Waiting requests", "short", [("kvwise_waiting_requests%s" % FLEET, ENGINE)]),
    ("Failed scrapes", "percentunit", [
        ('rate(kvwise_scrape_failures_total{server=~"$server"}[$__rate_interval]) / rate(kvwise_scrapes_total{server=~"$server"}[$__rate_interval])', "{{server}}")]),
]


def write(file, title, uid, all_panels, variables):
    """`variables`: (label, name in the dashboard) of each, and the metric that has the labels."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels = []
    for i, (heading, unit, targets) in enumerate(all_panels):
        panels.append({
            "id": i + 1, "type": "timeseries", "title": heading, "datasource": source,
            "gridPos": {"x": 12 * (i % 2), "y": 8 * (i // 2), "w": 12, "h": 8},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "targets": [{"refId": chr(65 + n), "datasource": source, "expr": expr, "legendFormat": legend}
                        for n, (expr, legend) in enumerate(targets)],
        })

    labels, metric = variables

    def variable(name, label):
        query = "label_values(%s, %s)" % (metric, name)
        return {"name": label, "type": "query", "datasource": source, "query": query,
                "includeAll": True, "multi": True, "allValue": ".*", "refresh": 2,
                "current": {"text": "All", "value": "$__all"}}

    dashboard = {
        "title": title, "uid": uid, "schemaVersion": 39, "tags": ["vllm", "kvwise"],
        "time": {"from": "now-1h", "to": "now"}, "refresh": "10s", "panels": panels,
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
                       + [variable(name, label) for name, label in labels]},
    }
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), file)
    with open(path, "w") as out:
        out.write(json.dumps(dashboard, indent=1) + "\n")


def main():
    write("kvwise-kv-cache.json", "vLLM KV cache (kvwise)", "kvwise-kv-cache", PANELS,
          ([("model_name", "model"), ("instance", "instance")], "vllm:num_requests_running"))
    write("kvwise-fleet.json", "KV caches of a fleet (kvwise)", "kvwise-fleet", FLEET_PANELS,
          ([("server", "server"), ("model_name", "model")], "kvwise_running_requests"))


if __name__ == "__main__":
    main()
