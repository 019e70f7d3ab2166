#!/usr/bin/env python3
"""Writes kvwise-kv-cache.json, the Grafana dashboard: `python3 deploy/grafana/make_dashboard.py`."""

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


def main():
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels = []
    for i, (title, unit, targets) in enumerate(PANELS):
        panels.append({
            "id": i + 1, "type": "timeseries", "title": title, "datasource": source,
            "gridPos": {"x": 12 * (i % 2), "y": 8 * (i // 2), "w": 12, "h": 8},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "targets": [{"refId": chr(65 + n), "datasource": source, "expr": expr, "legendFormat": legend}
                        for n, (expr, legend) in enumerate(targets)],
        })

    def variable(name, label):
        query = "label_values(vllm:num_requests_running, %s)" % name
        return {"name": label, "type": "query", "datasource": source, "query": query, "definition": query,
                "includeAll": True, "multi": True, "allValue": ".*", "refresh": 2,
                "current": {"text": "All", "value": "$__all"}}

    dashboard = {
        "title": "vLLM KV cache (kvwise)", "uid": "kvwise-kv-cache", "schemaVersion": 39, "tags": ["vllm", "kvwise"],
        "time": {"from": "now-1h", "to": "now"}, "refresh": "10s", "panels": panels,
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"},
                                variable("model_name", "model"), variable("instance", "instance")]},
    }
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kvwise-kv-cache.json")
    with open(path, "w") as out:
        out.write(json.dumps(dashboard, indent=1) + "\n")


if __name__ == "__main__":
    main()
