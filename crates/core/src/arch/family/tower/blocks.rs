//! What encoders are made of: transformer blocks, norms and plain parameters.

use crate::Result;
use crate::arch::{Config, Role, Weight};

/// Elements of one pixel: red, green and blue.
pub(super) const CHANNELS: u64 = 3;

/// A transformer encoder's blocks, which differ between towers in names, biases and norms only.
pub(super) struct Blocks {
    pub(super) path: &'static str,
    pub(super) layers: u64,
    pub(super) hidden: u64,
    /// Width of all heads together; the model's in most.
    pub(super) attention: u64,
    pub(super) heads: u64,
    pub(super) width: u64,
    /// Names of query/key/value projection, output projection, first and second feed-forward matrix.
    pub(super) names: [&'static str; 4],
    pub(super) attention_bias: bool,
    pub(super) mlp_bias: bool,
    /// Two norms a layer, each with a shift where `norm_shift`.
    pub(super) norm_shift: bool,
}

impl Blocks {
    /// Parameters of all layers.
    pub(super) fn weights(&self) -> Vec<Weight> {
        let name = |part: &str| format!("{}.0.{part}", self.path);
        let head_dim = self.attention.checked_div(self.heads).unwrap_or(0);
        let [qkv, out, up, down] = self.names;
        let norms = if self.norm_shift { 4 } else { 2 };
        [
            Weight::qkv(name(qkv), self.hidden, self.heads, self.heads, head_dim).bias(self.attention_bias),
            Weight::row(name(out), Role::Tower, self.attention, self.hidden).bias(self.attention_bias),
            Weight::column(name(up), Role::Tower, self.hidden, &[self.width]).bias(self.mlp_bias),
            Weight::row(name(down), Role::Tower, self.width, self.hidden).bias(self.mlp_bias),
            Weight::norm(name("norm"), self.hidden).times(norms),
        ]
        .into_iter()
        .map(|w| {
            let count = w.count * self.layers;
            w.role(Role::Tower).times(count)
        })
        .collect()
    }
}

/// A layer norm over `width`: scale and shift.
pub(super) fn layer_norm(name: &str, width: u64) -> Weight {
    plain(name, &[width]).times(2)
}

/// A parameter that every rank holds whole.
pub(super) fn plain(name: &str, shape: &[u64]) -> Weight {
    Weight::tensor(name, Role::Tower, shape, None)
}

/// `spatial_merge_size` squared, patches that the projector joins.
pub(super) fn merged(vision: &Config) -> Result<u64> {
    let side = factor_or(vision, "spatial_merge_size", 2)?;
    Ok(side * side)
}

/// A matrix that every rank holds whole, with a bias.
pub(super) fn whole(name: impl Into<String>, inputs: u64, outputs: u64) -> Weight {
    Weight::replicated(name, Role::Tower, inputs, &[outputs]).bias(true)
}

/// A column-parallel matrix with a bias.
pub(super) fn column(name: impl Into<String>, inputs: u64, outputs: u64) -> Weight {
    Weight::column(name, Role::Tower, inputs, &[outputs]).bias(true)
}

/// A row-parallel matrix with a bias.
pub(super) fn row(name: impl Into<String>, inputs: u64, outputs: u64) -> Weight {
    Weight::row(name, Role::Tower, inputs, outputs).bias(true)
}

/// A convolution of this shape (`[outputs, inputs, …]`), with its bias.
pub(super) fn convolution(name: &str, shape: &[u64]) -> [Weight; 2] {
    let outputs = shape.first().copied().unwrap_or(0);
    [plain(name, shape), plain(&format!("{name}.bias"), &[outputs])]
}

/// What one layer holds, for all `layers` of them.
pub(super) fn repeated(
    layers: u64,
    weights: impl IntoIterator<Item = Weight>,
) -> impl Iterator<Item = Weight> {
    weights.into_iter().map(move |w| {
        let count = w.count.saturating_mul(layers);
        w.role(Role::Tower).times(count)
    })
}

/// Largest patch, stride or ratio that is read: three of them times a width stay inside of 64 bits.
const MAX_FACTOR: u64 = 1 << 12;

/// Largest side of an image or patch, in pixels.
const MAX_SIDE: u64 = 1 << 20;

fn bounded(c: &Config, key: &str, n: u64) -> Result<u64> {
    if n > MAX_FACTOR {
        return Err(crate::Error::input(format!(
            "{} is {n}, more than the largest patch, stride or ratio {MAX_FACTOR} that a tower can have",
            c.name(key)
        )));
    }
    Ok(n)
}

/// A small size (patch, stride, ratio, channels) that must be there.
pub(super) fn factor(c: &Config, key: &str) -> Result<u64> {
    bounded(c, key, c.dim(key)?)
}

/// A small size with its default.
pub(super) fn factor_or(c: &Config, key: &str, default: u64) -> Result<u64> {
    bounded(c, key, c.dim_or(key, default)?)
}

/// A small size by which something is divided, with its default: 0 is an error.
pub(super) fn divisor_or(c: &Config, key: &str, default: u64) -> Result<u64> {
    match factor_or(c, key, default)? {
        0 => Err(crate::Error::input(format!(
            "{} is 0, expected a positive number",
            c.name(key)
        ))),
        n => Ok(n),
    }
}

/// The product of a list of small sizes, 2 by 2 where it is missing.
pub(super) fn area(c: &Config, key: &str) -> Result<u64> {
    let list = c.u64s(key)?.unwrap_or_else(|| vec![2, 2]);
    list.iter()
        .take(2)
        .try_fold(1, |product, &n| Ok(product * bounded(c, key, n)?))
}

/// Patches along one side of an image: `image_size` by `patch_size`.
pub(super) fn side(vision: &Config) -> Result<u64> {
    Ok(square(vision, "image_size")?
        .checked_div(square(vision, "patch_size")?)
        .unwrap_or(0))
}

/// A length that files write as one number or as a list with one a dimension.
pub(super) fn square(vision: &Config, key: &str) -> Result<u64> {
    match vision.get(key) {
        Some(serde_json::Value::Array(_)) => {
            let list = vision.u64s(key)?.unwrap_or_default();
            match list.first() {
                Some(&n) if n > 0 && n <= MAX_SIDE => Ok(n),
                _ => Err(crate::Error::input(format!(
                    "{} holds no usable size, expected a number or a list of two",
                    vision.name(key)
                ))),
            }
        }
        _ => match vision.dim(key)? {
            n if n > MAX_SIDE => Err(crate::Error::input(format!(
                "{} is {n}, more than the {MAX_SIDE} pixels of a side that are read",
                vision.name(key)
            ))),
            n => Ok(n),
        },
    }
}

/// A number of channels, below a million, so that products of two stay inside of 64 bits.
pub(super) fn channels(c: &Config, key: &str, default: u64) -> Result<u64> {
    match c.dim_or(key, default)? {
        n if n < MAX_SIDE => Ok(n),
        n => Err(crate::Error::input(format!(
            "{} is {n}, expected a number of channels below {MAX_SIDE}",
            c.name(key)
        ))),
    }
}

/// A list of two numbers of channels, `None` where it is missing.
pub(super) fn two_channels(c: &Config, key: &str) -> Result<Option<(u64, u64)>> {
    match c.u64s(key)?.as_deref() {
        None => Ok(None),
        Some([first, second]) if first.max(second) < &MAX_SIDE => Ok(Some((*first, *second))),
        Some(list) => Err(crate::Error::input(format!(
            "{} has {} numbers of channels, expected two below {MAX_SIDE}",
            c.name(key),
            list.len()
        ))),
    }
}

/// A small length that files write as one number or as two, height and width.
pub(super) fn pair(c: &Config, key: &str, default: u64) -> Result<(u64, u64)> {
    match c.get(key) {
        Some(serde_json::Value::Array(_)) => match c.u64s(key)?.as_deref() {
            Some(&[high, wide]) if high > 0 && wide > 0 => {
                Ok((bounded(c, key, high)?, bounded(c, key, wide)?))
            }
            _ => Err(crate::Error::input(format!(
                "{} holds no usable size, expected a number or a list of two",
                c.name(key)
            ))),
        },
        _ => divisor_or(c, key, default).map(|n| (n, n)),
    }
}

/// Patches that a `downsample_ratio` (one half where missing) joins: its inverse, rounded, squared.
pub(super) fn merged_by_ratio(c: &Config) -> Result<u64> {
    let ratio = c.f64("downsample_ratio")?.unwrap_or(0.5);
    let side = (1.0 / ratio).round();
    if !(1.0..=64.0).contains(&side) {
        return Err(crate::Error::input(format!(
            "{} is {ratio}, expected a ratio from 1/64 to 1",
            c.name("downsample_ratio")
        )));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: from 1 to 64"
    )]
    let side = side as u64;
    Ok(side * side)
}
