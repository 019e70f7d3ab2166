//! How much SGLang keeps free for activations and graphs, and the defaults that depend on the card
//! (0.5.23, `srt/arg_groups/memory_hook.py`, `handle_gpu_memory_settings`, and `cuda_graph_hook.py`).

use super::settings::{Chunk, Settings};
use super::tower::Vision;
use crate::units::MIB;

/// What the rules ask about the card.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Card {
    /// Memory in MiB as `nvidia-smi` reports it.
    pub memory_mib: f64,
    /// CUDA compute capability.
    pub capability: (u32, u32),
}

impl Card {
    /// A card by the driver's bytes.
    pub fn of(driver_bytes: u64, capability: (u32, u32)) -> Self {
        Self {
            memory_mib: (driver_bytes / MIB) as f64,
            capability,
        }
    }
}

/// What the rules ask about the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traits {
    /// Whether its attention keeps a latent vector (MLA).
    pub mla: bool,
    /// Whether prefill graphs stay on for it.
    pub prefill_graphs: bool,
    /// Whether it is Llama-2 by name, whose prefill graphs stop at 4096 tokens.
    pub llama_2: bool,
    /// Its vision tower, where the engine serves it as a multimodal model.
    pub vision: Option<Vision>,
    /// Whether decode graphs grow to `--max-running-requests` (Qwen3-VL on large Hopper cards).
    pub grows_with_running: bool,
}

/// Resolved settings that depend on the card.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// Prompt tokens of one step of one attention group; `None` where chunking is off.
    pub chunked_prefill_size: Option<u64>,
    /// Largest decode batch that a graph is captured for.
    pub decode_max_batch: u64,
    /// Number of prefill graphs, 0 where they are off.
    pub prefill_graphs: u64,
    /// MiB that the rule keeps free.
    pub reserved_mib: f64,
    /// Share of the free memory before loading that weights and pools may take.
    pub mem_fraction_static: f64,
}

/// Prompt tokens of a batch where chunking is off (`max_prefill_tokens`).
const MAX_PREFILL_TOKENS: u64 = 16_384;

/// Prompt tokens of one step where `--chunked-prefill-size` is not given (0.5.23, `arg_groups/memory_hook.py`).
pub fn card_chunk_tokens(memory_mib: f64) -> u64 {
    if memory_mib < 20.0 * 1024.0 {
        2048
    } else if memory_mib < 60.0 * 1024.0 {
        4096
    } else if memory_mib < 160.0 * 1024.0 {
        8192
    } else {
        16_384
    }
}

/// The engine's defaults for a card.
///
/// On small cards the rule can reserve more than there is; the share is then negative, as in the engine, which refuses
/// it later.
pub fn defaults(settings: &Settings, card: &Card, model: &Traits) -> Defaults {
    let mib = card.memory_mib;
    let tp = settings.tp();
    let small_tp = |few: u64, many: u64| if tp < 4 { few } else { many };
    let chunk = card_chunk_tokens(mib);
    // Largest decode graph by memory: T4 and 4080; A10, 4090, 5090; A100-40, L40; H100, A100-80, H20, H200; B200 and MI300.
    let batch = if mib < 20.0 * 1024.0 {
        8
    } else if mib < 35.0 * 1024.0 {
        small_tp(48, 160)
    } else if mib < 60.0 * 1024.0 {
        small_tp(32, 160)
    } else if mib < 160.0 * 1024.0 {
        small_tp(256, 512)
    } else {
        512
    };
    let chunked_prefill_size = match settings.chunked_prefill_size {
        None => Some(chunk),
        Some(Chunk::Tokens(n)) => Some(n),
        Some(Chunk::Whole) => None,
    };
    let decode_max_batch = settings
        .cuda_graph_max_bs
        .unwrap_or(match settings.max_running_requests {
            Some(running) if model.grows_with_running && running <= 512 => running,
            Some(running) => batch.min(running),
            None => batch,
        });
    let prefill_on = model.prefill_graphs
        && !settings.disable_cuda_graph
        && !settings.disable_prefill_cuda_graph
        && settings.pp() == 1;
    // Without chunking the largest captured size is -1: the list is empty, but the backend stays on.
    let mut largest = chunked_prefill_size.unwrap_or(0);
    if model.mla {
        largest = largest.min(8192);
    }
    if let Some(total) = settings.max_total_tokens {
        largest = largest.min(total);
    }
    if model.llama_2 {
        largest = largest.min(4096);
    }
    let prefill_graphs = if prefill_on {
        prefill_graph_count(largest)
    } else {
        0
    };

    let tokens = chunked_prefill_size.unwrap_or(MAX_PREFILL_TOKENS).max(2048);
    let mut reserved = 512.0 + tokens as f64 * 1.5;
    reserved += (tp * settings.pp()) as f64 / 8.0 * 1024.0;
    let mut graphs = 0.0;
    if !settings.disable_cuda_graph {
        graphs += (decode_max_batch * 2) as f64;
    }
    if settings.attention_dp() > 1 {
        graphs += (decode_max_batch * settings.attention_dp() * 3) as f64;
        if decode_max_batch > 300 {
            graphs += (decode_max_batch * settings.attention_dp()) as f64 * 1.5;
        }
    }
    if prefill_on {
        graphs += if model.mla {
            1.5 * 1024.0
        } else {
            (prefill_graphs * 8) as f64
        };
    }
    reserved += graphs;
    if mib > 60.0 * 1024.0 {
        reserved = reserved.max(10.0 * 1024.0);
    }
    let automatic = thousandths((mib - reserved) / mib);
    let automatic = match model.vision {
        Some(vision) => automatic * vision.share(),
        None => automatic,
    };
    let mem_fraction_static = settings.mem_fraction_static.unwrap_or(automatic);
    Defaults {
        // DP attention gives each group its share, after the memory was reserved for all.
        chunked_prefill_size: chunked_prefill_size.map(|n| n / settings.attention_dp()),
        decode_max_batch,
        prefill_graphs,
        reserved_mib: reserved,
        mem_fraction_static,
    }
}

/// Python's `round(x, 3)`: to the nearest thousandth of the exact binary value.
fn thousandths(x: f64) -> f64 {
    format!("{x:.3}").parse().unwrap_or(x)
}

/// How many token counts up to `largest` a prefill graph is captured for
/// (`generate_prefill_cuda_graph_batch_sizes`).
fn prefill_graph_count(largest: u64) -> u64 {
    [
        (4, 32, 4),
        (48, 256, 16),
        (288, 512, 32),
        (576, 1024, 64),
        (1280, 4096, 256),
        (4608, largest, 512),
    ]
    .iter()
    .map(|&(first, last, step)| {
        let last = last.min(largest);
        if last < first {
            0
        } else {
            (last - first) / step + 1
        }
    })
    .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sizes_of_prefill_graphs_are_counted_as_the_list_is_long() {
        // Lengths of the lists that generate_prefill_cuda_graph_batch_sizes of 0.5.23 makes.
        for (largest, count) in [
            (0, 0),
            (3, 0),
            (4, 1),
            (2048, 42),
            (4096, 50),
            (8192, 58),
            (16_384, 74),
        ] {
            assert_eq!(prefill_graph_count(largest), count, "{largest}");
        }
    }

    #[test]
    fn a_card_that_the_reserve_fills_gets_a_negative_share() {
        let card = Card {
            memory_mib: 3000.0,
            capability: (8, 9),
        };
        let model = Traits {
            mla: false,
            prefill_graphs: true,
            llama_2: false,
            vision: None,
            grows_with_running: false,
        };
        assert!(defaults(&Settings::default(), &card, &model).mem_fraction_static < 0.0);
    }
}
