//! Flags that describe traffic and how it is served; `simulate` and `sweep` share them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kvwise_core::units::parse_count;
use kvwise_core::{Error, ErrorKind, Result};
use kvwise_sim::simulate::{Routing, Slo, TierPolicy};

use super::curve::parse_tier;
use super::schedule::ScheduleName;
use super::trace_input::ReadingArgs;
use crate::printer::Printer;
use crate::usecase::curve::Room;
use crate::usecase::served::Serving;
use crate::usecase::served::apart::Split;
use crate::usecase::served::network::NetworkAsked;
use crate::usecase::served::tiers::{TiersAsked, parse_rate, parse_speed};
use crate::usecase::trace_memory::for_simulation;
use crate::usecase::traffic::Traffic;

/// Requests, by a trace or a description.
#[derive(Debug, Clone, Args)]
pub struct TrafficArgs {
    /// Trace: a file or folder in any format of `kvwise trace`, `-` for standard input.
    #[arg(value_name = "TRACE")]
    trace: Option<PathBuf>,

    #[command(flatten)]
    reading: ReadingArgs,

    /// Longest prompt in tokens, where no trace is given.
    #[arg(long, value_name = "N", help_heading = "Traffic")]
    input_len: Option<u32>,

    /// Longest answer in tokens, where no trace is given.
    #[arg(long, value_name = "N", help_heading = "Traffic")]
    output_len: Option<u32>,

    /// Shortest length as a share of the longest; lengths are uniform between them.
    #[arg(
        long,
        value_name = "R",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        help_heading = "Traffic"
    )]
    length_ratio: f64,

    /// Shape of the gaps between requests: 1 is Poisson, smaller is burstier.
    #[arg(
        long,
        value_name = "S",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        help_heading = "Traffic"
    )]
    burstiness: f64,

    /// Requests (or sessions) to simulate where no trace is given [default: 10 times the concurrency, or 1000].
    #[arg(long, value_name = "N", help_heading = "Traffic")]
    requests: Option<u32>,

    /// Replay a trace this much faster than recorded.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        help_heading = "Traffic"
    )]
    speed: f64,

    /// Turns of a session: each prompt repeats what was said so far.
    #[arg(long, value_name = "N", help_heading = "Traffic")]
    turns: Option<u32>,

    /// Mean seconds between an answer and the next turn of its session (exponentially distributed).
    #[arg(
        long,
        value_name = "S",
        allow_negative_numbers = true,
        help_heading = "Traffic"
    )]
    think_time: Option<f64>,

    /// LoRA adapters and the share of requests (or sessions) that uses each (sql=0.3,chat=0.2), with --enable-lora.
    #[arg(long, value_name = "NAME=SHARE,...", help_heading = "Traffic")]
    lora_shares: Option<String>,

    /// Seed of all random choices.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Traffic")]
    seed: u64,
}

impl TrafficArgs {
    /// Reads the trace, if one is given; intensity is added by the caller.
    ///
    /// # Errors
    /// If the trace cannot be read or is too large.
    pub fn traffic(&self, printer: Printer) -> Result<Traffic> {
        let trace = match &self.trace {
            Some(path) => {
                let loaded = self
                    .reading
                    .load(Some(path), printer, &for_simulation())
                    .map_err(|e| match e.kind() {
                        ErrorKind::NotFound => {
                            e.hint("TRACE is a file of requests; a model is given with --model, its traffic with --input-len ...")
                        }
                        _ => e,
                    })?;
                Some(loaded.trace)
            }
            None => None,
        };
        Ok(Traffic {
            trace,
            input_len: self.input_len,
            output_len: self.output_len,
            length_ratio: self.length_ratio,
            concurrency: None,
            rate: None,
            burstiness: self.burstiness,
            requests: self.requests,
            speed: self.speed,
            turns: self.turns,
            think_s: self.think_time,
            adapters: self
                .lora_shares
                .as_deref()
                .map(kvwise_sim::trace::Adapters::parse)
                .transpose()?,
            seed: self.seed,
        })
    }
}

/// Routing policies by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoutingName {
    /// One after the other.
    RoundRobin,
    /// Shortest queue.
    LeastLoaded,
    /// Longest known prefix, unless queues are uneven.
    PrefixAware,
    /// Where the session began.
    Session,
}

/// What joins the machines of one engine; `recommend` takes it, too.
#[derive(Debug, Clone, Args)]
pub struct NetworkArgs {
    /// Network between machines: infiniband-ndr, infiniband-hdr, infiniband-xdr, roce-400, efa-3200, efa-400,
    /// ethernet-100, ethernet-25, or what one GPU sends a second (50GB/s) [default: infiniband-ndr, assumed].
    #[arg(long, value_name = "NAME|RATE", help_heading = "Serving")]
    network: Option<String>,

    /// GPUs of one machine; an engine with more spans several [default: 8].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024), help_heading = "Serving")]
    gpus_per_node: Option<u64>,
}

impl NetworkArgs {
    /// As the simulator's preparation takes it.
    pub fn asked(&self) -> NetworkAsked {
        NetworkAsked {
            name: self.network.clone(),
            gpus_per_machine: self.gpus_per_node,
        }
    }
}

/// How the engines serve.
#[derive(Debug, Clone, Args)]
pub struct ServingArgs {
    #[command(flatten)]
    network: NetworkArgs,

    /// Independent replicas of the whole deployment behind a router.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Serving")]
    replicas: u32,

    /// Which replica a request is sent to.
    #[arg(
        long,
        value_enum,
        value_name = "POLICY",
        default_value = "least-loaded",
        help_heading = "Serving"
    )]
    routing: RoutingName,

    /// Probability that a drafted token is accepted, given that all before it were (with --speculative-config or
    /// --speculative-algorithm).
    #[arg(
        long,
        value_name = "P",
        allow_negative_numbers = true,
        help_heading = "Serving"
    )]
    acceptance_rate: Option<f64>,

    /// Order of the waiting queue (SGLang).
    #[arg(
        long,
        value_enum,
        value_name = "POLICY",
        default_value = "fcfs",
        help_heading = "Serving"
    )]
    schedule_policy: ScheduleName,

    /// How much of the running requests' output is kept free when another is admitted (SGLang).
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = "Serving")]
    schedule_conservativeness: f64,

    /// Turns of the loop between two looks for new requests while others decode (SGLang) [default: 1].
    #[arg(long, value_name = "TURNS", help_heading = "Serving")]
    scheduler_recv_interval: Option<u32>,

    /// Prompt tokens that one prefill batch may start (SGLang) [default: 16384].
    #[arg(long, value_name = "TOKENS", value_parser = parse_count, help_heading = "Serving")]
    max_prefill_tokens: Option<u64>,

    /// Compute prompts on engines of their own, which hand their cache to decode engines: prefill=2,decode=1.
    #[arg(long, value_name = "prefill=N,decode=M", help_heading = "Disaggregation")]
    disaggregate: Option<String>,

    /// Flags of the prefill engines that differ (tp=2,max-num-batched-tokens=16384).
    #[arg(
        long,
        value_name = "FLAGS",
        requires = "disaggregate",
        help_heading = "Disaggregation"
    )]
    prefill_flags: Option<String>,

    /// Flags of the decode engines that differ (tp=8,max-num-seqs=512).
    #[arg(
        long,
        value_name = "FLAGS",
        requires = "disaggregate",
        help_heading = "Disaggregation"
    )]
    decode_flags: Option<String>,

    /// One direction of each GPU's port between the two sides [default: 50GB/s, one 400 Gbit/s port a GPU].
    #[arg(long, value_name = "RATE", requires = "disaggregate", value_parser = parse_rate, help_heading = "Disaggregation")]
    transfer_bandwidth: Option<f64>,

    /// Time before the first byte of a request moves [default: 1].
    #[arg(
        long,
        value_name = "MS",
        requires = "disaggregate",
        help_heading = "Disaggregation"
    )]
    transfer_latency_ms: Option<f64>,

    /// Tokens kept free on a decode engine for each request that has room there (SGLang) [default: 512].
    #[arg(
        long,
        value_name = "TOKENS",
        requires = "disaggregate",
        value_parser = parse_count,
        help_heading = "Disaggregation"
    )]
    num_reserved_decode_tokens: Option<u64>,

    /// Tiers behind the pool of each engine, nearest first: host=200GiB,disk=4TiB (or blocks, or tokens).
    #[arg(long, value_delimiter = ',', value_name = "NAME=ROOM,...", value_parser = parse_tier, help_heading = "Tiers")]
    tiers: Vec<(String, Room)>,

    /// One direction of a tier's link: host=50GB/s,disk=7GB/s [default: host the link of the GPU, disk 7GB/s, remote
    /// 12.5GB/s].
    #[arg(long, value_delimiter = ',', value_name = "NAME=RATE,...", value_parser = parse_speed, requires = "tiers", help_heading = "Tiers")]
    tier_bandwidth: Vec<(String, f64)>,

    /// What tiers evict.
    #[arg(
        long,
        value_enum,
        value_name = "POLICY",
        default_value = "lru",
        help_heading = "Tiers"
    )]
    tier_policy: TierPolicyName,
}

/// Orders of eviction by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TierPolicyName {
    /// Least recently used.
    Lru,
    /// Adaptive replacement.
    Arc,
}

impl ServingArgs {
    /// The settings; `roofline` is the caller's.
    ///
    /// # Errors
    /// If the numbers of prefill and decode engines cannot be read, or the latency is negative.
    pub fn serving(&self, roofline: bool) -> Result<Serving> {
        let split = self.disaggregate.as_deref().map(Split::parse).transpose()?;
        let split = match split {
            Some(mut split) => {
                split.prefill_flags = self.prefill_flags.clone().unwrap_or_default();
                split.decode_flags = self.decode_flags.clone().unwrap_or_default();
                split.reserved_decode_tokens = self.num_reserved_decode_tokens;
                if let Some(rate) = self.transfer_bandwidth {
                    split.speed.bytes_per_s = rate;
                }
                if let Some(ms) = self.transfer_latency_ms {
                    if !(ms.is_finite() && ms >= 0.0) {
                        return Err(Error::input(format!(
                            "--transfer-latency-ms is {ms}, expected milliseconds from 0 on"
                        )));
                    }
                    split.speed.latency_s = ms / 1e3;
                }
                Some(split)
            }
            None => None,
        };
        Ok(Serving {
            replicas: self.replicas,
            routing: match self.routing {
                RoutingName::RoundRobin => Routing::RoundRobin,
                RoutingName::LeastLoaded => Routing::LeastLoaded,
                RoutingName::PrefixAware => Routing::PrefixAware,
                RoutingName::Session => Routing::SessionAffinity,
            },
            acceptance_rate: self.acceptance_rate,
            schedule_policy: self.schedule_policy.into(),
            conservativeness: self.schedule_conservativeness,
            recv_interval: self.scheduler_recv_interval,
            max_prefill_tokens: self.max_prefill_tokens,
            roofline,
            network: self.network.asked(),
            split,
            tiers: TiersAsked {
                rooms: self.tiers.clone(),
                speeds: self.tier_bandwidth.clone(),
                policy: match self.tier_policy {
                    TierPolicyName::Lru => TierPolicy::Lru,
                    TierPolicyName::Arc => TierPolicy::Arc,
                },
            },
        })
    }
}

/// Latency objectives.
#[derive(Debug, Clone, Args)]
pub struct SloArgs {
    /// Objective: 99th percentile of the time to first token, milliseconds.
    #[arg(
        long,
        value_name = "MS",
        allow_negative_numbers = true,
        help_heading = "Objectives"
    )]
    slo_ttft_ms: Option<f64>,

    /// Objective: 99th percentile of the time per output token, milliseconds.
    #[arg(
        long,
        value_name = "MS",
        allow_negative_numbers = true,
        help_heading = "Objectives"
    )]
    slo_tpot_ms: Option<f64>,
}

impl SloArgs {
    /// The objectives.
    ///
    /// # Errors
    /// If one is not a positive number.
    pub fn slo(&self) -> Result<Slo> {
        let slo = Slo {
            ttft_ms: self.slo_ttft_ms,
            tpot_ms: self.slo_tpot_ms,
        };
        for (flag, limit) in [("--slo-ttft-ms", slo.ttft_ms), ("--slo-tpot-ms", slo.tpot_ms)] {
            if let Some(x) = limit
                && !(x.is_finite() && x > 0.0)
            {
                return Err(Error::input(format!(
                    "{flag} is {x}, expected a positive number of milliseconds"
                )));
            }
        }
        Ok(slo)
    }
}
