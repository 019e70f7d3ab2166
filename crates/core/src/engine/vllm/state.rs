//! Recurrent states: tensors of one request and rank, and their bytes.

use super::refusal::{Refusal, RefusalKind};
use crate::arch::State;
use crate::dtype::Dtype;
use crate::{Error, Result};

/// Families of recurrent layers, as far as the cache distinguishes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the families' own names")]
pub enum StateFamily {
    Mamba1,
    Mamba2,
    GatedDelta,
    Kda,
    Linear,
    ShortConv,
}

/// One state tensor of one request on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StateTensor {
    /// Shape; trailing dimensions that are not there are 1.
    pub shape: [u64; 3],
    /// Number of dimensions.
    pub rank: usize,
    /// Element type.
    pub dtype: Dtype,
}

/// The state tensors of one layer on one rank; the second is missing in linear attention and short convolutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StateShape {
    /// Family of the layer.
    pub family: StateFamily,
    /// Convolution (or only) state.
    pub first: StateTensor,
    /// Recurrent state.
    pub second: Option<StateTensor>,
    /// Blocks that a request holds beyond the current one and the one before, for checkpoints inside a prefill.
    pub checkpoint_blocks: u64,
}

/// What shards and types the states.
#[derive(Debug, Clone, Copy)]
pub struct StateContext {
    /// Tensor-parallel ranks.
    pub tp: u64,
    /// Draft tokens of speculative decoding; convolutions keep that many more columns.
    pub speculative_tokens: u64,
    /// Element type of the model.
    pub model_dtype: Dtype,
    /// `--mamba-cache-dtype`.
    pub cache_dtype: Option<Dtype>,
    /// `--mamba-ssm-cache-dtype`.
    pub ssm_dtype: Option<Dtype>,
    /// Compute capability major of the GPU: `FlashKDA` runs on 9, 10 and 12.
    pub gpu_major: u32,
}

impl StateShape {
    /// Bytes of all tensors.
    ///
    /// # Errors
    /// If they overflow.
    pub fn bytes(&self) -> Result<u64> {
        [Some(self.first), self.second]
            .into_iter()
            .flatten()
            .try_fold(0_u64, |sum, tensor| {
                let count = tensor
                    .shape
                    .iter()
                    .try_fold(1_u64, |product, &n| product.checked_mul(n))
                    .ok_or_else(|| Error::overflow("the size of a recurrent state"))?;
                sum.checked_add(tensor.dtype.bytes(count)?)
                    .ok_or_else(|| Error::overflow("the size of a recurrent state"))
            })
    }

    /// How [`Self::bytes`] comes about: `3 x 8448 x 2 B + 64 x 64 x 128 x 4 B`.
    pub fn formula(&self) -> String {
        let one = |tensor: StateTensor| {
            let sizes = tensor.shape[..tensor.rank.min(3)].iter();
            let sizes: Vec<String> = sizes.map(u64::to_string).collect();
            format!("{} x {} B", sizes.join(" x "), tensor.dtype.bits() / 8)
        };
        let tensors = [Some(self.first), self.second].into_iter().flatten();
        tensors.map(one).collect::<Vec<_>>().join(" + ")
    }

    /// Shapes of a layer's state on one rank (vLLM 0.32.0, `model_executor/layers/mamba/mamba_utils.py`,
    /// `MambaStateShapeCalculator` and `MambaStateDtypeCalculator`).
    ///
    /// # Errors
    /// A [`Refusal`] where a dimension is not divisible by the ranks; an error if a product overflows.
    pub fn of(state: &State, context: &StateContext) -> Result<Result<Self, Refusal>> {
        let StateContext {
            tp,
            speculative_tokens: spec,
            ..
        } = *context;
        let conv_dtype =
            |given: &Option<Dtype>| context.cache_dtype.or(*given).unwrap_or(context.model_dtype);
        let ssm_dtype = |given: &Option<Dtype>, conv: Dtype| context.ssm_dtype.or(*given).unwrap_or(conv);
        let two = |a, b, dtype| StateTensor {
            shape: [a, b, 1],
            rank: 2,
            dtype,
        };
        let three = |a, b, c, dtype| StateTensor {
            shape: [a, b, c],
            rank: 3,
            dtype,
        };
        let overflow = || Error::overflow("the size of a recurrent state");
        let mul = |a: u64, b: u64| a.checked_mul(b).ok_or_else(overflow);
        let add = |a: u64, b: u64| a.checked_add(b).ok_or_else(overflow);
        let columns = |kernel: u64, spec: u64| add(kernel.saturating_sub(1), spec);
        macro_rules! divide {
            ($n:expr) => {{
                let n: u64 = $n;
                if !n.is_multiple_of(tp) {
                    return Ok(Err(Refusal::new(
                        RefusalKind::TensorParallel,
                        format!("{n} is not divisible by {tp} (a recurrent state cannot be divided over the tensor-parallel ranks)"),
                    )));
                }
                n / tp
            }};
        }
        let shape = match state {
            State::Mamba1 {
                inner,
                state,
                kernel,
                conv,
                ssm,
            } => {
                let inner = divide!(*inner);
                let conv = conv_dtype(conv);
                Self {
                    family: StateFamily::Mamba1,
                    first: two(kernel.saturating_sub(1), inner, conv),
                    second: Some(two(inner, *state, ssm_dtype(ssm, conv))),
                    checkpoint_blocks: 0,
                }
            }
            State::Mamba2 {
                inner,
                groups,
                heads,
                head_dim,
                state,
                kernel,
                conv,
                ssm,
            } => {
                // Groups that cannot be divided are replicated to one a rank.
                let groups = if groups.is_multiple_of(tp) { *groups } else { tp };
                let conv_dim = divide!(add(*inner, mul(mul(2, groups)?, *state)?)?);
                let conv = conv_dtype(conv);
                Self {
                    family: StateFamily::Mamba2,
                    first: two(columns(*kernel, spec)?, conv_dim, conv),
                    second: Some(three(divide!(*heads), *head_dim, *state, ssm_dtype(ssm, conv))),
                    checkpoint_blocks: 1,
                }
            }
            State::GatedDelta {
                k_heads,
                v_heads,
                k_dim,
                v_dim,
                kernel,
                conv,
                ssm,
            } => {
                let conv_dim = divide!(add(mul(mul(2, *k_heads)?, *k_dim)?, mul(*v_heads, *v_dim)?)?);
                let conv = conv_dtype(conv);
                Self {
                    family: StateFamily::GatedDelta,
                    first: two(columns(*kernel, spec)?, conv_dim, conv),
                    second: Some(three(divide!(*v_heads), *v_dim, *k_dim, ssm_dtype(ssm, conv))),
                    checkpoint_blocks: 0,
                }
            }
            State::Kda {
                heads,
                dim,
                kernel,
                checkpoint,
                conv,
                ssm,
            } => {
                let conv_dim = divide!(mul(mul(3, *heads)?, *dim)?);
                Self {
                    family: StateFamily::Kda,
                    first: two(columns(*kernel, spec)?, conv_dim, conv_dtype(conv)),
                    second: Some(three(divide!(*heads), *dim, *dim, ssm_dtype(ssm, Dtype::F32))),
                    checkpoint_blocks: u64::from(
                        *checkpoint && matches!(context.gpu_major, 9 | 10 | 12) && *dim == 128,
                    ),
                }
            }
            State::Linear { heads, dim, dtype } => Self {
                family: StateFamily::Linear,
                first: three(divide!(*heads), *dim, *dim, conv_dtype(dtype)),
                second: None,
                checkpoint_blocks: 0,
            },
            State::ShortConv {
                hidden,
                kernel,
                whole,
            } => Self {
                family: StateFamily::ShortConv,
                first: two(
                    columns(*kernel, spec)?,
                    if *whole { *hidden } else { divide!(*hidden) },
                    conv_dtype(&None),
                ),
                second: None,
                checkpoint_blocks: 0,
            },
        };
        Ok(Ok(shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(tp: u64) -> StateContext {
        StateContext {
            tp,
            speculative_tokens: 0,
            model_dtype: Dtype::Bf16,
            cache_dtype: None,
            ssm_dtype: None,
            gpu_major: 9,
        }
    }

    #[test]
    fn mamba2_groups_are_replicated_where_ranks_outnumber_them() {
        let state = State::Mamba2 {
            inner: 4096,
            groups: 1,
            heads: 64,
            head_dim: 64,
            state: 128,
            kernel: 4,
            conv: None,
            ssm: Some(Dtype::F32),
        };
        let one = StateShape::of(&state, &context(1)).unwrap().unwrap();
        assert_eq!(one.first.shape, [3, 4096 + 256, 1]);
        let two = StateShape::of(&state, &context(2)).unwrap().unwrap();
        assert_eq!(two.first.shape, [3, 2304, 1]);
        assert_eq!(two.second.unwrap().shape, [32, 64, 128]);
        assert_eq!(two.bytes().unwrap(), 3 * 2304 * 2 + 32 * 64 * 128 * 4);
        assert!(StateShape::of(&state, &context(3)).unwrap().is_err());
    }

    #[test]
    fn absurd_dimensions_are_an_error_and_not_a_panic() {
        let state = State::Kda {
            heads: u64::MAX / 2,
            dim: 7,
            kernel: 4,
            checkpoint: true,
            conv: None,
            ssm: None,
        };
        assert!(StateShape::of(&state, &context(1)).is_err());
    }
}
