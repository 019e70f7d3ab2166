use super::*;
use crate::arch::Parallel;

fn bytes(w: &Weight, tp: u64) -> u64 {
    w.bytes(&Parallel::tensor(tp), Dtype::Bf16).unwrap()
}

#[test]
fn a_vocabulary_is_padded_to_64_rows_before_it_is_divided() {
    // GPT-2: 50257 rows become 50304.
    let w = Weight::vocab("wte", Role::Embedding, 50257, 768);
    assert_eq!(bytes(&w, 1), 50304 * 768 * 2);
    assert_eq!(bytes(&w, 8), 50304 / 8 * 768 * 2);
    assert_eq!(w.elements().unwrap(), 50257 * 768);
}

#[test]
fn key_value_heads_are_replicated_when_there_are_more_ranks_than_heads() {
    let w = Weight::qkv("qkv", 4096, 32, 8, 128);
    assert_eq!(bytes(&w, 8), 4096 * (4 + 1 + 1) * 128 * 2);
    assert_eq!(bytes(&w, 16), 4096 * (2 + 1 + 1) * 128 * 2);
    assert!(
        Weight::qkv("qkv", 4096, 20, 5, 128)
            .bytes(&Parallel::tensor(2), Dtype::Bf16)
            .is_err()
    );
    assert!(
        Weight::qkv("qkv", 4096, 36, 8, 128)
            .bytes(&Parallel::tensor(12), Dtype::Bf16)
            .is_err()
    );
}

#[test]
fn the_bias_of_a_row_parallel_projection_stays_whole() {
    let w = Weight::row("o_proj", Role::Attention, 1024, 512).bias(true);
    assert_eq!(bytes(&w, 4), (256 * 512 + 512) * 2);
    let w = Weight::column("up", Role::Mlp, 512, &[1024, 1024]).bias(true);
    assert_eq!(bytes(&w, 4), (512 * 512 + 512) * 2);
}

#[test]
fn experts_are_sliced_without_and_dealt_out_with_expert_parallelism() {
    let w = Weight::experts("experts", 10, 2, 64, 32);
    assert_eq!(bytes(&w, 4), 10 * 3 * 64 * 8 * 2);
    let ep = Parallel {
        tp: 4,
        expert_parallel: true,
        ..Parallel::default()
    };
    assert_eq!(w.bytes(&ep, Dtype::Bf16).unwrap(), 3 * 3 * 64 * 32 * 2);
    let dp = Parallel {
        tp: 2,
        dp: 2,
        ..Parallel::default()
    };
    assert_eq!(w.bytes(&dp, Dtype::Bf16).unwrap(), bytes(&w, 4));
    assert_eq!(w.active_elements().unwrap(), 2 * 3 * 64 * 32);
    assert!(
        Weight::experts("experts", 8, 2, 64, 1407)
            .shard(&Parallel::tensor(2))
            .is_err()
    );
}

#[test]
fn groups_fewer_than_the_ranks_are_replicated() {
    let parts = vec![
        Part::Even(64),
        Part::Groups { units: 1, width: 16 },
        Part::Whole(3),
    ];
    let w = Weight::parts("in_proj", Role::State, 8, parts);
    assert_eq!(bytes(&w, 4), 8 * (16 + 16 + 3) * 2);
}

#[test]
fn sizes_that_leave_64_bits_and_zero_ranks_are_errors() {
    let w = Weight::column("x", Role::Mlp, u64::MAX, &[u64::MAX]);
    assert!(w.bytes(&Parallel::tensor(1), Dtype::Bf16).is_err());
    assert!(w.elements().is_err());
    assert!(
        Weight::vocab("x", Role::Head, u64::MAX, 1)
            .shard(&Parallel::tensor(1))
            .is_err()
    );
    assert!(
        Weight::column("x", Role::Mlp, 8, &[8])
            .shard(&Parallel::tensor(0))
            .is_err()
    );
    assert!(
        Weight::experts("x", 8, 1, 8, 8)
            .shard(&Parallel::tensor(0))
            .is_err()
    );
}

#[test]
fn the_outputs_of_a_rank_are_filled_up_to_their_multiple() {
    // 12 of 96 heads beside 128 whole outputs: 140 become 144; one rank's 224 stay.
    let parts = vec![Part::Even(96), Part::Whole(128)];
    let w = Weight::parts("in_proj", Role::Attention, 64, parts).outputs_multiple(16);
    assert_eq!(bytes(&w, 8), 64 * 144 * 2);
    assert_eq!(bytes(&w, 1), 64 * 224 * 2);
    assert_eq!(w.elements().unwrap(), 64 * 224);
}
