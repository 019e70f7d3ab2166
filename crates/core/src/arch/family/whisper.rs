//! Whisper: a decoder that also attends to an encoder's output.

use super::dense::{Attention, Decoder, Mlp, Norm, QkNorm, part};
use super::text::{Attend, Text};
use crate::Result;
use crate::arch::{Cache, CacheKind, Layer, Outside, Place, Role, Weight};

/// Attention of `heads` heads over a width, with biases as the engine's fused modules have them.
fn attention(path: &'static str, width: u64, heads: u64) -> Attention {
    let head_dim = width / heads;
    Attention {
        path,
        heads,
        kv_heads: heads,
        head_dim,
        head_dim_v: head_dim,
        qkv_bias: true,
        o_bias: true,
        qk_norm: QkNorm::None,
        follows_kv_dtype: true,
    }
}

fn mlp(width: u64) -> Mlp {
    Mlp {
        path: "mlp",
        width,
        gated: false,
        bias: true,
    }
}

/// A layer of width `width` that attends to itself, then to an encoder's output, then feeds `inner` forward; with
/// biases and shifts everywhere (vLLM 0.32.0, `WhisperDecoderLayer` in `whisper.py`).
pub(crate) fn crossing_layer(width: u64, heads: u64, inner: u64) -> Layer {
    let own = attention("self_attn", width, heads);
    let cross = attention("encoder_attn", width, heads);
    let mut weights = own.weights(width);
    weights.extend([
        Weight::column("encoder_attn.q_proj", Role::Attention, width, &[width]).bias(true),
        Weight::column("encoder_attn.kv_proj", Role::Attention, width, &[width, width]).bias(true),
        Weight::row("encoder_attn.out_proj", Role::Attention, width, width).bias(true),
    ]);
    weights.extend(mlp(inner).weights(width));
    weights.extend(
        [
            "self_attn_layer_norm",
            "encoder_attn_layer_norm",
            "final_layer_norm",
        ]
        .iter()
        .filter_map(|name| Norm::ScaleAndShift.weights(name, width)),
    );
    Layer {
        caches: vec![
            own.cache(Attend::Full),
            Cache {
                name: "encoder_attn.attn".to_owned(),
                kind: CacheKind::Cross(cross.cached()),
            },
        ],
        weights: weights.into(),
    }
}

/// Whisper (vLLM 0.32.0, `whisper.py`): the token embedding is whole on every rank, without padding, and is the
/// head too.
pub(crate) fn whisper(t: &Text) -> Result<Decoder> {
    let c = &t.config;
    let width = t.first_dim(&["d_model", "hidden_size"])?;
    let heads = c.dim("decoder_attention_heads")?;
    let layer = crossing_layer(width, heads, c.dim("decoder_ffn_dim")?);
    let norm = |name: &str| Norm::ScaleAndShift.weights(name, width);
    let rows = |name: &str, rows: u64| Weight::tensor(name, Role::Embedding, &[rows, width], None);
    let outside = vec![
        part(Place::Every, vec![rows("model.decoder.embed_tokens", t.vocab()?)]),
        part(
            Place::Every,
            vec![rows(
                "model.decoder.embed_positions",
                c.dim("max_target_positions")?,
            )],
        ),
        part(
            Place::Every,
            norm("model.decoder.layer_norm").into_iter().collect(),
        ),
        encoder(t, width)?,
    ];
    Ok(Decoder {
        layers_path: "model.decoder.layers".to_owned(),
        layers: (0..t.count_of_layers(&["decoder_layers"])?)
            .map(|_| layer.clone())
            .collect(),
        outside,
        kv_heads: Some(heads),
        ..Decoder::default()
    })
}

/// The audio encoder: two convolutions, fixed positions, and layers of plain attention.
fn encoder(t: &Text, width: u64) -> Result<Outside> {
    let c = &t.config;
    let layers = t.count_of_layers(&["encoder_layers"])?;
    let own = attention(
        "model.encoder.layers.self_attn",
        width,
        c.dim("encoder_attention_heads")?,
    );
    let norm = |name: &str| Norm::ScaleAndShift.weights(name, width);
    let convolution = |name: &str, inputs: u64| {
        [
            Weight::tensor(name, Role::Tower, &[width, inputs, 3], None),
            Weight::tensor(format!("{name}.bias"), Role::Tower, &[width], None),
        ]
    };
    let mut weights = Vec::new();
    weights.extend(convolution("model.encoder.conv1", c.dim("num_mel_bins")?));
    weights.extend(convolution("model.encoder.conv2", width));
    let positions = [c.dim("max_source_positions")?, width];
    weights.push(Weight::tensor(
        "model.encoder.embed_positions",
        Role::Tower,
        &positions,
        None,
    ));
    let mut inside = own.weights(width);
    inside.extend(mlp(c.dim("encoder_ffn_dim")?).weights(width));
    inside.extend(norm("model.encoder.layers.self_attn_layer_norm"));
    inside.extend(norm("model.encoder.layers.final_layer_norm"));
    weights.extend(inside.into_iter().map(|w| {
        let count = w.count * layers;
        w.times(count)
    }));
    weights.extend(norm("model.encoder.layer_norm"));
    Ok(Outside {
        place: Place::Every,
        tower: true,
        weights: weights.into_iter().map(|w| w.role(Role::Tower)).collect(),
    })
}
