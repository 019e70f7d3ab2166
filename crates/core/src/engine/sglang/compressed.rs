//! The pools of DeepSeek-V4's compressed attention (0.5.23, `srt/model_executor/pool_configurator.py`,
//! `DSV4PoolConfigurator`, and `srt/mem_cache/deepseek_v4_memory_pool.py`).
//!
//! Every layer keeps latents of a window, and most layers one latent for each 4 or 128 tokens: those of 4 with an indexer's
//! keys. The window's pool has a share of the full pool's tokens. What compresses has states of its own: for 4 they follow
//! the window's pages, for 128 the requests, whose states are taken off first.

use super::pool::Refusal;
use crate::{Error, Result};

/// Tokens in a page, set by the class.
const PAGE: u64 = 256;
/// Bytes of a latent: 448 values of 8 bits and 64 of 16 bits, 7 scales and one byte of padding (`KVLayout.V4`).
const LATENT_BYTES: u64 = 584;
/// What a page of latents is rounded up to.
const PAGE_ALIGN_BYTES: u64 = 576;
/// Bytes of an element of a compressor's state (`SGLANG_DSV4_COMPRESS_STATE_DTYPE`).
const STATE_BYTES: u64 = 4;
/// Running requests where nothing is said (`apply_deepseek_v4_defaults`).
pub(super) const RUNNING: u64 = 256;
/// Default share of the full pool's tokens that the window's pool has.
pub(super) const WINDOW_RATIO: f64 = 0.1;

/// Layers of one pipeline stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compressed {
    /// All layers.
    pub layers: u64,
    /// Layers with one latent for 4 tokens.
    pub fours: u64,
    /// Layers with one latent for 128 tokens.
    pub hundreds: u64,
    /// Elements of a latent.
    pub head_dim: u64,
    /// Elements of an indexer's key.
    pub index_head_dim: u64,
}

/// Bytes per token, in the engine's own floating point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cells {
    /// One token of the window's pool, with the states that follow it.
    pub window: f64,
    /// One token of the full pool, its share of the window's not counted.
    pub full: f64,
}

impl Compressed {
    /// Counts a layer.
    ///
    /// # Errors
    /// If the layer's ratio is not one that is planned (DeepSeek-V4.1 has others).
    pub(super) fn add(&mut self, ratio: u64, head_dim: u64, index_head_dim: u64) -> Result<()> {
        self.layers += 1;
        self.head_dim = self.head_dim.max(head_dim);
        match ratio {
            0 => {}
            4 => {
                self.fours += 1;
                self.index_head_dim = self.index_head_dim.max(index_head_dim);
            }
            128 => self.hundreds += 1,
            other => {
                return Err(Error::unsupported(format!(
                    "SGLang's pool for a compression ratio of {other} is not planned; 0, 4 and 128 are"
                )));
            }
        }
        Ok(())
    }

    /// Bytes of a token.
    pub(super) fn cells(&self, speculative: bool) -> Cells {
        let latent = |page: u64| {
            let bytes = (page * LATENT_BYTES).div_ceil(PAGE_ALIGN_BYTES) * PAGE_ALIGN_BYTES;
            bytes as f64 / page as f64
        };
        let ring = if speculative { 16 } else { 8 };
        let state = (4 * self.head_dim * STATE_BYTES + 4 * self.index_head_dim * STATE_BYTES) as f64;
        let index = self.index_head_dim + self.index_head_dim / 128 * 4;
        let four = 0.25 * latent(PAGE / 4) + 0.25 * index as f64;
        let hundred = 1.0 / 128.0 * latent(PAGE / 128);
        Cells {
            window: latent(PAGE) * self.layers as f64
                + (f64::from(ring) / PAGE as f64 * state * self.fours as f64),
            full: four * self.fours as f64 + hundred * self.hundreds as f64,
        }
    }

    /// Bytes of the states that follow the requests.
    fn fixed_bytes(&self, running: u64, speculative: bool) -> Result<u64> {
        if self.hundreds == 0 {
            return Ok(0);
        }
        let ring: u64 = if speculative { 256 } else { 128 };
        running
            .checked_add(1)
            .and_then(|slots| {
                slots
                    .checked_mul(ring)?
                    .checked_add(ring + 1)?
                    .checked_next_multiple_of(128)
            })
            .and_then(|rows| {
                rows.checked_mul(2 * self.head_dim)?
                    .checked_mul(STATE_BYTES * self.hundreds)
            })
            .ok_or_else(|| Error::overflow("the states of the compressed layers"))
    }

    /// Tokens of the full and of the window's pool.
    ///
    /// # Errors
    /// If a size leaves its range. What the engine refuses is the inner `Err`.
    pub(super) fn tokens(
        &self,
        bytes: u64,
        running: u64,
        ratio: f64,
        speculative: bool,
    ) -> Result<std::result::Result<(u64, u64), Refusal>> {
        let cells = self.cells(speculative);
        let mut cell = ratio * cells.window + cells.full;
        if speculative {
            // One layer of the drafter, charged as the average of the target's.
            cell *= (self.layers + 1) as f64 / self.layers.max(1) as f64;
        }
        if cell <= 0.0 {
            return Err(Error::input("a model without layers keeps no tokens"));
        }
        let left = bytes.saturating_sub(self.fixed_bytes(running, speculative)?);
        let down = |n: u64| n / PAGE * PAGE;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative, and saturating"
        )]
        let whole = |x: f64| x as u64;
        let mut full = down(whole(left as f64 / cell));
        while full > 0 && full as f64 * cell > left as f64 {
            full -= PAGE;
        }
        Ok(Ok((full, down(whole(full as f64 * ratio)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_that_is_not_deepseek_v4s_is_refused() {
        assert!(Compressed::default().add(2, 512, 128).is_err());
    }

    #[test]
    fn absurd_requests_overflow_with_a_name() {
        let one = Compressed {
            layers: 2,
            hundreds: 1,
            head_dim: 512,
            ..Compressed::default()
        };
        assert!(one.tokens(1 << 40, u64::MAX, 0.1, false).is_err());
    }
}
