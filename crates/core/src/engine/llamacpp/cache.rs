//! The caches of a context: cells, streams and bytes of every layer
//! (llama.cpp 0c1e570, `src/llama-context.cpp`, `src/llama-kv-cache*.cpp`, `src/llama-memory-recurrent.cpp`).

use super::ggml::GgmlType;
use super::graph::{GPU_ALIGNMENT, row_padding};
use super::hparams::Hparams;
use super::settings::Settings;
use crate::{Error, Result};

/// Contexts and window caches are padded to whole multiples of this many cells.
const PADDING: u64 = 256;

/// Caches of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caches {
    /// Tokens of all sequences together, padded (`n_ctx`).
    pub ctx: u64,
    /// Tokens that one sequence can have (`n_ctx_seq`).
    pub ctx_per_sequence: u64,
    /// Cells of a full layer in each stream.
    pub cells: u64,
    /// Cells of a sliding layer in each stream; equals `cells` with `--swa-full`.
    pub window_cells: u64,
    /// Streams: 1 if all sequences share the cells, else one for each.
    pub streams: u64,
    /// Bytes of keys of each layer.
    pub key_bytes: Vec<u64>,
    /// Bytes of values of each layer.
    pub value_bytes: Vec<u64>,
    /// Bytes of recurrent state of each layer (all sequences).
    pub state_bytes: Vec<u64>,
    /// What each layer takes more on a GPU, where tensors are aligned and rows of quantised ones padded.
    pub padding: Vec<u64>,
    /// Tokens of one step at most: the micro-batch, cut to the context.
    pub step: u64,
}

impl Caches {
    /// Bytes of one layer.
    pub fn layer_bytes(&self, layer: usize) -> u64 {
        let at = |list: &[u64]| list.get(layer).copied().unwrap_or(0);
        at(&self.key_bytes)
            .saturating_add(at(&self.value_bytes))
            .saturating_add(at(&self.state_bytes))
    }

    /// Bytes of all layers.
    ///
    /// # Errors
    /// If the sum leaves 64 bits.
    pub fn total_bytes(&self) -> Result<u64> {
        [&self.key_bytes, &self.value_bytes, &self.state_bytes]
            .into_iter()
            .flatten()
            .try_fold(0_u64, |sum, &b| sum.checked_add(b))
            .ok_or_else(|| Error::overflow("the caches of all layers"))
    }
}

/// Lays the caches out.
///
/// # Errors
/// If a row is not whole blocks of the cache's type, or a size leaves 64 bits.
pub fn caches(model: &Hparams, settings: &Settings) -> Result<Caches> {
    let asked = match settings.ctx_size {
        None | Some(0) => model.context_length,
        Some(n) => n,
    };
    if asked == 0 {
        return Err(Error::input("the metadata has no context length").hint("give --ctx-size"));
    }
    let too_large = || Error::overflow("the context");
    // The batch is cut to the context before either is padded.
    let ubatch = settings.ubatch_size.min(settings.batch_size.min(asked));
    let ctx = asked.checked_next_multiple_of(PADDING).ok_or_else(too_large)?;
    let (ctx, ctx_per_sequence) = if settings.kv_unified {
        (ctx, ctx)
    } else {
        let each = (ctx / settings.parallel)
            .checked_next_multiple_of(PADDING)
            .filter(|&n| n > 0)
            .ok_or_else(too_large)?;
        (each.checked_mul(settings.parallel).ok_or_else(too_large)?, each)
    };
    let streams = if settings.kv_unified { 1 } else { settings.parallel };
    let cells = ctx_per_sequence;
    let window_cells = match model.sliding {
        Some(_) if settings.swa_full => cells,
        Some(window) => {
            let sequences = if settings.kv_unified { settings.parallel } else { 1 };
            window
                .tokens
                .checked_mul(sequences)
                .and_then(|n| n.checked_add(ubatch))
                .map(|n| n.min(cells))
                .and_then(|n| n.checked_next_multiple_of(PADDING))
                .ok_or_else(too_large)?
        }
        None => cells,
    };
    // Without flash attention values lie transposed, and rows of different widths are padded to the widest.
    let widest = model
        .layers
        .iter()
        .filter_map(|l| l.attention)
        .map(|a| a.values)
        .max()
        .unwrap_or(0);
    let mut out = Caches {
        ctx,
        ctx_per_sequence,
        cells,
        window_cells,
        streams,
        key_bytes: Vec::new(),
        value_bytes: Vec::new(),
        state_bytes: Vec::new(),
        padding: Vec::new(),
        step: ubatch.min(ctx),
    };
    for layer in &model.layers {
        let (mut keys, mut values, mut state) = (0, 0, 0);
        let mut padding = 0_u64;
        if let Some(a) = layer.attention {
            let rows = if a.sliding { window_cells } else { cells };
            let rows = rows.checked_mul(streams).ok_or_else(too_large)?;
            let width = match (a.values, settings.values_transposed()) {
                (0, _) => 0,
                (own, false) => own,
                (_, true) => widest,
            };
            keys = rows_bytes("keys", settings.cache_type_k, a.keys, rows)?;
            values = rows_bytes("values", settings.cache_type_v, width, rows)?;
            for (kind, width, bytes) in [
                (settings.cache_type_k, a.keys, keys),
                (settings.cache_type_v, width, values),
            ] {
                if bytes > 0 {
                    let padded = bytes
                        .checked_add(row_padding(kind.block, kind.block_bytes, width))
                        .and_then(|n| n.checked_next_multiple_of(GPU_ALIGNMENT))
                        .ok_or_else(too_large)?;
                    padding += padded - bytes;
                }
            }
        }
        if let Some(r) = layer.recurrent {
            state = r
                .conv
                .checked_add(r.state)
                .and_then(|n| n.checked_mul(settings.parallel))
                .and_then(|n| n.checked_mul(GgmlType::F32.block_bytes))
                .ok_or_else(|| Error::overflow("the recurrent state of a layer"))?;
        }
        out.key_bytes.push(keys);
        out.value_bytes.push(values);
        out.state_bytes.push(state);
        out.padding.push(padding);
    }
    Ok(out)
}

fn rows_bytes(what: &str, kind: GgmlType, width: u64, rows: u64) -> Result<u64> {
    let row = kind.row_bytes(width).ok_or_else(|| {
        Error::unsupported(format!(
            "a cache of {} needs {what} in whole blocks of {}, but a token has {width} elements of them in a layer",
            kind.name, kind.block
        ))
        .hint("f16, bf16 and f32 take any width")
    })?;
    row.checked_mul(rows)
        .ok_or_else(|| Error::overflow(format_args!("the {what} of one layer")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::hparams::{Attention, Layer, Sliding};
    use super::*;

    fn model(layers: &[(u64, u64, bool)], window: Option<u64>) -> Hparams {
        Hparams {
            architecture: "test".to_owned(),
            context_length: 4096,
            embedding: 256,
            feed_forward: 512,
            dense_feed_forward: 0,
            expert_feed_forward: 0,
            gated: true,
            mixer_width: 0,
            heads: 2,
            vocabulary: 128,
            layers: layers
                .iter()
                .map(|&(keys, values, sliding)| Layer {
                    attention: Some(Attention {
                        keys,
                        values,
                        heads: 1,
                        sliding,
                    }),
                    recurrent: None,
                })
                .collect(),
            sliding: window.map(|tokens| Sliding { tokens }),
            mla: false,
            head_widths: (64, 64),
            experts: (0, 0),
            keys: super::super::keys::Keys::default(),
        }
    }

    #[test]
    fn a_row_that_is_no_whole_block_is_refused_with_its_width() {
        let settings = Settings {
            cache_type_k: GgmlType::by_name("q8_0").unwrap(),
            ..Settings::default()
        };
        let e = caches(&model(&[(100, 100, false)], None), &settings)
            .unwrap_err()
            .to_string();
        assert!(e.contains("100 elements") && e.contains("q8_0"), "{e}");
    }

    proptest! {
        /// Counting cells one by one gives the same.
        #[test]
        fn bytes_are_cells_times_rows_whatever_the_settings(
            ctx in 1_u64..20_000, parallel in 1_u64..9, unified: bool, full: bool, window in 1_u64..5000, ubatch in 1_u64..2048,
            k in 1_u64..8, v in 1_u64..8,
        ) {
            let model = model(&[(k * 32, v * 32, false), (k * 64, v * 32, true)], Some(window));
            let settings = Settings {
                ctx_size: Some(ctx), parallel, kv_unified: unified, swa_full: full, ubatch_size: ubatch,
                cache_type_v: GgmlType::by_name("q4_0").unwrap(), ..Settings::default()
            };
            let got = caches(&model, &settings).unwrap();
            let pad = |n: u64| (n..n + 256).find(|m| m % 256 == 0).unwrap();
            let each = if unified { pad(ctx) } else { pad((pad(ctx) / parallel).max(1)) };
            prop_assert_eq!(got.ctx_per_sequence, each);
            let streams = if unified { 1 } else { parallel };
            prop_assert_eq!(got.key_bytes[0], each * streams * k * 32 * 2);
            let sequences = if unified { parallel } else { 1 };
            let cells = if full { each } else { pad(each.min(window * sequences + ubatch.min(2048).min(ctx))) };
            prop_assert_eq!(got.window_cells, cells);
            prop_assert_eq!(got.value_bytes[1], cells * streams * v * 18);
            prop_assert_eq!(got.total_bytes().unwrap(), (0..2).map(|l| got.layer_bytes(l)).sum::<u64>());
        }
    }
}
