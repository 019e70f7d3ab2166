//! The buffers and their addressing.

use super::element::KvDtype;
use crate::error::{Error, Result};

/// Order of the dimensions in memory; see the [module](super).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvLayout {
    /// `[slot][head][dim]`.
    Nhd,
    /// `[page][head][slot in page][dim]`.
    Hnd,
    /// `[slot][dim]`, one latent vector for K and V.
    Mla,
}

/// Shape of a [`KvStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvStoreConfig {
    /// Layers with a cache of their own.
    pub layers: usize,
    /// Tokens of the pool, a multiple of `page_size`; the dummy page comes on top.
    pub capacity_tokens: usize,
    /// Tokens per page.
    pub page_size: usize,
    /// KV heads (1 for MLA).
    pub heads: usize,
    /// Numbers of K per head (MLA: the whole latent vector, `kv_lora_rank + qk_rope_head_dim`).
    pub key_dim: usize,
    /// Numbers of V per head (MLA: `kv_lora_rank`).
    pub value_dim: usize,
    /// Number format.
    pub dtype: KvDtype,
    /// Order in memory.
    pub layout: KvLayout,
}

/// K or V.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Plane {
    /// The keys (MLA: the latent vectors).
    Key,
    /// The values; under MLA they are read from the latent vectors.
    Value,
}

/// K and V of every slot and layer.
#[derive(Debug, Clone)]
pub struct KvStore {
    config: KvStoreConfig,
    slots: usize,
    keys: Vec<Vec<u8>>,
    values: Vec<Vec<u8>>,
}

impl KvStore {
    /// A store of zeros.
    ///
    /// # Errors
    /// If a size is 0 or contradicts another, or the bytes would leave the address space.
    pub fn new(config: KvStoreConfig) -> Result<Self> {
        let KvStoreConfig {
            layers,
            capacity_tokens,
            page_size,
            heads,
            key_dim,
            value_dim,
            dtype,
            layout,
        } = config;
        for (name, value) in [
            ("layers", layers),
            ("capacity_tokens", capacity_tokens),
            ("page_size", page_size),
            ("heads", heads),
            ("key_dim", key_dim),
            ("value_dim", value_dim),
        ] {
            if value == 0 {
                return Err(Error::invalid(format!("{name} is 0, expected a positive count")));
            }
        }
        if !capacity_tokens.is_multiple_of(page_size) {
            return Err(Error::invalid(format!(
                "capacity_tokens is {capacity_tokens}, expected a multiple of page_size {page_size}"
            )));
        }
        if layout == KvLayout::Mla && (heads != 1 || value_dim > key_dim) {
            return Err(Error::invalid(format!(
                "an MLA store has one head and values within the latent vector, not {heads} heads with \
                 {value_dim} of {key_dim} numbers"
            )));
        }
        let slots = capacity_tokens.checked_add(page_size);
        let bytes = |dim: usize| {
            slots?
                .checked_mul(heads)?
                .checked_mul(dim)?
                .checked_mul(dtype.bytes())
                .filter(|&b| b <= 1 << 46)
        };
        let (Some(slots), Some(key_bytes), Some(value_bytes)) = (slots, bytes(key_dim), bytes(value_dim))
        else {
            return Err(Error::overflow(format!(
                "{capacity_tokens} tokens of this shape do not fit any memory"
            )));
        };
        let value_bytes = if layout == KvLayout::Mla { 0 } else { value_bytes };
        Ok(Self {
            config,
            slots,
            keys: (0..layers).map(|_| vec![0; key_bytes]).collect(),
            values: (0..layers).map(|_| vec![0; value_bytes]).collect(),
        })
    }

    /// The shape.
    pub fn config(&self) -> &KvStoreConfig {
        &self.config
    }

    /// Bytes of K and V for one token over all layers.
    pub fn bytes_per_token(&self) -> usize {
        let c = &self.config;
        let value_dim = if c.layout == KvLayout::Mla { 0 } else { c.value_dim };
        c.layers * c.heads * (c.key_dim + value_dim) * c.dtype.bytes()
    }

    /// Writes K and V of the tokens in `slots`; both inputs are `[token][head][dim]`. Under MLA `values` must be
    /// empty: they are part of the latent vectors.
    ///
    /// # Errors
    /// If a layer, slot or length is out of range; nothing is written then.
    pub fn write(&mut self, layer: usize, slots: &[u32], keys: &[f32], values: &[f32]) -> Result<()> {
        let c = self.config;
        let value_dim = if c.layout == KvLayout::Mla { 0 } else { c.value_dim };
        self.check(layer, slots)?;
        check_len("keys", keys.len(), slots.len() * c.heads * c.key_dim)?;
        check_len("values", values.len(), slots.len() * c.heads * value_dim)?;
        put(&c, &mut self.keys[layer], slots, c.key_dim, keys);
        put(&c, &mut self.values[layer], slots, value_dim, values);
        Ok(())
    }

    /// Reads the keys of the tokens in `slots` into `out`, `[token][head][key_dim]`.
    ///
    /// # Errors
    /// If a layer, slot or length is out of range.
    pub fn gather_keys(&self, layer: usize, slots: &[u32], out: &mut [f32]) -> Result<()> {
        let c = &self.config;
        self.check(layer, slots)?;
        check_len("out", out.len(), slots.len() * c.heads * c.key_dim)?;
        take(c, &self.keys[layer], slots, c.key_dim, c.key_dim, out);
        Ok(())
    }

    /// Reads the values of the tokens in `slots` into `out`, `[token][head][value_dim]`.
    ///
    /// # Errors
    /// If a layer, slot or length is out of range.
    pub fn gather_values(&self, layer: usize, slots: &[u32], out: &mut [f32]) -> Result<()> {
        let c = &self.config;
        self.check(layer, slots)?;
        check_len("out", out.len(), slots.len() * c.heads * c.value_dim)?;
        if c.layout == KvLayout::Mla {
            take(c, &self.keys[layer], slots, c.key_dim, c.value_dim, out);
        } else {
            take(c, &self.values[layer], slots, c.value_dim, c.value_dim, out);
        }
        Ok(())
    }

    /// Copies all layers' K and V from one list of slots to another, pairwise and in order (copy on write,
    /// defragmentation, beams).
    ///
    /// # Errors
    /// If the lists differ in length or a slot is out of range; nothing is copied then.
    pub fn copy(&mut self, from: &[u32], to: &[u32]) -> Result<()> {
        check_len("to", to.len(), from.len())?;
        self.check(0, from)?;
        self.check(0, to)?;
        let c = self.config;
        let value_dim = if c.layout == KvLayout::Mla { 0 } else { c.value_dim };
        for (plane, dim) in [(&mut self.keys, c.key_dim), (&mut self.values, value_dim)] {
            let run = dim * c.dtype.bytes();
            for buffer in plane.iter_mut() {
                for (&source, &target) in from.iter().zip(to) {
                    for head in 0..c.heads {
                        let start = offset(&c, source, head, dim);
                        buffer.copy_within(start..start + run, offset(&c, target, head, dim));
                    }
                }
            }
        }
        Ok(())
    }

    /// The raw buffer of one layer (empty for values under MLA), numbers little-endian.
    ///
    /// # Errors
    /// If there is no such layer.
    pub fn layer_bytes(&self, layer: usize, plane: Plane) -> Result<&[u8]> {
        self.check(layer, &[])?;
        Ok(match plane {
            Plane::Key => &self.keys[layer],
            Plane::Value => &self.values[layer],
        })
    }

    /// Distance in bytes between neighbouring (page, slot in page, head, number) in the buffer of a plane.
    pub fn strides_bytes(&self, plane: Plane) -> [usize; 4] {
        let c = &self.config;
        let dim = match (plane, c.layout) {
            (Plane::Value, KvLayout::Nhd | KvLayout::Hnd) => c.value_dim,
            _ => c.key_dim,
        };
        let number = c.dtype.bytes();
        let row = dim * number;
        match c.layout {
            KvLayout::Nhd | KvLayout::Mla => [c.page_size * c.heads * row, c.heads * row, row, number],
            KvLayout::Hnd => [c.page_size * c.heads * row, row, c.page_size * row, number],
        }
    }

    fn check(&self, layer: usize, slots: &[u32]) -> Result<()> {
        if layer >= self.config.layers {
            return Err(Error::invalid(format!(
                "layer is {layer}, the store has {}",
                self.config.layers
            )));
        }
        match slots.iter().find(|&&slot| slot as usize >= self.slots) {
            Some(slot) => Err(Error::invalid(format!(
                "slot is {slot}, the last one is {}",
                self.slots - 1
            ))),
            None => Ok(()),
        }
    }
}

fn check_len(name: &str, len: usize, expected: usize) -> Result<()> {
    if len == expected {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name} has {len} numbers, expected {expected}"
    )))
}

/// Where the `dim` numbers of (slot, head) start, in bytes.
fn offset(c: &KvStoreConfig, slot: u32, head: usize, dim: usize) -> usize {
    let slot = slot as usize;
    let row = match c.layout {
        KvLayout::Nhd | KvLayout::Mla => slot * c.heads + head,
        KvLayout::Hnd => {
            let (page, at) = (slot / c.page_size, slot % c.page_size);
            (page * c.heads + head) * c.page_size + at
        }
    };
    row * dim * c.dtype.bytes()
}

fn put(c: &KvStoreConfig, buffer: &mut [u8], slots: &[u32], dim: usize, numbers: &[f32]) {
    if dim == 0 {
        return;
    }
    let size = c.dtype.bytes();
    let rows = slots
        .iter()
        .flat_map(|&slot| (0..c.heads).map(move |head| (slot, head)));
    for ((slot, head), row) in rows.zip(numbers.chunks_exact(dim)) {
        let start = offset(c, slot, head, dim);
        for (bytes, &number) in buffer[start..start + dim * size].chunks_exact_mut(size).zip(row) {
            c.dtype.encode(number, bytes);
        }
    }
}

/// Reads the first `wanted` of the `dim` numbers of each row.
fn take(c: &KvStoreConfig, buffer: &[u8], slots: &[u32], dim: usize, wanted: usize, out: &mut [f32]) {
    let size = c.dtype.bytes();
    let rows = slots
        .iter()
        .flat_map(|&slot| (0..c.heads).map(move |head| (slot, head)));
    for ((slot, head), row) in rows.zip(out.chunks_exact_mut(wanted)) {
        let start = offset(c, slot, head, dim);
        for (bytes, number) in buffer[start..start + wanted * size].chunks_exact(size).zip(row) {
            *number = c.dtype.decode(bytes);
        }
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "stored numbers come back as they are")]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn config(layout: KvLayout, dtype: KvDtype) -> KvStoreConfig {
        let (heads, key_dim, value_dim) = if layout == KvLayout::Mla {
            (1, 6, 4)
        } else {
            (2, 3, 2)
        };
        KvStoreConfig {
            layers: 2,
            capacity_tokens: 12,
            page_size: 4,
            heads,
            key_dim,
            value_dim,
            dtype,
            layout,
        }
    }

    #[test]
    fn a_number_lies_where_the_strides_say() {
        for layout in [KvLayout::Nhd, KvLayout::Hnd, KvLayout::Mla] {
            let c = config(layout, KvDtype::F32);
            let mut store = KvStore::new(c).unwrap();
            let keys: Vec<f32> = (1u8..).map(f32::from).take(c.heads * c.key_dim).collect();
            let values: Vec<f32> = (101u8..).map(f32::from).take(c.heads * c.value_dim).collect();
            let written = if layout == KvLayout::Mla { &[] } else { &values[..] };
            store.write(1, &[10], &keys, written).unwrap();
            let [page, slot, head, number] = store.strides_bytes(Plane::Key);
            for (at, key) in keys.iter().enumerate() {
                let (h, d) = (at / c.key_dim, at % c.key_dim);
                let start = 2 * page + 2 * slot + h * head + d * number;
                let bytes = &store.layer_bytes(1, Plane::Key).unwrap()[start..start + 4];
                assert_eq!(bytes, key.to_le_bytes(), "{layout:?}");
            }
            assert!(store.layer_bytes(0, Plane::Key).unwrap().iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn latent_values_are_the_head_of_the_latent_vector() {
        let mut store = KvStore::new(config(KvLayout::Mla, KvDtype::Bf16)).unwrap();
        store.write(0, &[4], &[1., 2., 3., 4., 5., 6.], &[]).unwrap();
        let mut values = [0.; 4];
        store.gather_values(0, &[4], &mut values).unwrap();
        assert_eq!(values, [1., 2., 3., 4.]);
        assert_eq!(store.bytes_per_token(), 2 * 6 * 2);
        assert!(store.write(0, &[4], &[0.; 6], &[0.; 4]).is_err());
    }

    #[test]
    fn bad_shapes_layers_slots_and_lengths_are_refused() {
        let good = config(KvLayout::Nhd, KvDtype::F16);
        assert!(KvStore::new(KvStoreConfig { layers: 0, ..good }).is_err());
        assert!(KvStore::new(KvStoreConfig { page_size: 5, ..good }).is_err());
        assert!(
            KvStore::new(KvStoreConfig {
                capacity_tokens: usize::MAX - 3,
                ..good
            })
            .is_err()
        );
        assert!(
            KvStore::new(KvStoreConfig {
                layout: KvLayout::Mla,
                ..good
            })
            .is_err()
        );
        let mut store = KvStore::new(good).unwrap();
        assert!(store.write(2, &[1], &[0.; 6], &[0.; 4]).is_err());
        assert!(store.write(0, &[16], &[0.; 6], &[0.; 4]).is_err());
        assert!(store.write(0, &[1], &[0.; 5], &[0.; 4]).is_err());
        assert!(store.copy(&[1, 2], &[3]).is_err());
        assert!(store.gather_keys(0, &[1], &mut [0.; 4]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        /// Property: after any writes and copies, every slot of every layer reads as the last thing put there,
        /// rounded once to the store's format.
        #[test]
        fn the_store_agrees_with_a_map_of_vectors(
            layout in prop::sample::select(vec![KvLayout::Nhd, KvLayout::Hnd, KvLayout::Mla]),
            dtype in prop::sample::select(KvDtype::ALL.to_vec()),
            operations in prop::collection::vec((any::<bool>(), 0usize..2, 0u32..16, 0u32..16, -9f32..9.0), 1..40),
        ) {
            let c = config(layout, dtype);
            let mut store = KvStore::new(c).unwrap();
            let mut twin: HashMap<(usize, u32), (Vec<f32>, Vec<f32>)> = HashMap::new();
            let rounded = |x: f32| {
                let mut bytes = [0; 4];
                dtype.encode(x, &mut bytes[..dtype.bytes()]);
                dtype.decode(&bytes[..dtype.bytes()])
            };
            let numbers = |from: f32, count: usize| -> Vec<f32> {
                (0u8..).map(|i| from + 0.37 * f32::from(i)).take(count).collect()
            };
            for (copy, layer, slot, other, x) in operations {
                if copy {
                    store.copy(&[slot], &[other]).unwrap();
                    for layer in 0..c.layers {
                        let old = twin.get(&(layer, slot)).cloned();
                        match old {
                            Some(old) => twin.insert((layer, other), old),
                            None => twin.remove(&(layer, other)),
                        };
                    }
                } else {
                    let keys = numbers(x, c.heads * c.key_dim);
                    let values = numbers(-x, c.heads * c.value_dim);
                    let given = if layout == KvLayout::Mla { &[] } else { &values[..] };
                    store.write(layer, &[slot], &keys, given).unwrap();
                    let keys: Vec<f32> = keys.into_iter().map(rounded).collect();
                    let values = match layout {
                        KvLayout::Mla => keys[..c.value_dim].to_vec(),
                        _ => values.into_iter().map(rounded).collect(),
                    };
                    twin.insert((layer, slot), (keys, values));
                }
            }
            let zeros = (vec![0.; c.heads * c.key_dim], vec![0.; c.heads * c.value_dim]);
            for layer in 0..c.layers {
                for slot in 0..16 {
                    let (keys, values) = twin.get(&(layer, slot)).unwrap_or(&zeros);
                    let mut out = vec![0.; keys.len()];
                    store.gather_keys(layer, &[slot], &mut out).unwrap();
                    prop_assert_eq!(&out, keys);
                    let mut out = vec![0.; values.len()];
                    store.gather_values(layer, &[slot], &mut out).unwrap();
                    prop_assert_eq!(&out, values);
                }
            }
        }
    }
}
