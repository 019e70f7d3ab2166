//! Closed forms of kernel times, all in seconds for one call on one GPU, shapes after sharding.
//!
//! Each form is a launch floor plus the soft maximum of a compute and a memory time; the coefficients come from
//! [`super::calibration`].

use super::calibration::{AllReduce, Context, Decode, Gemm, GpuSpec, Moe};

/// Soft maximum `(a^p + b^p)^(1/p)`.
pub fn soft_max(a: f64, b: f64, p: f64) -> f64 {
    let (large, small) = if a >= b { (a, b) } else { (b, a) };
    if large <= 0.0 {
        return 0.0;
    }
    large * (1.0 + (small / large).powf(p)).powf(1.0 / p)
}

/// Element sizes and peak rate of a number format in matrix products.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Format {
    /// Bytes of one weight, scales included.
    pub weight_bytes: f64,
    /// Bytes of one activation.
    pub activation_bytes: f64,
    /// Peak rate, FLOP/s.
    pub rate: f64,
}

/// `m` tokens times a weight of `n` outputs and `k` inputs.
///
/// `tiles = ceil(m/128) ceil(n/128)`, `occ = tiles / (sms ceil(tiles/sms))`,
/// `t = t0 + softmax(2mnk / (F ec occ^occ_pow k/(k+k0)), (w n k + a m k + 2 m n + b0) / (bw em))`.
pub fn gemm(c: &Gemm, gpu: &GpuSpec, format: Format, m: f64, n: f64, k: f64) -> f64 {
    let tiles = (m / 128.0).ceil() * (n / 128.0).ceil();
    let occupancy = tiles / (gpu.sms * (tiles / gpu.sms).ceil());
    let compute = 2.0 * m * n * k / (format.rate * c.ec * occupancy.powf(c.occ_pow) * k / (k + c.k0));
    let bytes = format.weight_bytes * n * k + format.activation_bytes * m * k + 2.0 * m * n + c.b0;
    c.t0_s + soft_max(compute, bytes / (gpu.bw * c.em), c.p)
}

/// Shape of an attention layer on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: f64,
    /// Key/value heads.
    pub kv_heads: f64,
    /// Elements of a head.
    pub head_dim: f64,
    /// Bytes of one cached element.
    pub kv_bytes: f64,
}

/// Decode attention of `sequences` with `context` cached tokens each on average.
pub fn attention_decode(c: &Decode, gpu: &GpuSpec, s: AttentionShape, sequences: f64, context: f64) -> f64 {
    let bytes = 2.0 * sequences * context * s.kv_heads * s.head_dim * s.kv_bytes
        + 4.0 * sequences * s.heads * s.head_dim
        + c.b0;
    let flops = 4.0 * sequences * context * s.heads * s.head_dim;
    c.t0_s + c.tb_s * sequences + soft_max(bytes / (gpu.bw * c.em), flops / (gpu.f16 * c.ec), c.p)
}

/// Prefill attention of `new` tokens after `past` cached ones; `window` limits the keys a query sees.
pub fn attention_prefill(
    c: &Context,
    gpu: &GpuSpec,
    s: AttentionShape,
    new: f64,
    past: f64,
    window: Option<f64>,
) -> f64 {
    let mut pairs = new * past + new * (new + 1.0) / 2.0;
    let mut past_read = past;
    if let Some(window) = window {
        pairs = pairs.min(new * window);
        past_read = past.min(window);
    }
    let compute = 4.0 * s.heads * s.head_dim * pairs / (gpu.f16 * c.ec * new / (new + c.s0));
    let bytes = (4.0 * s.heads * new + 4.0 * s.kv_heads * new + 2.0 * s.kv_heads * past_read * s.kv_bytes)
        * s.head_dim;
    c.t0_s + soft_max(compute, bytes / (gpu.bw * c.em), c.p)
}

/// Decode over a latent cache of `width` elements a token, read once for all `heads` of the rank.
pub fn latent_decode(
    c: &Decode,
    gpu: &GpuSpec,
    heads: f64,
    width: f64,
    kv_bytes: f64,
    sequences: f64,
    context: f64,
) -> f64 {
    let bytes = width * sequences * context * kv_bytes + c.b0;
    // 2 * (width + latent) multiply-adds a head and pair; 2176 for DeepSeek's 576 and 512.
    let flops = 2176.0 / 576.0 * width * sequences * context * heads;
    c.t0_s + c.tb_s * sequences + soft_max(bytes / (gpu.bw * c.em), flops / (gpu.f16 * c.ec), c.p)
}

/// Routed experts of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertShape {
    /// Experts in the layer.
    pub experts: f64,
    /// Experts a token uses.
    pub top_k: f64,
    /// Model width.
    pub hidden: f64,
    /// Width of one expert.
    pub intermediate: f64,
    /// Matrices of one expert: 3 with a gate, else 2.
    pub matrices: f64,
    /// Tensor-parallel ranks that share an expert.
    pub tp: f64,
    /// Expert-parallel ranks.
    pub ep: f64,
    /// Standard deviations by which the busiest rank's load exceeds the mean, in units of the expected largest of
    /// `ep` normal draws (`sqrt(2 ln ep)`); 0 for a perfect balance.
    pub imbalance: f64,
}

/// Token copies that the busiest of the expert-parallel ranks gets: the mean, and the largest of `ep` draws of a
/// Poisson load above it; never more than its experts can be asked for.
pub fn busiest_rank_rows(s: ExpertShape, tokens: f64) -> f64 {
    let mean = tokens * s.top_k / s.ep;
    if s.ep <= 1.0 {
        return mean;
    }
    let spread = (2.0 * s.ep.ln() * mean * (1.0 - 1.0 / s.ep)).sqrt();
    (mean + s.imbalance * spread).min(tokens * s.top_k.min(s.experts / s.ep))
}

/// Expected number of experts of the busiest rank that at least one of `tokens` uses.
pub fn active_experts(c: &Moe, s: ExpertShape, tokens: f64) -> f64 {
    let rows = busiest_rank_rows(s, tokens);
    let load = rows * s.ep / s.experts;
    (s.experts / s.ep * (1.0 - (-load.powf(c.act_pow)).exp())).min(rows)
}

/// Routed experts for `tokens` tokens.
pub fn experts(c: &Moe, gpu: &GpuSpec, format: Format, s: ExpertShape, tokens: f64) -> f64 {
    let active = active_experts(c, s, tokens).max(f64::MIN_POSITIVE);
    let rows = busiest_rank_rows(s, tokens);
    let per_expert = rows / active;
    let width = s.intermediate / s.tp;
    let compute =
        2.0 * s.matrices * rows * s.hidden * width / (format.rate * c.ec * per_expert / (per_expert + c.m0));
    let bytes = s.matrices * active * s.hidden * width * format.weight_bytes
        + rows * (2.0 * s.hidden * format.activation_bytes + 6.0 * width);
    c.t0_s + c.te_s * active + soft_max(compute, bytes / (gpu.bw * c.em), c.p)
}

/// Sum of `bytes` over the ranks that `c` was fitted for.
pub fn all_reduce(c: &AllReduce, bytes: f64) -> f64 {
    c.a_s + bytes / c.bandwidth_bytes_per_s + c.c_sqrt * bytes.sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::calibration::Calibration;
    use super::*;

    #[test]
    fn a_soft_maximum_lies_between_the_maximum_and_the_sum() {
        for (a, b, p) in [(1.0, 2.0, 1.0), (3.0, 3.0, 4.0), (0.0, 5.0, 2.0), (0.0, 0.0, 2.0)] {
            let t = soft_max(a, b, p);
            assert!(
                t >= f64::max(a, b) - 1e-12 && t <= a + b + 1e-12,
                "{a} {b} {p} -> {t}"
            );
        }
    }

    #[test]
    fn a_large_bf16_product_on_an_h100_runs_at_a_plausible_share_of_the_peak() {
        let c = Calibration::embedded("h100_sxm").unwrap();
        let f = Format {
            weight_bytes: 2.0,
            activation_bytes: 2.0,
            rate: c.spec.f16,
        };
        let t = gemm(&c.gemm("bfloat16").unwrap(), &c.spec, f, 8192.0, 8192.0, 8192.0);
        let share = 2.0 * 8192f64.powi(3) / t / c.spec.f16;
        assert!((0.6..0.95).contains(&share), "{share}");
    }

    #[test]
    fn every_kernel_takes_longer_with_more_work() {
        let c = Calibration::embedded("h200_sxm").unwrap();
        let shape = AttentionShape {
            heads: 8.0,
            kv_heads: 1.0,
            head_dim: 128.0,
            kv_bytes: 2.0,
        };
        let d = c.decode(false, 128).unwrap();
        assert!(
            attention_decode(&d, &c.spec, shape, 64.0, 8192.0)
                > attention_decode(&d, &c.spec, shape, 64.0, 1024.0)
        );
        let p = c.context(128).unwrap();
        assert!(
            attention_prefill(&p, &c.spec, shape, 2048.0, 8192.0, None)
                > attention_prefill(&p, &c.spec, shape, 2048.0, 8192.0, Some(128.0))
        );
    }
}
