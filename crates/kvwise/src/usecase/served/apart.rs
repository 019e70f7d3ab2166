//! Prefill and decode on different engines: how many of each, what differs between them, what joins them.

use kvwise_core::plan::Plan;
use kvwise_core::{Error, Result};
use kvwise_sim::sched::sglang::step::{RESERVED_DECODE_TOKENS, Side};
use kvwise_sim::simulate::{EngineConfig, HostTimes, LinkSpeed, Transfer};
use serde::Serialize;

use super::Served;

/// How a deployment is split (`--disaggregate prefill=2,decode=1` and the flags beside it).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Split {
    /// Prefill replicas.
    pub prefill: u32,
    /// Decode replicas.
    pub decode: u32,
    /// Flags of the prefill engines that differ from the deployment's (`tp=2,max-num-batched-tokens=16384`).
    pub prefill_flags: String,
    /// Flags of the decode engines that differ from the deployment's.
    pub decode_flags: String,
    /// Each GPU's port, one direction.
    pub speed: LinkSpeed,
    /// SGLang's `--num-reserved-decode-tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved_decode_tokens: Option<u64>,
}

/// One 400 Gbit/s port for each GPU, as in an HGX or DGX H100 node.
pub const TRANSFER_BYTES_PER_S: f64 = 50e9;
/// From the decision to read until the first byte moves; assumed.
pub const TRANSFER_LATENCY_S: f64 = 1e-3;

impl Split {
    /// Reads `prefill=2,decode=1`.
    ///
    /// # Errors
    /// If a side is missing, given twice, unknown or not 1 to 1024.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |what: &str| {
            Error::input(format!("--disaggregate is \"{text}\": {what}"))
                .hint("write --disaggregate prefill=2,decode=1")
        };
        let (mut prefill, mut decode) = (None, None);
        for part in text.split(',') {
            let (side, count) = part
                .split_once('=')
                .ok_or_else(|| wrong("expected prefill=N,decode=M"))?;
            let count = count
                .trim()
                .parse::<u32>()
                .ok()
                .filter(|n| (1..=1024).contains(n))
                .ok_or_else(|| wrong(&format!("{} is not 1 to 1024 engines", count.trim())))?;
            let place = match side.trim() {
                "prefill" | "p" => &mut prefill,
                "decode" | "d" => &mut decode,
                other => return Err(wrong(&format!("there is no side \"{other}\""))),
            };
            if place.replace(count).is_some() {
                return Err(wrong("a side is given twice"));
            }
        }
        match (prefill, decode) {
            (Some(prefill), Some(decode)) => Ok(Self {
                prefill,
                decode,
                prefill_flags: String::new(),
                decode_flags: String::new(),
                speed: LinkSpeed {
                    bytes_per_s: TRANSFER_BYTES_PER_S,
                    latency_s: TRANSFER_LATENCY_S,
                },
                reserved_decode_tokens: None,
            }),
            _ => Err(wrong("both sides need a number of engines")),
        }
    }
}

/// From the decision that there is room until SGLang's prefill engine knows of it: one message between the servers; assumed.
const BOOTSTRAP_S: f64 = 1e-3;

/// Makes the two sides of a split out of two deployments: what each does, and what moving a request costs.
///
/// # Errors
/// If the engines or their caches do not fit together.
pub(super) fn join(prefill: &mut Served, decode: &mut Served, split: &Split) -> Result<Transfer> {
    match (&mut prefill.config, &mut decode.config) {
        (EngineConfig::Vllm(_), EngineConfig::Vllm(_)) => {
            if split.reserved_decode_tokens.is_some() {
                return Err(Error::input(
                    "--num-reserved-decode-tokens is a flag of SGLang's decode servers",
                )
                .hint("add --engine sglang or leave it out"));
            }
            // The decode side's server tokenises and answers once more.
            transfer(
                &prefill.plan,
                &decode.plan,
                split.speed,
                HostTimes::VLLM.request_s,
            )
        }
        (EngineConfig::Sglang(first), EngineConfig::Sglang(second)) => {
            for plan in [&prefill.plan, &decode.plan] {
                if let Some(kind) = plan
                    .kv_cache
                    .iter()
                    .flat_map(|kv| &kv.groups)
                    .map(|g| &g.kind)
                    .find(|kind| kind.contains("mamba") || kind.contains("state"))
                {
                    return Err(Error::unsupported(format!(
                        "SGLang hands recurrent states over in a request pool of their own, which is not simulated ({kind})"
                    ))
                    .hint("leave --disaggregate out"));
                }
            }
            let reserved_tokens = match split.reserved_decode_tokens {
                Some(n) => usize::try_from(n).map_err(|_| Error::overflow("--num-reserved-decode-tokens"))?,
                None => RESERVED_DECODE_TOKENS,
            };
            first.side = Side::Prefill;
            // `disaggregation_decode_extra_slots` (pd_disaggregation_hook.py): only where --max-running-requests is given.
            let given = decode
                .plan
                .inputs
                .get("max_num_seqs")
                .is_some_and(|v| !v.is_null());
            second.side = Side::Decode {
                reserved_tokens,
                extra_rows: if given && second.max_running <= 32 {
                    2 * second.max_running
                } else {
                    0
                },
            };
            let page = second.page_size as u64;
            let of_block = transfer(&prefill.plan, &decode.plan, split.speed, BOOTSTRAP_S)?;
            let tokens = decode.plan.kv_cache.as_ref().map_or(1, |kv| kv.block_size).max(1);
            let bytes = u128::from(of_block.bytes_per_block) * u128::from(page);
            Ok(Transfer {
                bytes_per_block: u64::try_from(bytes.div_ceil(tokens.into()))
                    .map_err(|_| Error::overflow("the bytes of a page"))?,
                ..of_block
            })
        }
        _ => Err(Error::input(
            "--prefill-flags and --decode-flags name different engines: neither reads the other's cache",
        )),
    }
}

/// What a block costs to move: each GPU of the decode side reads its own part of the cache, each GPU of the prefill side
/// sends its own, and whichever has more to move takes longest.
///
/// # Errors
/// If a side keeps no cache, or the sides cut it into blocks of different kinds.
pub fn transfer(prefill: &Plan, decode: &Plan, speed: LinkSpeed, handoff_s: f64) -> Result<Transfer> {
    let (Some(p), Some(d)) = (&prefill.kv_cache, &decode.kv_cache) else {
        return Err(Error::unsupported(
            "the model keeps no KV cache: there is nothing to hand over",
        ));
    };
    let kinds = |kv: &kvwise_core::plan::KvCache| -> Vec<String> {
        kv.groups.iter().map(|g| g.kind.clone()).collect()
    };
    if kinds(p) != kinds(d) || p.dtype != d.dtype {
        return Err(Error::unsupported(format!(
            "the prefill engines keep a {} cache of {} groups and the decode engines a {} cache of {}: blocks cannot move between them",
            p.dtype,
            p.groups.len(),
            d.dtype,
            d.groups.len()
        ))
        .hint("give both sides the same --kv-cache-dtype"));
    }
    let largest = |kv: &kvwise_core::plan::KvCache| kv.bytes_per_block.iter().copied().max().unwrap_or(0);
    // Of the prefill side, for as many tokens as a block of the decode side holds.
    let sent = u128::from(largest(p)) * u128::from(d.block_size) / u128::from(p.block_size.max(1));
    let sent = u64::try_from(sent).map_err(|_| Error::overflow("the bytes of a block"))?;
    Ok(Transfer {
        bytes_per_block: largest(d).max(sent),
        speed,
        handoff_s,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_names_both_sides_once() {
        let split = Split::parse("decode=1, prefill=3").unwrap();
        assert_eq!((split.prefill, split.decode), (3, 1));
        for wrong in [
            "",
            "prefill=2",
            "2,1",
            "prefill=0,decode=1",
            "prefill=1,prefill=2",
            "prefill=1,decode=-1",
            "prefill=1,encode=1",
            "prefill=1,decode=4000000000000",
        ] {
            let error = Split::parse(wrong).unwrap_err();
            assert!(error.to_string().contains("--disaggregate"), "{wrong}: {error}");
        }
    }
}
