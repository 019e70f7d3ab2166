//! The pool beside a naive twin, and all short histories of a small pool.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// The same pool with a plain list and a plain map.
#[derive(Debug, Clone)]
struct Naive {
    free: Vec<BlockId>,
    refs: Vec<u32>,
    /// Names of each block, the primary one first.
    names: Vec<Vec<(u32, u32)>>,
    /// Blocks of each name, oldest first.
    holders: BTreeMap<(u32, u32), Vec<BlockId>>,
    caching: bool,
    order: ReleaseOrder,
    evicted: u64,
}

impl Naive {
    fn new(num_blocks: u32, caching: bool, order: ReleaseOrder) -> Self {
        Self {
            free: (1..num_blocks).collect(),
            refs: vec![0; num_blocks as usize],
            names: vec![Vec::new(); num_blocks as usize],
            holders: BTreeMap::new(),
            caching,
            order,
            evicted: 0,
        }
    }

    fn forget(&mut self, block: BlockId) -> bool {
        let names = std::mem::take(&mut self.names[block as usize]);
        for name in &names {
            let holders = self.holders.get_mut(name).unwrap();
            holders.retain(|&b| b != block);
            if holders.is_empty() {
                self.holders.remove(name);
            }
        }
        !names.is_empty()
    }

    fn allocate(&mut self, n: usize) -> Option<Vec<BlockId>> {
        if n > self.free.len() {
            return None;
        }
        let taken: Vec<BlockId> = self.free.drain(..n).collect();
        for &block in &taken {
            if self.caching && self.forget(block) {
                self.evicted += 1;
            }
            self.refs[block as usize] = 1;
        }
        Some(taken)
    }

    fn touch(&mut self, block: BlockId) {
        self.refs[block as usize] += 1;
        self.free.retain(|&b| b != block);
    }

    fn release(&mut self, blocks: &[BlockId], of_window: bool) {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for &block in blocks {
            self.refs[block as usize] -= 1;
            if self.refs[block as usize] > 0 {
                continue;
            }
            let named = !self.names[block as usize].is_empty();
            let at_head = match self.order {
                ReleaseOrder::WindowsUnnamedFirst if of_window => !(named && self.caching),
                ReleaseOrder::WindowsUnnamedFirst | ReleaseOrder::AllLast => false,
                ReleaseOrder::UnnamedFirst => !(named && self.caching),
                ReleaseOrder::UnnamedFirstCachingOnly => self.caching && !named,
            };
            if at_head {
                first.push(block);
            } else {
                last.push(block);
            }
        }
        first.append(&mut self.free);
        first.append(&mut last);
        self.free = first;
    }

    fn register(&mut self, block: BlockId, name: (u32, u32)) {
        if self.names[block as usize].contains(&name) {
            return;
        }
        self.names[block as usize].push(name);
        self.holders.entry(name).or_default().push(block);
    }

    fn reset(&mut self) -> bool {
        if self.free.len() + 1 != self.refs.len() {
            return false;
        }
        self.holders.clear();
        self.names.iter_mut().for_each(Vec::clear);
        true
    }
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Allocate(u8),
    /// Touches what is cached under a name.
    Hit(u8, u8),
    /// Releases some owned blocks, chosen by bits; those of a window in another way.
    Release(u16),
    ReleaseWindow(u16),
    Register(u8, u8, u8),
    Evict(u8),
    Reset,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0_u8..6).prop_map(Op::Allocate),
        3 => (0_u8..2, 0_u8..6).prop_map(|(g, k)| Op::Hit(g, k)),
        4 => any::<u16>().prop_map(Op::Release),
        2 => any::<u16>().prop_map(Op::ReleaseWindow),
        5 => (any::<u8>(), 0_u8..2, 0_u8..6).prop_map(|(b, g, k)| Op::Register(b, g, k)),
        1 => any::<u8>().prop_map(Op::Evict),
        1 => Just(Op::Reset),
    ]
}

/// Applies one operation to both and compares what is visible.
fn step<I: PrefixIndex<Key = u32>>(
    pool: &mut BlockPool<I>,
    twin: &mut Naive,
    held: &mut Vec<BlockId>,
    op: Op,
) {
    match op {
        Op::Allocate(n) => {
            let mut out = Vec::new();
            let granted = pool.allocate(u32::from(n), &mut out).is_ok();
            assert_eq!(granted.then_some(out.clone()), twin.allocate(usize::from(n)));
            held.extend(out);
        }
        Op::Hit(g, k) => {
            if let Some(block) = pool.cached(u32::from(g), u32::from(k)) {
                pool.touch(&[block, NULL_BLOCK]);
                twin.touch(block);
                held.push(block);
            }
        }
        Op::Release(bits) | Op::ReleaseWindow(bits) => {
            let mut at = 0;
            let mut out = Vec::new();
            held.retain(|&b| {
                at += 1;
                let stays = bits & (1 << (at % 16)) == 0;
                if !stays {
                    out.push(b);
                }
                stays
            });
            let of_window = matches!(op, Op::ReleaseWindow(_));
            if of_window {
                pool.release_window(out.iter().copied());
            } else {
                pool.release(out.iter().copied());
            }
            twin.release(&out, of_window);
        }
        Op::Register(b, g, k) => {
            if !held.is_empty() && twin.caching {
                let block = held[usize::from(b) % held.len()];
                pool.register(block, u32::from(g), u32::from(k), 1);
                twin.register(block, (u32::from(g), u32::from(k)));
            }
        }
        Op::Evict(b) => {
            let block = 1 + u32::from(b) % (pool.num_blocks() - 1);
            let evicted = pool.evict(block);
            assert_eq!(evicted, twin.forget(block));
            twin.evicted += u64::from(evicted);
        }
        Op::Reset => assert_eq!(pool.reset(), twin.reset()),
    }
    assert_eq!(pool.free_order().collect::<Vec<_>>(), twin.free);
    assert_eq!(pool.num_free() as usize, twin.free.len());
    assert_eq!(pool.num_evicted(), twin.evicted);
    for g in 0..2 {
        for k in 0..6 {
            let oldest = twin.holders.get(&(g, k)).map(|holders| holders[0]);
            assert_eq!(pool.cached(g, k), oldest, "group {g}, key {k} after {op:?}");
        }
    }
    pool.check().unwrap();
}

fn orders() -> impl Strategy<Value = ReleaseOrder> {
    prop_oneof![
        Just(ReleaseOrder::UnnamedFirst),
        Just(ReleaseOrder::UnnamedFirstCachingOnly),
        Just(ReleaseOrder::WindowsUnnamedFirst),
        Just(ReleaseOrder::AllLast),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn both_indexes_behave_as_the_naive_twin(
        num_blocks in 2_u32..12,
        caching in prop::bool::weighted(0.9),
        order in orders(),
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut dense = BlockPool::new(num_blocks, caching, order, DenseIndex::new(2, 2), ()).unwrap();
        let mut hashed =
            BlockPool::new(num_blocks, caching, order, HashIndex::new(num_blocks as usize), ()).unwrap();
        let mut twins = [Naive::new(num_blocks, caching, order), Naive::new(num_blocks, caching, order)];
        let mut held = [Vec::new(), Vec::new()];
        for op in ops {
            step(&mut dense, &mut twins[0], &mut held[0], op);
            step(&mut hashed, &mut twins[1], &mut held[1], op);
        }
        prop_assert_eq!(&twins[0].free, &twins[1].free);
    }
}

#[test]
fn all_short_histories_of_a_pool_of_three_blocks_agree_with_the_twin() {
    let ops = [
        Op::Allocate(1),
        Op::Allocate(2),
        Op::Hit(0, 0),
        Op::Release(u16::MAX),
        Op::Release(0b10),
        Op::Register(0, 0, 0),
        Op::Register(1, 0, 0),
        Op::Register(0, 0, 1),
        Op::Evict(0),
        Op::Reset,
    ];
    let depth = 5;
    let mut histories = 0;
    for mut n in 0..ops.len().pow(depth) {
        let mut pool = BlockPool::new(4, true, ReleaseOrder::default(), DenseIndex::new(2, 2), ()).unwrap();
        let mut twin = Naive::new(4, true, ReleaseOrder::default());
        let mut held = Vec::new();
        for _ in 0..depth {
            step(&mut pool, &mut twin, &mut held, ops[n % ops.len()]);
            n /= ops.len();
        }
        histories += 1;
    }
    assert_eq!(histories, 100_000);
}

#[test]
fn events_come_in_the_order_of_the_changes() {
    let mut pool = BlockPool::new(
        3,
        true,
        ReleaseOrder::default(),
        HashIndex::new(3),
        EventLog::<u64>::default(),
    )
    .unwrap();
    let mut blocks = Vec::new();
    pool.allocate(2, &mut blocks).unwrap();
    pool.register(blocks[0], 0, 77, 16);
    pool.register(blocks[1], 0, 78, 32);
    let run = StoredRun {
        group: 0,
        parent: None,
        start_token: 0,
        end_token: 32,
        block_size: 16,
    };
    pool.note_stored(run);
    pool.release([2, 1]);
    pool.allocate(1, &mut blocks).unwrap();
    assert!(!pool.reset(), "a block is owned");
    pool.release([2]);
    assert!(pool.reset());
    assert_eq!(
        pool.observer_mut().take(),
        [
            KvEvent::BlockStored {
                run,
                keys: vec![77, 78]
            },
            KvEvent::BlockRemoved { group: 0, key: 78 },
            KvEvent::AllBlocksCleared,
        ]
    );
}

#[test]
fn names_move_to_a_copy_with_their_age() {
    let mut pool = BlockPool::new(5, true, ReleaseOrder::default(), DenseIndex::new(4, 1), ()).unwrap();
    let mut blocks = Vec::new();
    pool.allocate(3, &mut blocks).unwrap();
    pool.register(1, 0, 0, 8);
    pool.register(1, 0, 1, 8);
    pool.move_names(1, 3);
    assert_eq!((pool.cached(0, 0), pool.cached(0, 1)), (Some(3), Some(3)));
    assert_eq!((pool.hash_tokens(1), pool.hash_tokens(3)), (0, 8));
    pool.check().unwrap();
}

#[test]
fn residency_counts_hits_not_allocations() {
    let mut pool = BlockPool::new(
        3,
        true,
        ReleaseOrder::default(),
        DenseIndex::new(4, 1),
        ResidencyLog::default(),
    )
    .unwrap();
    let mut blocks = Vec::new();
    pool.allocate(1, &mut blocks).unwrap();
    pool.register(1, 0, 0, 16);
    for now in [10, 13, 20, 21, 40] {
        pool.observer_mut().now = now;
        pool.touch(&[1]);
    }
    pool.release([1; 6]);
    pool.observer_mut().now = 100;
    pool.allocate(2, &mut blocks).unwrap();
    assert_eq!(
        pool.observer_mut().take(),
        [ResidencySample {
            lifetime: 100,
            idle: 60,
            reuse_gaps: [Some(7), Some(1), Some(19)],
        }]
    );
    assert_eq!(pool.observer().num_tracked(), 2);
}

#[test]
fn impossible_sizes_are_refused_with_a_sentence() {
    let zero = BlockPool::new(0, true, ReleaseOrder::default(), DenseIndex::new(0, 1), ());
    assert!(zero.unwrap_err().to_string().contains("num_blocks is 0"));
    let mut one = BlockPool::new(1, true, ReleaseOrder::default(), DenseIndex::new(0, 1), ()).unwrap();
    assert_eq!(one.num_free(), 0);
    assert!(one.usage().abs() < f64::EPSILON);
    let error = one.allocate(1, &mut Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "1 blocks were asked for and 0 are free");
}
