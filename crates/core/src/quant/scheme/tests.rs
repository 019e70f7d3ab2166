//! Sizes of single modules.

use super::*;

/// Routed experts of a model of width 2048 on one rank.
fn experts(intermediate: u64) -> Shard {
    Shard::Experts {
        experts: 8,
        hidden: 2048,
        intermediate,
        parts: 2,
        bias: false,
    }
}

fn packed(layout: Layout, group: Option<u64>) -> Scheme {
    Scheme::Packed(Packed {
        bits: 4,
        group,
        zeros: true,
        asymmetric: layout == Layout::Awq,
        pads_tiles: true,
        layout,
    })
}

fn bytes(scheme: Scheme, shard: &Shard) -> Result<u64> {
    scheme.bytes("experts", shard, Dtype::Bf16, Mxfp4Padding::NONE, Format::PLAIN)
}

#[test]
fn experts_that_a_group_does_not_divide_are_packed_by_bytes_in_smaller_groups() {
    // 704 inputs are 5.5 groups of 128 and 11 of 64.
    let (n, k) = (2 * 704, 2048);
    let matrices = 8 * (n * k + k * 704) / 2;
    let scales = 8 * (n * (k / 64) + k * (704 / 64));
    let gptq = bytes(packed(Layout::Gptq, Some(128)), &experts(704)).unwrap();
    assert_eq!(gptq, matrices + 2 * scales);
    // Zero points of 4 bits beside each scale.
    let awq = bytes(packed(Layout::Awq, Some(128)), &experts(704)).unwrap();
    assert_eq!(awq, matrices + 2 * scales + scales / 2);
}

#[test]
fn experts_that_no_group_divides_are_refused() {
    for (layout, group, width) in [
        (Layout::Gptq, Some(128), 720),
        (Layout::Awq, None, 768),
        (Layout::Bytes, None, 768),
    ] {
        let error = bytes(packed(layout, group), &experts(width)).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Unsupported, "{error}");
    }
}

#[test]
fn a_tied_head_keeps_all_but_its_matrix() {
    let head = Shard::Vocab {
        rows: 256,
        width: 128,
        bias: 0,
    };
    let rest = |scheme: Scheme| scheme.bytes_beside_weight("lm_head", &head, Dtype::Bf16).unwrap();
    assert_eq!(rest(Scheme::Fp8Tensor { static_input: true }), 8);
    let whole = bytes(packed(Layout::Gptq, Some(128)), &head).unwrap();
    assert_eq!(rest(packed(Layout::Gptq, Some(128))), whole);
}
