//! Mixers with a recurrent state of Mamba's kinds, and the models made of nothing else.

use super::dense::{Decoder, Ends, Norm};
use super::text::Text;
use crate::arch::weight::Part;
use crate::arch::{Cache, CacheKind, Layer, Role, State, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// A Mamba-1 mixer (vLLM 0.32.0, `layers/mamba/mamba_mixer.py`), which no checkpoint quantises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mamba1 {
    /// Module path below the layer.
    pub path: &'static str,
    /// Channels.
    pub inner: u64,
    /// State elements a channel.
    pub state: u64,
    /// Taps of the convolution.
    pub kernel: u64,
    /// Rank of the time step's projection.
    pub dt_rank: u64,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Whether the outer projections have biases.
    pub bias: bool,
    /// Whether time step, input and output matrices have norms (Jamba).
    pub norms: bool,
}

impl Mamba1 {
    /// Its state.
    pub fn cache(&self) -> Cache {
        Cache {
            name: self.path.to_owned(),
            kind: CacheKind::State(State::Mamba1 {
                inner: self.inner,
                state: self.state,
                kernel: self.kernel,
                conv: None,
                ssm: None,
            }),
        }
    }

    /// Its parameters in a model of width `hidden`.
    pub fn weights(&self, hidden: u64) -> Vec<Weight> {
        let name = |part: &str| format!("{}.{part}", self.path);
        let inner = self.inner;
        let mut all = vec![
            Weight::tensor(name("A"), Role::State, &[inner, self.state], Some(0)).of(Dtype::F32),
            Weight::tensor(name("D"), Role::State, &[inner], Some(0)),
            Weight::column(name("conv1d"), Role::State, self.kernel, &[inner])
                .bias(self.conv_bias)
                .unquantized(),
            Weight::column(name("in_proj"), Role::Attention, hidden, &[inner, inner])
                .bias(self.bias)
                .unquantized(),
            Weight::row(
                name("x_proj"),
                Role::Attention,
                inner,
                self.dt_rank + 2 * self.state,
            )
            .unquantized(),
            Weight::column(name("dt_proj"), Role::Attention, self.dt_rank, &[inner])
                .bias(true)
                .unquantized(),
            Weight::row(name("out_proj"), Role::Attention, inner, hidden)
                .bias(self.bias)
                .unquantized(),
        ];
        if self.norms {
            all.push(Weight::norm(name("dt_layernorm"), self.dt_rank));
            all.push(Weight::norm(name("b_layernorm"), self.state));
            all.push(Weight::norm(name("c_layernorm"), self.state));
        }
        all
    }
}

/// A Mamba-2 mixer (vLLM 0.32.0, `layers/mamba/mamba_mixer2.py`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mamba2 {
    /// Module path below the layer.
    pub path: &'static str,
    /// Channels.
    pub inner: u64,
    /// Groups that share input and output matrices.
    pub groups: u64,
    /// State heads.
    pub heads: u64,
    /// Channels a head.
    pub head_dim: u64,
    /// State elements a channel.
    pub state: u64,
    /// Taps of the convolution.
    pub kernel: u64,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Whether the outer projections have biases.
    pub bias: bool,
    /// Whether the output has a norm over its channels.
    pub norm: bool,
    /// Element type of the recurrent state where the model fixes it.
    pub ssm: Option<Dtype>,
}

impl Mamba2 {
    /// Its state.
    pub fn cache(&self) -> Cache {
        Cache {
            name: self.path.to_owned(),
            kind: CacheKind::State(State::Mamba2 {
                inner: self.inner,
                groups: self.groups,
                heads: self.heads,
                head_dim: self.head_dim,
                state: self.state,
                kernel: self.kernel,
                conv: None,
                ssm: self.ssm,
            }),
        }
    }

    /// Its parameters in a model of width `hidden`. Groups are replicated where ranks do not divide them.
    pub fn weights(&self, hidden: u64) -> Vec<Weight> {
        let name = |part: &str| format!("{}.{part}", self.path);
        let groups = Part::Groups {
            units: self.groups,
            width: self.state,
        };
        let (inner, heads) = (Part::Even(self.inner), Part::Even(self.heads));
        let mut all = vec![
            Weight::tensor(name("A"), Role::State, &[self.heads], Some(0)).of(Dtype::F32),
            Weight::tensor(name("D"), Role::State, &[self.heads], Some(0)),
            Weight::tensor(name("dt_bias"), Role::State, &[self.heads], Some(0)),
            Weight::parts(
                name("conv1d"),
                Role::State,
                self.kernel,
                vec![inner, groups, groups],
            )
            .bias(self.conv_bias)
            .unquantized(),
            Weight::parts(
                name("in_proj"),
                Role::Attention,
                hidden,
                vec![inner, inner, groups, groups, heads],
            )
            .bias(self.bias),
            Weight::row(name("out_proj"), Role::Attention, self.inner, hidden).bias(self.bias),
        ];
        if self.norm {
            all.push(Weight::tensor(name("norm"), Role::Norm, &[self.inner], Some(0)));
        }
        all
    }
}

/// A short convolution (vLLM 0.32.0, `layers/mamba/short_conv.py`) over `width` channels.
pub(crate) fn short_conv(path: &str, hidden: u64, width: u64, kernel: u64, bias: bool) -> Layer {
    Layer {
        caches: vec![Cache {
            name: path.to_owned(),
            kind: CacheKind::State(State::ShortConv {
                hidden: width,
                kernel,
                whole: false,
            }),
        }],
        weights: vec![
            Weight::column(format!("{path}.conv"), Role::State, kernel, &[width])
                .bias(bias)
                .unquantized(),
            Weight::column(format!("{path}.in_proj"), Role::Attention, hidden, &[width; 3]).bias(bias),
            Weight::row(format!("{path}.out_proj"), Role::Attention, width, hidden).bias(bias),
        ]
        .into(),
    }
}

/// The rank of the time step: `auto` is a sixteenth of the width, rounded up.
pub(crate) fn dt_rank(t: &Text, key: &str) -> Result<u64> {
    match t.config.get(key) {
        None => Ok(t.hidden()?.div_ceil(16)),
        Some(value) if value.as_str() == Some("auto") => Ok(t.hidden()?.div_ceil(16)),
        Some(_) => t.config.dim(key),
    }
}

/// A width that is `hidden` times a whole factor.
pub(crate) fn expanded(t: &Text, key: &str) -> Result<u64> {
    let inner = t.hidden()? * t.config.dim(key)?;
    if inner > crate::arch::config::MAX_DIMENSION {
        return Err(Error::input(format!(
            "{} makes {inner} channels, more than a model can have",
            t.config.name(key)
        )));
    }
    Ok(inner)
}

/// Channels of a model that may give them outright.
fn inner(t: &Text) -> Result<u64> {
    match t.config.get("intermediate_size") {
        Some(_) => t.config.dim("intermediate_size"),
        None => expanded(t, "expand"),
    }
}

fn stack(t: &Text, make: impl Fn() -> Layer) -> Result<Decoder> {
    let layers = (0..t.layers()?)
        .map(|_| {
            let mut layer = make();
            layer.weights.push(Weight::norm("norm", t.hidden()?));
            Ok(layer)
        })
        .collect::<Result<_>>()?;
    let mut ends = Ends::read(t)?;
    ends.tied = t.config.flag("tie_word_embeddings", true)?;
    ends.final_norm = Norm::Scale;
    Ok(Decoder {
        layers_path: "backbone.layers".to_owned(),
        layers,
        outside: ends.outside(t.hidden()?),
        kv_heads: Some(0),
        ..Decoder::default()
    })
}

/// Mamba and Falcon-Mamba (vLLM 0.32.0, `mamba.py`); no attention at all.
pub(crate) fn mamba(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let mixer = Mamba1 {
        path: "mixer",
        inner: inner(t)?,
        state: c.dim("state_size")?,
        kernel: c.dim("conv_kernel")?,
        dt_rank: dt_rank(t, "time_step_rank")?,
        conv_bias: c.flag("use_conv_bias", true)?,
        bias: c.flag("use_bias", false)?,
        norms: false,
    };
    let hidden = t.hidden()?;
    stack(t, || Layer {
        caches: vec![mixer.cache()],
        weights: mixer.weights(hidden).into(),
    })
}

/// Mamba-2 (vLLM 0.32.0, `mamba2.py`); no attention at all.
pub(crate) fn mamba2(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let mixer = Mamba2 {
        path: "mixer",
        inner: inner(t)?,
        groups: c.dim("n_groups")?,
        heads: c.dim("num_heads")?,
        head_dim: c.dim("head_dim")?,
        state: c.dim("state_size")?,
        kernel: c.dim("conv_kernel")?,
        conv_bias: c.flag("use_conv_bias", true)?,
        bias: c.flag("use_bias", false)?,
        norm: true,
        ssm: None,
    };
    let hidden = t.hidden()?;
    stack(t, || Layer {
        caches: vec![mixer.cache()],
        weights: mixer.weights(hidden).into(),
    })
}
