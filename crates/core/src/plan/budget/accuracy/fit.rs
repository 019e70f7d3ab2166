//! Fits of the budget's constants, to all start-up logs or to some.

use super::boots::{Boot, ERAS};
use crate::engine::vllm::Rules;
use crate::plan::budget::{Constants, Inputs, Numbers, SECOND_RUNNER_SAMPLER};
use crate::units::MIB;

/// Everything that is fitted.
#[derive(Clone, Copy)]
pub struct Fit {
    pub constants: Constants,
    /// Tenths of a byte a logit, by [`Boot::era`].
    pub sampler: [u64; 5],
}

impl Fit {
    /// What a fit predicts for a boot, in bytes.
    pub fn predicted(&self, boot: &Boot) -> u64 {
        let inputs = Inputs {
            sampler_decibytes_per_logit: self.sampler[boot.era()],
            ..boot.inputs
        };
        let n = Numbers::of(&self.constants, &inputs);
        let graphs = if inputs.graphs_in_budget { n.graphs } else { 0 };
        n.activation() + n.non_torch() + graphs
    }

    pub fn shipped() -> Self {
        Self {
            constants: Constants::FITTED,
            sampler: {
                let [a, b, c, d] = ERAS.map(|since| Rules::of(since).sampler_decibytes_per_logit);
                [a, b, c, d, SECOND_RUNNER_SAMPLER]
            },
        }
    }

    /// Mean error in percent of the GPU's memory, each counted up to 8; n logs of one deployment count like sqrt(n).
    pub fn loss(&self, boots: &[&Boot]) -> f64 {
        let mut sum = (0.0, 0.0);
        for boot in boots {
            let weight = boot.weight;
            let error = boot.error_percent(self.predicted(boot)).abs().min(8.0);
            sum = (sum.0 + weight * error, sum.1 + weight);
        }
        sum.0 / sum.1
    }

    /// One constant after the other is set to the best of a few values, twice over.
    pub fn of(boots: &[&Boot]) -> Self {
        let mib = |all: &[u64]| all.iter().map(|n| n * MIB).collect::<Vec<_>>();
        let mut fit = Self::shipped();
        for _ in 0..2 {
            for (era, values) in [(1, [60, 100, 140, 180]), (3, [60, 80, 120, 160])] {
                fit.improve(boots, &values, |fit, n| {
                    fit.sampler[era] = n;
                });
            }
            fit.improve(boots, &[3, 4, 6], |f, n| f.constants.streams = n);
            fit.improve(boots, &[3, 4, 5], |f, n| f.constants.streams_v0 = n);
            fit.improve(boots, &[0, 1, 2, 3], |f, n| f.constants.streams_of_ranks = n);
            fit.improve(boots, &[130, 160, 190], |f, n| {
                f.constants.vision_decibytes = n;
            });
            fit.improve(boots, &[60, 90, 120, 150], |f, n| {
                f.constants.vision_divided_decibytes = n;
            });
            fit.improve(boots, &mib(&[50, 100, 200, 300]), |f, n| {
                f.constants.context_bytes = n;
            });
            fit.improve(boots, &mib(&[0, 300, 450, 600]), |f, n| {
                f.constants.amd_bytes = n;
            });
            fit.improve(boots, &mib(&[0, 100, 200, 300]), |f, n| {
                f.constants.communication_bytes = n;
            });
            fit.improve(boots, &mib(&[0, 200, 400, 600]), |f, n| {
                f.constants.symmetric_bytes = n;
            });
            fit.improve(boots, &mib(&[1536, 2048, 2560, 3072, 3584]), |f, n| {
                f.constants.unified_bytes = n;
            });
            fit.improve(boots, &mib(&[0, 128, 256, 384]), |f, n| {
                f.constants.graph_bytes = n;
            });
            fit.improve(boots, &mib(&[0, 3, 5, 7]), |f, n| {
                f.constants.graph_size_bytes = n;
            });
            fit.improve(boots, &mib(&[0, 512, 1024]), |f, n| {
                f.constants.pipeline_bytes = n;
            });
        }
        fit
    }

    fn improve(&mut self, boots: &[&Boot], values: &[u64], set: impl Fn(&mut Self, u64)) {
        let mut best = (self.loss(boots), *self);
        for &value in values {
            let mut other = *self;
            set(&mut other, value);
            let loss = other.loss(boots);
            if loss < best.0 - 1e-12 {
                best = (loss, other);
            }
        }
        *self = best.1;
    }
}

/// A boot, what is predicted for it by a fit without its deployment, and by the shipped constants.
pub struct Judged<'a> {
    pub boot: &'a Boot,
    pub unseen: u64,
    pub shipped: u64,
}

/// Every boot by a fit without its deployment.
pub fn judged(boots: &[Boot]) -> Vec<Judged<'_>> {
    let shipped = Fit::shipped();
    let mut fits: Vec<((String, String, u32), Fit)> = Vec::new();
    boots
        .iter()
        .map(|boot| {
            let left_out = boot.deployment();
            let known = fits.iter().find(|(key, _)| *key == left_out).map(|(_, fit)| *fit);
            let fit = known.unwrap_or_else(|| {
                let rest: Vec<&Boot> = boots.iter().filter(|b| b.deployment() != left_out).collect();
                let fit = Fit::of(&rest);
                fits.push((left_out, fit));
                fit
            });
            Judged {
                boot,
                unseen: fit.predicted(boot),
                shipped: shipped.predicted(boot),
            }
        })
        .collect()
}
