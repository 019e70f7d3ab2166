//! The mixture-of-experts part of a layer, and which layers have one.

use super::dense::{Decoder, Dense, Mlp};
use super::text::Text;
use crate::arch::{Kinds, Role, Weight};
use crate::dtype::Dtype;
use crate::{Error, Result};

/// An expert that every token uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// Module path below the layer.
    pub path: &'static str,
    /// Inner width, of all shared experts together.
    pub width: u64,
    /// Whether a gate of one output scales it.
    pub gate: bool,
}

/// Router, routed experts and shared expert of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Moe {
    /// Module path below the layer.
    pub path: &'static str,
    /// The router's name.
    pub router: &'static str,
    /// The router's element type where the engine fixes one.
    pub router_dtype: Option<Dtype>,
    /// Whether the router has a bias.
    pub router_bias: bool,
    /// Whether the engine quantises the router where the checkpoint does (most classes keep it as it is).
    pub router_quantizable: bool,
    /// Name of a float32 vector that corrects the scores, if there is one.
    pub correction: Option<&'static str>,
    /// Routed experts.
    pub experts: u64,
    /// Experts that one token uses.
    pub top_k: u64,
    /// Inner width of one routed expert.
    pub width: u64,
    /// Whether routed experts have a gate.
    pub gated: bool,
    /// Whether routed experts have biases.
    pub bias: bool,
    /// The shared expert.
    pub shared: Option<Shared>,
}

impl Moe {
    /// `experts` gated experts of this width behind a router called `gate`, nothing else.
    pub fn new(path: &'static str, experts: u64, top_k: u64, width: u64) -> Self {
        Self {
            path,
            router: "gate",
            router_dtype: None,
            router_bias: false,
            router_quantizable: false,
            correction: None,
            experts,
            top_k,
            width,
            gated: true,
            bias: false,
            shared: None,
        }
    }

    /// The usual form: `num_experts`-like count, `num_experts_per_tok` and `moe_intermediate_size`.
    ///
    /// # Errors
    /// If a size is missing or out of range.
    pub fn read(t: &Text, path: &'static str) -> Result<Self> {
        Ok(Self::new(
            path,
            experts(t)?,
            top_k(t)?,
            t.config.dim("moe_intermediate_size")?,
        ))
    }

    /// The same with a shared expert of this width; none if it is 0.
    #[must_use]
    pub fn shared(mut self, path: &'static str, width: u64) -> Self {
        self.shared = (width > 0).then_some(Shared {
            path,
            width,
            gate: false,
        });
        self
    }

    /// The same with a float32 router.
    #[must_use]
    pub fn f32_router(mut self) -> Self {
        self.router_dtype = Some(Dtype::F32);
        self
    }

    /// The same with a float32 vector that corrects the router's scores.
    #[must_use]
    pub fn corrected(mut self, name: &'static str) -> Self {
        self.correction = Some(name);
        self
    }

    /// Its parameters in a model of width `hidden`.
    pub fn weights(&self, hidden: u64) -> Vec<Weight> {
        let path = self.path;
        let mut router = Weight::replicated(
            format!("{path}.{}", self.router),
            Role::Router,
            hidden,
            &[self.experts],
        )
        .bias(self.router_bias)
        .unquantized();
        router.dtype = self.router_dtype;
        router.quantizable = self.router_quantizable;
        let mut all = vec![router];
        if let Some(name) = self.correction {
            let vector = Weight::tensor(format!("{path}.{name}"), Role::Router, &[self.experts], None);
            all.push(vector.of(Dtype::F32));
        }
        if let Some(shared) = self.shared {
            if shared.gate {
                let gate =
                    Weight::replicated(format!("{}_gate", shared.path), Role::SharedExpert, hidden, &[1]);
                all.push(gate.unquantized());
            }
            let mlp = Mlp {
                path: shared.path,
                width: shared.width,
                gated: self.gated,
                bias: false,
            };
            all.extend(
                mlp.weights(hidden)
                    .into_iter()
                    .map(|w| w.role(Role::SharedExpert)),
            );
        }
        let experts = Weight::experts(
            format!("{path}.experts"),
            self.experts,
            self.top_k,
            hidden,
            self.width,
        )
        .bias(self.bias);
        all.push(if self.gated { experts } else { experts.ungated() });
        all
    }
}

/// Routed experts, under any of the names that configurations use.
///
/// # Errors
/// If it is missing, zero or out of range.
pub fn experts(t: &Text) -> Result<u64> {
    t.first_dim(&[
        "num_experts",
        "n_routed_experts",
        "num_local_experts",
        "moe_num_experts",
    ])
}

/// Experts that one token uses, under any of the names that configurations use; 0 where the file does not say
/// (the engine builds such a model, sizes do not depend on it).
///
/// # Errors
/// If it is out of range.
pub fn top_k(t: &Text) -> Result<u64> {
    const KEYS: [&str; 5] = [
        "num_experts_per_tok",
        "num_experts_per_token",
        "moe_top_k",
        "moe_k",
        "moe_topk",
    ];
    match KEYS.iter().find(|key| t.config.get(key).is_some()) {
        Some(key) => t.config.dim_or(key, 0),
        None => Ok(0),
    }
}

/// Whether each layer has experts, by a rule over the layer's number.
///
/// # Errors
/// As [`Text::layers`].
pub fn sparse_layers(t: &Text, rule: impl Fn(u64) -> bool) -> Result<Vec<bool>> {
    Ok((0..t.layers()?).map(rule).collect())
}

/// Layers from `first_k_dense_replace` on (a key of `default` if missing), every `moe_layer_freq`th.
///
/// # Errors
/// If a value is out of range.
pub fn after_dense(t: &Text, default: u64) -> Result<Vec<bool>> {
    let first = t.config.dim_or("first_k_dense_replace", default)?;
    if let Some(null @ serde_json::Value::Null) = t.config.map().get("moe_layer_freq") {
        // No class declares it, so that the engine divides by nothing.
        return Err(t.config.wrong("moe_layer_freq", null, "an integer"));
    }
    let every = t.config.dim_or("moe_layer_freq", 1)?.max(1);
    sparse_layers(t, |i| i >= first && i.is_multiple_of(every))
}

/// Layers listed as `"4,5,6"` under `moe_layers_enum`, all but the first without the key (Step-3).
///
/// # Errors
/// If the list holds anything but layer numbers.
pub fn enumerated(t: &Text) -> Result<Vec<bool>> {
    let Some(list) = t.config.str("moe_layers_enum")? else {
        return sparse_layers(t, |i| i > 0);
    };
    let numbers = list
        .split(',')
        .map(|n| {
            n.trim().parse::<u64>().map_err(|_| {
                Error::input(format!(
                    "{} holds {n:?}, expected layer numbers with commas between",
                    t.config.name("moe_layers_enum")
                ))
            })
        })
        .collect::<Result<std::collections::HashSet<u64>>>()?;
    sparse_layers(t, |i| numbers.contains(&i))
}

/// Layers that are neither in `mlp_only_layers` nor between multiples of `decoder_sparse_step` (Qwen).
///
/// # Errors
/// If a value is out of range.
pub fn stepped(t: &Text) -> Result<Vec<bool>> {
    let step = t.config.dim_or("decoder_sparse_step", 1)?.max(1);
    let dense = t.config.u64s("mlp_only_layers")?.unwrap_or_default();
    sparse_layers(t, |i| (i + 1).is_multiple_of(step) && !dense.contains(&i))
}

impl Dense {
    /// The decoder with experts in the layers that `sparse` marks and its dense feed-forward part in the others.
    ///
    /// # Errors
    /// None of its own; see [`Dense::build_with`].
    pub fn build_moe(&self, moe: &Moe, sparse: &[bool]) -> Result<Decoder> {
        let (experts, dense) = (moe.weights(self.hidden), self.mlp.weights(self.hidden));
        let mut kinds = Kinds::default();
        self.build_with(|i, layer| {
            let sparse = sparse.get(i).copied().unwrap_or(true);
            layer.weights = kinds.of(sparse, || {
                let feed = if sparse { &experts } else { &dense };
                layer.weights.iter().chain(feed).cloned().collect()
            });
            Ok(())
        })
    }
}
