//! From the metadata of a GGUF file to the layers that keep something
//! (llama.cpp 0c1e570, `src/llama-model.cpp`, `src/llama-hparams.cpp`, `src/models/*.cpp`).

use super::gguf::{Header, Meta};
use super::keys::Keys;
use crate::{Error, Result};

/// Most layers that llama.cpp takes (`LLAMA_MAX_LAYERS` is 512); more is a mistake of the file.
const MAX_LAYERS: u64 = 512;

/// An attention layer's row of keys and values, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Elements of the keys of one token.
    pub keys: u64,
    /// Elements of the values of one token; 0 under MLA, where the keys hold both.
    pub values: u64,
    /// Heads of both.
    pub heads: u64,
    /// Whether only the last tokens are kept.
    pub sliding: bool,
}

/// A recurrent layer's state, in elements of 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recurrent {
    /// The convolution's part (R).
    pub conv: u64,
    /// The state itself (S).
    pub state: u64,
}

/// What one layer keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Layer {
    /// Keys and values, if it attends.
    pub attention: Option<Attention>,
    /// A state, if it is recurrent.
    pub recurrent: Option<Recurrent>,
}

/// The windows of sliding layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sliding {
    /// Tokens in a window (or a chunk).
    pub tokens: u64,
}

/// What the memory of a model depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hparams {
    /// Architecture by llama.cpp's name.
    pub architecture: String,
    /// Longest context the model was trained for.
    pub context_length: u64,
    /// Width of the residual stream.
    pub embedding: u64,
    /// Width of the widest feed-forward part.
    pub feed_forward: u64,
    /// Width of the feed-forward parts without routed experts (dense layers, shared experts) in a model that has some.
    pub dense_feed_forward: u64,
    /// Width of one routed expert; 0 where the metadata leaves it at the feed-forward's.
    pub expert_feed_forward: u64,
    /// Whether feed-forward parts have a gate.
    pub gated: bool,
    /// Elements of one token that are alive at once in a recurrent layer.
    pub mixer_width: u64,
    /// Query heads of the layer that has most.
    pub heads: u64,
    /// Tokens in the vocabulary.
    pub vocabulary: u64,
    /// Every layer in order, multi-token-prediction layers at the end included.
    pub layers: Vec<Layer>,
    /// Windows, where the architecture has a window cache.
    pub sliding: Option<Sliding>,
    /// Whether keys and values are one latent vector.
    pub mla: bool,
    /// Elements of one key head and one value head, which a quantised cache must be whole blocks of.
    pub head_widths: (u64, u64),
    /// Experts of a layer, and those that a token uses; zeros without experts.
    pub experts: (u64, u64),
    /// What else decides about the graph.
    pub keys: Keys,
}

/// Architectures without any cache (encoders and diffusion models).
const WITHOUT_CACHE: [&str; 14] = [
    "bert",
    "modern-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "eurobert",
    "gemma-embedding",
    "dream",
    "llada",
    "llada-moe",
    "rnd1",
    "t5encoder",
];

/// Architectures whose feed-forward parts have no gate.
const UNGATED: [&str; 14] = [
    "falcon",
    "gpt2",
    "gptj",
    "gptneox",
    "mpt",
    "starcoder",
    "starcoder2",
    "bloom",
    "codeshell",
    "phi2",
    "nemotron",
    "nemotron_h",
    "jais",
    "apertus",
];

/// Architectures whose every layer is recurrent.
const RECURRENT: [&str; 6] = ["mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"];

/// Architectures whose layers without key/value heads are recurrent.
const HYBRID_BY_HEADS: [&str; 6] = [
    "jamba",
    "granitehybrid",
    "plamo2",
    "lfm2",
    "lfm2moe",
    "kimi-linear",
];

/// Architectures whose every nth layer attends and the others are recurrent.
const HYBRID_BY_INTERVAL: [&str; 3] = ["qwen3next", "qwen35", "qwen35moe"];

/// Architectures with a plain cache in every layer.
const PLAIN: [&str; 75] = [
    "llama",
    "deci",
    "falcon",
    "grok",
    "gpt2",
    "gptj",
    "gptneox",
    "mpt",
    "baichuan",
    "starcoder",
    "refact",
    "bloom",
    "stablelm",
    "qwen",
    "qwen2",
    "qwen2moe",
    "qwen2vl",
    "qwen3",
    "qwen3moe",
    "qwen3vl",
    "qwen3vlmoe",
    "phi2",
    "phi3",
    "phimoe",
    "plamo",
    "codeshell",
    "orion",
    "internlm2",
    "minicpm",
    "minicpm3",
    "gemma",
    "starcoder2",
    "xverse",
    "command-r",
    "dbrx",
    "olmo",
    "olmoe",
    "openelm",
    "arctic",
    "deepseek",
    "deepseek2",
    "deepseek2-ocr",
    "chatglm",
    "glm4",
    "glm4moe",
    "bitnet",
    "jais",
    "jais2",
    "nemotron",
    "exaone",
    "granite",
    "granitemoe",
    "chameleon",
    "plm",
    "bailingmoe",
    "bailingmoe2",
    "dots1",
    "arcee",
    "ernie4_5",
    "ernie4_5-moe",
    "hunyuan-moe",
    "hunyuan-dense",
    "hunyuan_vl",
    "hy_v3",
    "smollm3",
    "seed_oss",
    "grovemoe",
    "apertus",
    "minimax-m2",
    "cogvlm",
    "pangu-embedded",
    "mistral3",
    "mistral4",
    "paddleocr",
    "llama-embed",
];

/// How an architecture decides which layers slide.
#[derive(Debug, Clone, Copy)]
struct Windowed {
    name: &'static str,
    /// Window where the file gives none; `None`: no window, no sliding layers.
    default: Option<u64>,
    /// Every nth layer is full, where the file has no pattern; `None`: the pattern must be there.
    every: Option<u64>,
    /// Whether the full layer is the first of each group.
    dense_first: bool,
    /// A window that the architecture sets whatever the file says.
    fixed: Option<u64>,
}

const fn windowed(
    name: &'static str,
    default: Option<u64>,
    every: Option<u64>,
    dense_first: bool,
) -> Windowed {
    Windowed {
        name,
        default,
        every,
        dense_first,
        fixed: None,
    }
}

/// Architectures with a window cache.
const WINDOWED: [Windowed; 21] = [
    windowed("gemma2", Some(4096), Some(2), false),
    windowed("gemma3", None, Some(6), false),
    windowed("gemma3n", None, Some(5), false),
    windowed("gemma4", None, None, false),
    windowed("gpt-oss", None, Some(2), false),
    windowed("cohere2", None, Some(4), false),
    windowed("cohere2moe", None, Some(4), true),
    Windowed {
        name: "llama4",
        default: Some(8192),
        every: Some(4),
        dense_first: false,
        fixed: Some(8192),
    },
    windowed("exaone4", Some(4096), Some(4), false),
    windowed("exaone-moe", Some(128), Some(4), false),
    windowed("olmo2", None, Some(4), false),
    Windowed {
        name: "smallthinker",
        default: None,
        every: Some(4),
        dense_first: true,
        fixed: Some(4096),
    },
    windowed("plamo3", None, Some(8), false),
    windowed("step35", None, None, false),
    windowed("mimo2", None, None, false),
    windowed("granite_swa", None, None, false),
    windowed("afmoe", None, Some(4), false),
    windowed("laguna", None, Some(4), true),
    windowed("mellum", None, Some(4), false),
    windowed("maple", None, None, false),
    windowed("spark2_5", None, None, false),
];

impl Hparams {
    /// Reads the metadata.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for an architecture whose memory is not modelled here,
    /// else if a size is missing or makes no sense; the key is named.
    pub fn read(header: &Header) -> Result<Self> {
        let name = header.architecture()?.to_owned();
        let arch = name.as_str();
        let count = header.required("block_count")?;
        if count == 0 || count > MAX_LAYERS {
            return Err(Error::input(format!(
                "{arch}.block_count is {count}, expected 1 to {MAX_LAYERS}"
            )));
        }
        let n = usize::try_from(count).unwrap_or(0);
        let embedding = header.required("embedding_length")?;
        let nextn = header.size("nextn_predict_layers")?.unwrap_or(0).min(count);
        let trunk = usize::try_from(count - nextn).unwrap_or(0);
        let heads = header
            .each("attention.head_count", n)?
            .unwrap_or_else(|| vec![0; n]);
        let kv_heads = header
            .each("attention.head_count_kv", n)?
            .unwrap_or_else(|| heads.clone());
        let feed_forward = header
            .each("feed_forward_length", n)?
            .unwrap_or_else(|| vec![0; n]);
        let of_first = embedding.checked_div(heads[0]).unwrap_or(0);
        let head_k = header.size("attention.key_length")?.unwrap_or(of_first);
        let head_v = header.size("attention.value_length")?.unwrap_or(of_first);
        let head_k_sliding = header.size("attention.key_length_swa")?.unwrap_or(head_k);
        let head_v_sliding = header.size("attention.value_length_swa")?.unwrap_or(head_v);
        let mla = header.size("attention.key_length_mla")?.unwrap_or(0) > 0
            && header.size("attention.value_length_mla")?.unwrap_or(0) > 0;
        let (sliding, slides) = sliding(header, arch, n, trunk)?;
        let keeps = keeps_until(header, arch, count)?;
        let state = recurrent(header, arch, embedding, heads[0])?;

        let mut layers = vec![Layer::default(); n];
        let interval = header.size("full_attention_interval")?.unwrap_or(4).max(1);
        let listed = header.list("attention.recurrent_layers")?;
        for (i, layer) in layers.iter_mut().enumerate() {
            let is_state = match arch {
                _ if RECURRENT.contains(&arch) => true,
                _ if HYBRID_BY_HEADS.contains(&arch) => kv_heads[i] == 0,
                _ if HYBRID_BY_INTERVAL.contains(&arch) => match listed {
                    Some(list) => list.get(i).is_some_and(|&flag| flag != 0),
                    None => i < trunk && !(i as u64 + 1).is_multiple_of(interval),
                },
                "nemotron_h" | "nemotron_h_moe" => kv_heads[i] == 0 && feed_forward[i] == 0,
                _ => false,
            };
            let attends = match arch {
                _ if WITHOUT_CACHE.contains(&arch) || RECURRENT.contains(&arch) => false,
                // The trunk never attends to the layers that predict further tokens.
                _ if nextn > 0 && trunk > 0 && i >= trunk => false,
                "falcon-h1" => true,
                "nemotron_h" | "nemotron_h_moe" => !is_state && feed_forward[i] == 0,
                _ => !is_state && (i as u64) < keeps,
            };
            if is_state || arch == "falcon-h1" {
                layer.recurrent = Some(state.ok_or_else(|| {
                    Error::input(format!(
                        "{arch}: layer {i} is recurrent, but the metadata does not give its sizes"
                    ))
                })?);
            }
            if attends {
                let (k, v) = if slides[i] {
                    (head_k_sliding, head_v_sliding)
                } else {
                    (head_k, head_v)
                };
                let width = |head: u64| {
                    head.checked_mul(kv_heads[i])
                        .ok_or_else(|| Error::overflow("the width of keys and values"))
                };
                layer.attention = Some(Attention {
                    keys: width(k)?,
                    values: if mla { 0 } else { width(v)? },
                    heads: kv_heads[i],
                    sliding: slides[i],
                });
            }
        }
        Ok(Self {
            context_length: header.size("context_length")?.unwrap_or(0),
            embedding,
            feed_forward: feed_forward.iter().copied().max().unwrap_or(0),
            dense_feed_forward: match header.size("leading_dense_block_count")?.unwrap_or(0) {
                0 => header.size("expert_shared_feed_forward_length")?.unwrap_or(0),
                _ => feed_forward.iter().copied().max().unwrap_or(0),
            },
            expert_feed_forward: header.size("expert_feed_forward_length")?.unwrap_or(0),
            gated: !UNGATED.contains(&arch),
            mixer_width: mixer_width(
                header.size("ssm.inner_size")?.unwrap_or(0),
                header.size("ssm.group_count")?.unwrap_or(0),
                header.size("ssm.state_size")?.unwrap_or(0),
            ),
            heads: heads.iter().copied().max().unwrap_or(0),
            vocabulary: header.vocabulary()?,
            layers,
            sliding,
            mla,
            head_widths: (head_k, if mla { 0 } else { head_v }),
            experts: (
                header.size("expert_count")?.unwrap_or(0),
                header
                    .each("expert_used_count", n)?
                    .map_or(0, |e| e.iter().copied().max().unwrap_or(0)),
            ),
            keys: Keys::read(header, trunk, keeps, slides)?,
            architecture: name,
        })
    }
}

/// Projections, convolution and gate of a recurrent layer: five times its inner width, and six times its groups' states.
pub(super) fn mixer_width(inner: u64, groups: u64, state: u64) -> u64 {
    inner
        .saturating_mul(5)
        .saturating_add(groups.saturating_mul(state).saturating_mul(6))
}

/// Whether the layers of an architecture are modelled, and which of them slide.
fn sliding(header: &Header, arch: &str, n: usize, trunk: usize) -> Result<(Option<Sliding>, Vec<bool>)> {
    let none = || Ok((None, vec![false; n]));
    let key = header.size("attention.sliding_window")?;
    if ["lfm2", "lfm2moe"].contains(&arch) && key.is_some_and(|w| w > 0) {
        // Every attention layer slides.
        return Ok((key.map(|tokens| Sliding { tokens }), vec![true; n]));
    }
    let Some(rule) = WINDOWED.iter().find(|rule| rule.name == arch) else {
        let known = PLAIN.contains(&arch)
            || WITHOUT_CACHE.contains(&arch)
            || RECURRENT.contains(&arch)
            || HYBRID_BY_HEADS.contains(&arch)
            || HYBRID_BY_INTERVAL.contains(&arch)
            || ["falcon-h1", "nemotron_h", "nemotron_h_moe"].contains(&arch);
        return if known {
            none()
        } else {
            Err(Error::unsupported(format!(
                "the memory of llama.cpp's architecture \"{arch}\" is not planned"
            ))
            .hint("the weights alone can be planned with --engine generic --params-b"))
        };
    };
    // EXAONE 4 slides in its 32B model alone, which has 64 layers.
    if arch == "exaone4" && trunk != 64 {
        return none();
    }
    let window = match (arch, key) {
        ("llama4", Some(0)) => return none(),
        (_, given) => given.or(rule.default),
    };
    let Some(window) = window.filter(|&w| w > 0) else {
        return none();
    };
    let tokens = rule.fixed.unwrap_or(window);
    let slides = match (header.list("attention.sliding_window_pattern")?, rule.every) {
        (Some(list), _) if list.len() >= n => list[..n].iter().map(|&flag| flag != 0).collect(),
        (Some(list), _) => {
            return Err(Error::input(format!(
                "{arch}.attention.sliding_window_pattern has {} values for {n} layers",
                list.len()
            )));
        }
        (None, Some(every)) => {
            let every = header.size("attention.sliding_window_pattern")?.unwrap_or(every);
            (0..n as u64)
                .map(|i| {
                    if i >= trunk as u64 {
                        return false;
                    }
                    match (every, rule.dense_first) {
                        (0, _) => true,
                        (_, true) => i % every != 0,
                        (_, false) => i % every < every - 1,
                    }
                })
                .collect()
        }
        (None, None) => {
            return Err(Error::input(format!(
                "the metadata has no {arch}.attention.sliding_window_pattern"
            )));
        }
    };
    Ok((Some(Sliding { tokens }), slides))
}

/// Layers from here on share an earlier layer's cache.
fn keeps_until(header: &Header, arch: &str, count: u64) -> Result<u64> {
    Ok(match arch {
        "gemma3n" => 20,
        "gemma4" => count.saturating_sub(header.size("attention.shared_kv_layers")?.unwrap_or(0)),
        _ => count,
    })
}

/// Elements of a recurrent layer's state.
fn recurrent(header: &Header, arch: &str, embedding: u64, heads: u64) -> Result<Option<Recurrent>> {
    let too_large = || Error::overflow("the recurrent state of one layer");
    let mul = |factors: &[u64]| {
        factors
            .iter()
            .try_fold(1_u64, |product, &f| product.checked_mul(f))
            .ok_or_else(too_large)
    };
    let size = |key: &str| header.size(key);
    if let Some(head) = size("wkv.head_size")?.filter(|&n| n > 0)
        && RECURRENT.contains(&arch)
    {
        let shifts = size("token_shift_count")?.unwrap_or(2);
        return Ok(Some(Recurrent {
            conv: mul(&[shifts, embedding])?,
            state: mul(&[embedding, head])?,
        }));
    }
    if let Some(taps) = size("shortconv.l_cache")?.filter(|&n| n > 0) {
        return Ok(Some(Recurrent {
            conv: mul(&[embedding, taps - 1])?,
            state: 0,
        }));
    }
    let kernel = size("ssm.conv_kernel")?.unwrap_or(0);
    if let Some(dim) = size("kda.head_dim")?.filter(|&n| n > 0) {
        let taps = if kernel > 0 { kernel - 1 } else { 3 };
        return Ok(Some(Recurrent {
            conv: mul(&[3, taps, heads, dim])?,
            state: mul(&[dim, dim, heads])?,
        }));
    }
    let (Some(inner), Some(state)) = (size("ssm.inner_size")?, size("ssm.state_size")?) else {
        return Ok(None);
    };
    // Mamba-1 layers do not read the number of groups.
    let groups = if ["mamba", "jamba"].contains(&arch) {
        0
    } else {
        size("ssm.group_count")?.unwrap_or(0)
    };
    let width = mul(&[2, groups, state])?
        .checked_add(inner)
        .ok_or_else(too_large)?;
    Ok(Some(Recurrent {
        conv: mul(&[kernel.saturating_sub(1), width])?,
        state: mul(&[state, inner])?,
    }))
}

/// Text of `general.name`, where it is there.
pub fn display_name(header: &Header) -> Option<&str> {
    match header.metadata.get("general.name") {
        Some(Meta::Text(name)) if !name.is_empty() => Some(name),
        _ => None,
    }
}
