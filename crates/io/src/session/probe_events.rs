//! Events of the probe, many to a line: their numbers, what is remembered of each block, and the rows that come of them.
//!
//! The probe writes what happened and nothing that can be derived from it. Runs of blocks and lifetimes are made here. The
//! kinds of events are described where they are made: `python/kvwise_probe/kvwise_probe/vllm_hooks.py`.

use std::collections::{BTreeMap, HashMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const ALLOCATED: i64 = 1;
const FREED: i64 = 2;
const HIT: i64 = 3;
const EVICTED: i64 = 4;
const DROPPED: i64 = 5;
const CLEARED: i64 = 6;
const STEP: i64 = 7;
const ARRIVED: i64 = 8;
const LOOKED_UP: i64 = 9;
const PREEMPTED: i64 = 10;
const REPLAYED: i64 = 11;
const LOST: i64 = 12;

/// What becomes of an event in the database. Times are monotonic nanoseconds of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Row {
    /// Blocks of one pool, in the engine's order; the kind is that of the table `block_event`.
    Blocks {
        kind: &'static str,
        pool: i64,
        t_ns: i64,
        blocks: Vec<i64>,
    },
    /// A block was given to other content: how long it was held, and since when it was not hit.
    Eviction {
        pool: i64,
        t_ns: i64,
        block: i64,
        lifetime_us: i64,
        idle_us: i64,
        hits: i64,
        cached: bool,
    },
    /// Time, step, running, waiting, requests, tokens, prefill tokens, used blocks, microseconds of scheduling.
    Step([i64; 9]),
    /// Time, request, step, prompt tokens, most output tokens (-1: not known), priority.
    Arrived([i64; 6]),
    /// Time, request, step, tokens, hit tokens, resumed.
    LookedUp([i64; 6]),
    /// Time, request, step, computed tokens.
    Preempted([i64; 4]),
    /// A CUDA graph was replayed.
    Replayed {
        t_ns: i64,
        graph: String,
        duration_us: i64,
    },
}

/// What is remembered of one block since it was allocated.
#[derive(Debug, Clone, Copy)]
struct Held {
    born_ns: i64,
    hit_ns: i64,
    hits: i64,
}

#[derive(Debug, Default)]
struct Pool {
    caching: bool,
    held: HashMap<i64, Held>,
}

/// Neighbouring events of one kind and pool: a step of 256 requests allocates 16 single blocks.
#[derive(Debug)]
struct Run {
    kind: i64,
    pool: i64,
    t_ns: i64,
    blocks: Vec<i64>,
    gone: Vec<i64>,
    evictions: Vec<Row>,
}

/// What was learned from a file so far, and rows that are finished.
#[derive(Debug)]
pub(super) struct Memory {
    pools: BTreeMap<i64, Pool>,
    graphs: HashMap<i64, String>,
    every: i64,
    run: Option<Run>,
    rows: Vec<Row>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            pools: BTreeMap::new(),
            graphs: HashMap::new(),
            every: 1,
            run: None,
            rows: Vec::new(),
        }
    }
}

impl Memory {
    /// A block pool was made.
    pub(super) fn pool(&mut self, number: i64, caching: bool) {
        let pool = self.pools.entry(number).or_default();
        pool.caching = caching;
        pool.held.clear();
    }

    /// What a number of a CUDA graph stands for.
    pub(super) fn graph(&mut self, number: i64, text: &str) {
        self.graphs.insert(number, text.to_owned());
    }

    /// From now on only blocks are followed whose number is a multiple of this (0 and below: none).
    pub(super) fn sample(&mut self, every: i64) {
        let (before, every) = (self.every, every.max(1));
        if every < before {
            for pool in self.pools.values_mut() {
                // the events of the others were not followed
                pool.held.retain(|block, _| block % before == 0);
            }
        }
        self.every = every;
    }

    /// Takes in one line. `None` if it is broken from some point on; what stood before that point counts.
    pub(super) fn line(&mut self, text: &str) -> Option<u64> {
        let bytes = STANDARD.decode(text).ok()?;
        let mut numbers = Vec::with_capacity(bytes.len() / 8);
        for eight in bytes.chunks(8) {
            numbers.push(i64::from_le_bytes(eight.try_into().ok()?));
        }
        let mut rest = numbers.as_slice();
        let mut events = 0;
        while let Some((head, behind)) = rest.split_first() {
            let count = usize::try_from(head >> 8).ok()?;
            let (event, behind) = behind.split_at_checked(count)?;
            self.event(head & 255, event)?;
            rest = behind;
            events += 1;
        }
        Some(events)
    }

    /// The rows of everything taken in since the last call.
    pub(super) fn rows(&mut self) -> Vec<Row> {
        self.end_run();
        std::mem::take(&mut self.rows)
    }

    /// One event. A kind that is not known is passed over; `None` if a known one is too short.
    fn event(&mut self, kind: i64, numbers: &[i64]) -> Option<()> {
        if matches!(kind, ALLOCATED | FREED | HIT | EVICTED) {
            let [t_ns, pool, blocks @ ..] = numbers else {
                return None;
            };
            self.blocks(kind, *t_ns, *pool, blocks);
            return Some(());
        }
        self.end_run();
        let row = match kind {
            DROPPED => {
                let [t_ns, pool, blocks @ ..] = numbers else {
                    return None;
                };
                Row::Blocks {
                    kind: "evict",
                    pool: *pool,
                    t_ns: *t_ns,
                    blocks: blocks.to_vec(),
                }
            }
            CLEARED => {
                let [t_ns, pool, ..] = numbers else { return None };
                if let Some(known) = self.pools.get_mut(pool) {
                    known.held.clear();
                }
                Row::Blocks {
                    kind: "clear",
                    pool: *pool,
                    t_ns: *t_ns,
                    blocks: Vec::new(),
                }
            }
            STEP => Row::Step(*numbers.first_chunk()?),
            ARRIVED => Row::Arrived(*numbers.first_chunk()?),
            LOOKED_UP => Row::LookedUp(*numbers.first_chunk()?),
            PREEMPTED => Row::Preempted(*numbers.first_chunk()?),
            REPLAYED => {
                let [t_ns, graph, duration_us] = *numbers.first_chunk()?;
                let graph = self.graphs.get(&graph).cloned();
                Row::Replayed {
                    t_ns,
                    graph: graph.unwrap_or_else(|| "not named".to_owned()),
                    duration_us,
                }
            }
            LOST => {
                for pool in self.pools.values_mut() {
                    pool.held.clear();
                }
                return Some(());
            }
            _ => return Some(()),
        };
        self.rows.push(row);
        Some(())
    }

    fn blocks(&mut self, kind: i64, t_ns: i64, pool: i64, blocks: &[i64]) {
        // what an allocation evicted is told before it, and belongs to it
        let kind_of_run = if kind == EVICTED { ALLOCATED } else { kind };
        let goes_on = self.run.as_ref().is_some_and(|run| {
            run.kind == kind_of_run && run.pool == pool && (run.t_ns == t_ns || run.kind != ALLOCATED)
        });
        if !goes_on {
            self.end_run();
        }
        let run = self.run.get_or_insert_with(|| Run {
            kind: kind_of_run,
            pool,
            t_ns,
            blocks: Vec::new(),
            gone: Vec::new(),
            evictions: Vec::new(),
        });
        run.t_ns = t_ns; // of neighbouring frees and hits, the last time counts
        if kind == EVICTED {
            run.gone.extend_from_slice(blocks);
            return;
        }
        run.blocks.extend_from_slice(blocks);
        let Some(known) = self.pools.get_mut(&pool) else {
            return;
        };
        if kind == HIT {
            for block in blocks {
                if let Some(held) = known.held.get_mut(block) {
                    held.hit_ns = t_ns;
                    held.hits += 1;
                }
            }
        } else if kind == ALLOCATED {
            known.allocated(run, blocks);
        }
    }

    fn end_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        let Run { pool, t_ns, .. } = run;
        self.rows.extend(run.evictions);
        let mut push = |kind, blocks: Vec<i64>| {
            if !blocks.is_empty() {
                self.rows.push(Row::Blocks {
                    kind,
                    pool,
                    t_ns,
                    blocks,
                });
            }
        };
        push("evict", run.gone);
        let kind = match run.kind {
            ALLOCATED => "alloc",
            FREED => "free",
            _ => "hit",
        };
        push(kind, run.blocks);
    }
}

impl Pool {
    /// Lifetime and idle time of blocks given to other content, as vLLM's own `kv_block_lifetime_seconds` means them (vLLM
    /// 0.32.0, `vllm/v1/core/kv_cache_metrics.py`): with caching on, every block that was allocated before; with caching off, none.
    fn allocated(&mut self, run: &mut Run, blocks: &[i64]) {
        let gone: HashSet<i64> = if self.caching {
            run.gone.iter().copied().collect()
        } else {
            HashSet::new()
        };
        let t_ns = run.t_ns;
        for block in blocks {
            let now = Held {
                born_ns: t_ns,
                hit_ns: t_ns,
                hits: 0,
            };
            let Some(before) = self.held.insert(*block, now).filter(|_| self.caching) else {
                continue;
            };
            let since = |then: i64| t_ns.saturating_sub(then).max(0) / 1000;
            run.evictions.push(Row::Eviction {
                pool: run.pool,
                t_ns,
                block: *block,
                lifetime_us: since(before.born_ns),
                idle_us: since(before.hit_ns),
                hits: before.hits,
                cached: gone.contains(block),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A line as the probe writes it.
    fn line(events: &[&[i64]]) -> String {
        let mut bytes = Vec::new();
        for event in events {
            let head = event[0] | ((event.len().cast_signed() as i64 - 1) << 8);
            for number in std::iter::once(&head).chain(&event[1..]) {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        STANDARD.encode(bytes)
    }

    fn with_pool() -> Memory {
        let mut memory = Memory::default();
        memory.pool(0, true);
        memory
    }

    fn rows(memory: &mut Memory, events: &[&[i64]]) -> Vec<Row> {
        assert_eq!(memory.line(&line(events)), Some(events.len() as u64));
        memory.rows()
    }

    fn blocks(kind: &'static str, t_ns: i64, blocks: &[i64]) -> Row {
        Row::Blocks {
            kind,
            pool: 0,
            t_ns,
            blocks: blocks.to_vec(),
        }
    }

    #[test]
    fn a_line_of_the_probe_is_read_as_python_wrote_it() {
        // python: kvwise_probe.encoder.line([(head(STEP, 9), 5, 0, 1, 0, 1, 1, 0, 3, 40), (head(ALLOCATED, 3), 6, 0, 258)])
        let text = "BwkAAAAAAAAFAAAAAAAAAAAAAAAAAAAAAQAAAAAAAAAAAAAAAAAAAAEAAAAAAAAAAQAAAAAAAAAAAAAAAAAAAAMAAAAAAAAAKAAAAAAAAAABAwAAAAAAAAYAAAAAAAAAAAAAAAAAAAACAQAAAAAAAA==";
        let mut memory = Memory::default();
        assert_eq!(memory.line(text), Some(2));
        let expected = vec![
            Row::Step([5, 0, 1, 0, 1, 1, 0, 3, 40]),
            blocks("alloc", 6, &[258]),
        ];
        assert_eq!(memory.rows(), expected);
    }

    #[test]
    fn neighbours_of_one_kind_become_one_row_and_keep_their_order() {
        let made = rows(
            &mut with_pool(),
            &[
                &[EVICTED, 5, 0, 1],
                &[ALLOCATED, 5, 0, 1],
                &[EVICTED, 5, 0, 2],
                &[ALLOCATED, 5, 0, 2],
                &[STEP, 6, 0, 0, 0, 0, 0, 0, 0, 0],
                &[FREED, 7, 0, 2],
                &[FREED, 8, 0, 1],
                &[ALLOCATED, 8, 0, 3],
                &[ALLOCATED, 9, 0, 4],
            ],
        );
        let expected = [
            blocks("evict", 5, &[1, 2]),
            blocks("alloc", 5, &[1, 2]),
            Row::Step([6, 0, 0, 0, 0, 0, 0, 0, 0]),
            blocks("free", 8, &[2, 1]),
            blocks("alloc", 8, &[3]),
            blocks("alloc", 9, &[4]),
        ];
        assert_eq!(made, expected);
    }

    #[test]
    fn lifetimes_count_from_the_allocation_and_idle_times_from_the_last_hit() {
        let made = rows(
            &mut with_pool(),
            &[
                &[ALLOCATED, 1000, 0, 3],
                &[HIT, 5000, 0, 3],
                &[EVICTED, 9000, 0, 3],
                &[ALLOCATED, 9000, 0, 3],
            ],
        );
        let eviction = Row::Eviction {
            pool: 0,
            t_ns: 9000,
            block: 3,
            lifetime_us: 8,
            idle_us: 4,
            hits: 1,
            cached: true,
        };
        assert!(made.contains(&eviction), "{made:?}");
    }

    fn evicted(rows: &[Row]) -> Vec<i64> {
        rows.iter()
            .filter_map(|row| match row {
                Row::Eviction { block, .. } => Some(*block),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn what_a_sample_did_not_follow_has_no_lifetime() {
        let mut memory = with_pool();
        rows(&mut memory, &[&[ALLOCATED, 1, 0, 0, 1, 2, 3, 4]]);
        memory.sample(4);
        rows(&mut memory, &[&[ALLOCATED, 2, 0, 8]]);
        memory.sample(1);
        let made = rows(&mut memory, &[&[ALLOCATED, 3, 0, 0, 1, 2, 3, 4, 8]]);
        assert_eq!(evicted(&made), [0, 4, 8]);
    }

    #[test]
    fn after_lost_events_or_a_cleared_cache_and_without_caching_no_lifetime_is_made_up() {
        for between in [&[LOST, 2][..], &[CLEARED, 2, 0]] {
            let made = rows(
                &mut with_pool(),
                &[&[ALLOCATED, 1, 0, 1], between, &[ALLOCATED, 9, 0, 1]],
            );
            assert_eq!(evicted(&made), [0; 0]);
        }
        for memory in [&mut Memory::default(), &mut {
            let mut off = Memory::default();
            off.pool(0, false);
            off
        }] {
            let made = rows(memory, &[&[ALLOCATED, 1, 0, 1], &[ALLOCATED, 9, 0, 1]]);
            assert_eq!(evicted(&made), [0; 0]);
        }
    }

    #[test]
    fn a_kind_of_a_newer_probe_is_passed_over_and_a_broken_line_keeps_what_stood_before() {
        let made = rows(&mut with_pool(), &[&[200, 1, 2, 3], &[PREEMPTED, 1, 2, 3, 4, 5]]);
        assert_eq!(made, [Row::Preempted([1, 2, 3, 4])]);
        let mut memory = with_pool();
        assert_eq!(memory.line(&line(&[&[CLEARED, 1, 0], &[STEP, 1]])), None);
        assert_eq!(memory.rows(), [blocks("clear", 1, &[])]);
        for wrong in ["?", "AAAA", &line(&[&[CLEARED]])] {
            assert_eq!(memory.line(wrong), None, "{wrong}");
        }
        // a length beyond the line, and a negative one
        for head in [FREED | 5 << 8, -1] {
            assert_eq!(memory.line(&STANDARD.encode(head.to_le_bytes())), None);
        }
    }

    #[test]
    fn a_graph_bears_the_name_that_it_was_given() {
        let mut memory = Memory::default();
        memory.graph(4, "FULL:8");
        let made = rows(&mut memory, &[&[REPLAYED, 9, 4, 100], &[REPLAYED, 9, 5, 100]]);
        let names: Vec<&str> = made
            .iter()
            .filter_map(|row| match row {
                Row::Replayed { graph, .. } => Some(graph.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(names, ["FULL:8", "not named"]);
    }

    /// Lifetimes, worked out anew from all events for each allocation.
    fn naive(events: &[(i64, i64, i64)]) -> Vec<(i64, i64, i64, i64)> {
        let mut found = Vec::new();
        for (n, &(kind, t, block)) in events.iter().enumerate() {
            let before = &events[..n];
            let born = before
                .iter()
                .rposition(|e| e.0 == ALLOCATED && e.2 == block)
                .filter(|_| kind == ALLOCATED);
            if let Some(born) = born {
                let hits: Vec<i64> = before[born..]
                    .iter()
                    .filter(|e| e.0 == HIT && e.2 == block)
                    .map(|e| e.1)
                    .collect();
                let last = hits.last().copied().unwrap_or(before[born].1);
                found.push((
                    block,
                    (t - before[born].1) / 1000,
                    (t - last) / 1000,
                    hits.len().cast_signed() as i64,
                ));
            }
        }
        found
    }

    proptest! {
        #[test]
        fn lifetimes_equal_those_of_the_naive_reading(
            script in proptest::collection::vec((1_i64..=3, 0_i64..6, 0_i64..5000), 0..80),
            cuts in proptest::collection::vec(0_usize..80, 0..4),
        ) {
            let mut t = 0;
            let events: Vec<(i64, i64, i64)> = script
                .iter()
                .map(|&(kind, block, pause)| { t += pause; (kind, t, block) })
                .collect();
            let mut memory = with_pool();
            let mut made = Vec::new();
            for (n, &(kind, t, block)) in events.iter().enumerate() {
                memory.line(&line(&[&[kind, t, 0, block]])).expect("whole");
                if cuts.contains(&n) {
                    made.extend(memory.rows());
                }
            }
            made.extend(memory.rows());
            let lifetimes: Vec<(i64, i64, i64, i64)> = made
                .iter()
                .filter_map(|row| match row {
                    Row::Eviction { block, lifetime_us, idle_us, hits, .. } => Some((*block, *lifetime_us, *idle_us, *hits)),
                    _ => None,
                })
                .collect();
            prop_assert_eq!(lifetimes, naive(&events));
            let seen: usize = made.iter().map(|row| match row { Row::Blocks { blocks, .. } => blocks.len(), _ => 0 }).sum();
            prop_assert_eq!(seen, events.len());
        }

        #[test]
        fn no_line_of_numbers_makes_it_panic(numbers in proptest::collection::vec(any::<i64>(), 0..60), small in proptest::collection::vec(0_i64..1100, 0..60)) {
            for list in [numbers, small] {
                let mut memory = with_pool();
                let bytes: Vec<u8> = list.iter().flat_map(|n| n.to_le_bytes()).collect();
                let _ = memory.line(&STANDARD.encode(bytes));
                memory.rows();
            }
        }
    }
}
