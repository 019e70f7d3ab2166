//! Which of the V1 engine's two model runners serves a model.
//!
//! The second runner ("Model Runner V2", `v1/worker/gpu/model_runner.py`) came in by and by: named classes first, then
//! every model without experts, then all. It matters to memory because it estimates no CUDA graphs before 0.29, encodes no
//! images while it is profiled before 0.27, and holds counts of every request's tokens. Read in the releases' `config/vllm.py`
//! (`use_v2_model_runner`); a server that sets `VLLM_USE_V2_MODEL_RUNNER` has what it says.

use super::Version;
use super::speculative::Method;
use crate::arch::{CacheKind, Model, Role};

/// Since this release some models are served by the second runner.
const FIRST: Version = Version::new(0, 22, 0);
/// Since this release named classes are, with experts and quantised too.
const NAMED: Version = Version::new(0, 24, 0);
/// Since this release every model without experts and recurrent states is.
const DENSE: Version = Version::new(0, 25, 0);
/// Since this release all are, but for what it does not support.
const ALL: Version = Version::new(0, 29, 0);
/// Since this release the second runner encodes images while it is profiled (`model_runner.py` of 0.26.0 and 0.27.0).
const ENCODES: Version = Version::new(0, 27, 0);
/// Since this release what stays allocated is taken off the budget whoever holds it, so that the runner's own tensors count
/// (`total_consumed` in `utils/mem_utils.py` of 0.26.0 and 0.27.0).
const COUNTS_ITS_OWN: Version = Version::new(0, 27, 0);

/// Classes that are served by it, and since when.
const CLASSES: [(Version, &[&str]); 6] = [
    (FIRST, &["Qwen3ForCausalLM"]),
    (
        Version::new(0, 23, 0),
        &["LlamaForCausalLM", "MistralForCausalLM"],
    ),
    (
        NAMED,
        &[
            "DeepseekV2ForCausalLM",
            "GraniteMoeForCausalLM",
            "Qwen2MoeForCausalLM",
        ],
    ),
    (
        Version::new(0, 26, 0),
        &[
            "InklingForCausalLM",
            "InklingForConditionalGeneration",
            "LongcatFlashNgramForCausalLM",
        ],
    ),
    (Version::new(0, 27, 0), &["KimiK3ForConditionalGeneration"]),
    (Version::new(0, 28, 0), &["DeepseekV4ForCausalLM"]),
];
/// Classes that AMD GPUs serve with the first one, and since when it is said (before, DeepSeek-V4 is no default there).
const FIRST_ON_AMD: [(Version, &[&str]); 3] = [
    (Version::new(0, 28, 0), &["DeepseekV4ForCausalLM"]),
    (ALL, &["DeepseekV32ForCausalLM"]),
    (Version::new(0, 31, 0), &["GlmMoeDsaForCausalLM"]),
];

/// A model runner of the V1 engine in one release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runner {
    second: bool,
    version: Version,
}

/// What the choice hangs on beside the model.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// Release of the engine.
    pub version: Version,
    /// Whether the weights are quantised.
    pub quantized: bool,
    /// Whether it is an AMD GPU.
    pub amd: bool,
    /// How tokens are drafted.
    pub drafts: Option<Method>,
}

impl Runner {
    /// The one that serves this model.
    pub fn of(model: &Model, c: &Circumstances) -> Self {
        Self {
            second: is_second(model, c),
            version: c.version,
        }
    }

    /// The first or the second of a release, where a log says which.
    pub const fn logged(second: bool, version: Version) -> Self {
        Self { second, version }
    }

    /// Whether it is the second.
    pub const fn is_second(self) -> bool {
        self.second
    }

    /// Whether it says how much its CUDA graphs will take; the first does since they are taken off the budget.
    pub fn estimates_graphs(self) -> bool {
        !self.second || self.version >= ALL
    }

    /// Whether it encodes images and videos while it is profiled.
    pub fn encodes(self) -> bool {
        !self.second || self.version >= ENCODES
    }

    /// Whether its counts of tokens are taken off the budget: 32 bits and one more for each sequence and token of the
    /// vocabulary (`v1/worker/gpu/sample/penalties.py`).
    pub fn counts_tokens(self) -> bool {
        self.second && self.version >= COUNTS_ITS_OWN
    }
}

fn is_second(model: &Model, c: &Circumstances) -> bool {
    if c.version < FIRST || matches!(c.drafts, Some(Method::Ngram | Method::NgramGpu | Method::Suffix)) {
        return false;
    }
    let among = |rows: &[(Version, &[&str])]| {
        rows.iter()
            .any(|(since, names)| c.version >= *since && names.contains(&model.architecture.as_str()))
    };
    let drafts_itself = c.drafts == Some(Method::DSpark) && c.version >= Version::new(0, 26, 0);
    if c.amd && among(&FIRST_ON_AMD) && !drafts_itself {
        return false;
    }
    if c.version >= ALL || drafts_itself {
        return true;
    }
    if model.pooling.is_some() {
        return false;
    }
    let named = among(&CLASSES);
    let experts = (model.layers.iter()).any(|layer| layer.weights.iter().any(|w| w.role == Role::Experts));
    let states = (model.layers.iter().flat_map(|layer| &layer.caches))
        .any(|cache| matches!(cache.kind, CacheKind::State(_)));
    if c.version >= DENSE {
        named || (!experts && !states)
    } else {
        named && (c.version >= NAMED || (!experts && !c.quantized))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::family::{self, Reading};
    use crate::catalogue;

    fn second(name: &str, minor: u32, change: impl Fn(&mut Circumstances)) -> bool {
        let config = catalogue::find(name).unwrap().config().unwrap();
        let Reading::Model(model) = family::read(name, &config).unwrap() else {
            panic!("{name} is refused");
        };
        let mut c = Circumstances {
            version: Version::new(0, minor, 0),
            quantized: false,
            amd: false,
            drafts: None,
        };
        change(&mut c);
        Runner::of(&model, &c).is_second()
    }

    fn plain(name: &str, minor: u32) -> bool {
        second(name, minor, |_| {})
    }

    #[test]
    fn named_classes_come_first_then_models_without_experts_then_all() {
        for (name, since) in [
            ("Qwen/Qwen3-8B", 22),
            ("meta-llama/Meta-Llama-3.1-8B", 23),
            ("Qwen/Qwen2.5-7B-Instruct", 25),
            ("Qwen/Qwen3-30B-A3B", 29),
            ("Qwen/Qwen3.5-27B", 29),
            ("deepseek-ai/DeepSeek-V4-Flash", 28),
        ] {
            for minor in 17..=32 {
                assert_eq!(plain(name, minor), minor >= since, "{name} 0.{minor}");
            }
        }
    }

    #[test]
    fn quantised_weights_drafts_and_amd_change_the_choice() {
        assert!(!second("Qwen/Qwen3-8B", 23, |c| c.quantized = true));
        assert!(second("Qwen/Qwen3-8B", 24, |c| c.quantized = true));
        assert!(!second("Qwen/Qwen3-8B", 30, |c| c.drafts = Some(Method::Ngram)));
        assert!(second("deepseek-ai/DeepSeek-V4-Flash", 27, |c| c.drafts =
            Some(Method::DSpark)));
        assert!(!second("deepseek-ai/DeepSeek-V4-Flash", 30, |c| c.amd = true));
    }

    #[test]
    fn what_a_runner_leaves_out_hangs_on_the_release() {
        let at = |minor| Runner::logged(true, Version::new(0, minor, 0));
        assert!(!at(28).estimates_graphs() && at(29).estimates_graphs());
        assert!(!at(26).encodes() && at(27).encodes());
        assert!(!at(26).counts_tokens() && at(27).counts_tokens());
        let first = Runner::logged(false, Version::new(0, 28, 0));
        assert!(first.estimates_graphs() && first.encodes() && !first.counts_tokens());
    }
}
