//! Bytes of the recurrent states that one request keeps on one rank (0.5.23, `srt/configs/mamba_utils.py`).

use crate::arch::State;
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Bytes of one layer's state. The convolution's part is bfloat16 whatever the model is; the recurrent part is what the
/// configuration's `mamba_ssm_dtype` says, else float32.
pub(super) fn bytes(state: &State, ranks: u64, ssm: Dtype) -> Result<u64> {
    let too_large = || Error::overflow("the recurrent state of one layer");
    let mul = |factors: &[u64]| {
        factors
            .iter()
            .try_fold(1_u64, |product, &f| product.checked_mul(f))
            .ok_or_else(too_large)
    };
    let divide = |what: &str, n: u64| {
        if n.is_multiple_of(ranks) {
            Ok(n / ranks)
        } else {
            Err(Error::unsupported(format!(
                "SGLang divides {what} ({n}) of the recurrent layers by the attention ranks, and {ranks} does not divide it"
            )))
        }
    };
    // Groups that the ranks do not divide are extended so that every rank has the groups of its heads.
    let extended = |groups: u64| {
        if groups.is_multiple_of(ranks) {
            groups
        } else {
            ranks.max(groups)
        }
    };
    let taps = |kernel: u64| kernel.saturating_sub(1);
    let (conv, recurrent) = match state {
        State::Mamba1 {
            inner, state, kernel, ..
        } => {
            let inner = divide("the channels", *inner)?;
            (mul(&[inner, taps(*kernel)])?, mul(&[inner, *state])?)
        }
        State::Mamba2 {
            inner,
            groups,
            heads,
            head_dim,
            state,
            kernel,
            ..
        } => {
            let width = mul(&[2, extended(*groups), *state])?
                .checked_add(*inner)
                .ok_or_else(too_large)?;
            (
                mul(&[divide("the convolution's channels", width)?, taps(*kernel)])?,
                mul(&[divide("the heads", *heads)?, *head_dim, *state])?,
            )
        }
        State::GatedDelta {
            k_heads,
            v_heads,
            k_dim,
            v_dim,
            kernel,
            ..
        } => {
            let width = mul(&[2, extended(*k_heads), *k_dim])?
                .checked_add(mul(&[*v_heads, *v_dim])?)
                .ok_or_else(too_large)?;
            (
                mul(&[divide("the convolution's channels", width)?, taps(*kernel)])?,
                mul(&[divide("the value heads", *v_heads)?, *v_dim, *k_dim])?,
            )
        }
        State::Kda {
            heads, dim, kernel, ..
        } => {
            let heads = divide("the heads", *heads)?;
            (mul(&[3, heads, *dim, taps(*kernel)])?, mul(&[heads, *dim, *dim])?)
        }
        State::ShortConv { hidden, kernel, .. } => {
            (mul(&[divide("the channels", *hidden)?, taps(*kernel)])?, 0)
        }
        State::Linear { .. } => {
            return Err(Error::unsupported(
                "SGLang's state of lightning attention layers is not planned",
            ));
        }
    };
    Dtype::Bf16
        .bytes(conv)?
        .checked_add(ssm.bytes(recurrent)?)
        .ok_or_else(too_large)
}
