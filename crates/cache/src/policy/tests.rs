//! Each policy against a twin that keeps plain vectors of keys and searches them.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// A policy spelled out over keys; the front of a vector goes first.
trait Twin {
    fn new(capacity: usize) -> Self;
    fn holds(&self, key: u64) -> bool;
    fn len(&self) -> usize;
    fn hit(&mut self, access: &Access);
    /// Only called when full.
    fn evict(&mut self, incoming: &Access) -> u64;
    fn insert(&mut self, access: &Access);
    fn remove(&mut self, key: u64);
}

fn without(keys: &mut Vec<u64>, key: u64) -> bool {
    let before = keys.len();
    keys.retain(|&k| k != key);
    keys.len() < before
}

/// Twin of every policy that is one sorted order: `rank` computes it from all facts of an entry.
struct Sorted<const KIND: char> {
    /// key -> (uses, inserted, last use, next use, priority, expires)
    facts: HashMap<u64, (u64, u64, u64, u64, i64, u64)>,
}

impl<const KIND: char> Twin for Sorted<KIND> {
    fn new(_: usize) -> Self {
        Self {
            facts: HashMap::new(),
        }
    }
    fn holds(&self, key: u64) -> bool {
        self.facts.contains_key(&key)
    }
    fn len(&self) -> usize {
        self.facts.len()
    }
    fn hit(&mut self, a: &Access) {
        let facts = self.facts.get_mut(&a.key).unwrap();
        *facts = (
            facts.0 + 1,
            facts.1,
            a.now,
            a.next_use,
            facts.4.max(a.priority),
            a.expires,
        );
    }
    fn evict(&mut self, _: &Access) -> u64 {
        let rank =
            |&(uses, inserted, last, next, priority, expires): &(u64, u64, u64, u64, i64, u64)| match KIND {
                'r' => (0, last),
                'i' => (0, inserted),
                'f' => (i128::from(uses), last),
                'p' => (i128::from(priority), last),
                't' => (i128::from(expires), last),
                'b' => (-i128::from(next), last),
                _ => unreachable!(),
            };
        let victim = *self.facts.iter().min_by_key(|(_, facts)| rank(facts)).unwrap().0;
        self.facts.remove(&victim);
        victim
    }
    fn insert(&mut self, a: &Access) {
        self.facts
            .insert(a.key, (1, a.now, a.now, a.next_use, a.priority, a.expires));
    }
    fn remove(&mut self, key: u64) {
        self.facts.remove(&key);
    }
}

struct SlruTwin {
    probation: Vec<u64>,
    protected: Vec<u64>,
    protected_max: usize,
}

impl Twin for SlruTwin {
    fn new(capacity: usize) -> Self {
        Self {
            probation: vec![],
            protected: vec![],
            protected_max: capacity * 8 / 10,
        }
    }
    fn holds(&self, key: u64) -> bool {
        self.probation.contains(&key) || self.protected.contains(&key)
    }
    fn len(&self) -> usize {
        self.probation.len() + self.protected.len()
    }
    fn hit(&mut self, a: &Access) {
        self.remove(a.key);
        self.protected.push(a.key);
        if self.protected.len() > self.protected_max {
            self.probation.push(self.protected.remove(0));
        }
    }
    fn evict(&mut self, _: &Access) -> u64 {
        if self.probation.is_empty() {
            self.protected.remove(0)
        } else {
            self.probation.remove(0)
        }
    }
    fn insert(&mut self, a: &Access) {
        self.probation.push(a.key);
    }
    fn remove(&mut self, key: u64) {
        without(&mut self.probation, key);
        without(&mut self.protected, key);
    }
}

/// The hand is an index into the queue.
struct SieveTwin {
    queue: Vec<(u64, bool)>,
    hand: usize,
}

impl Twin for SieveTwin {
    fn new(_: usize) -> Self {
        Self {
            queue: vec![],
            hand: 0,
        }
    }
    fn holds(&self, key: u64) -> bool {
        self.queue.iter().any(|e| e.0 == key)
    }
    fn len(&self) -> usize {
        self.queue.len()
    }
    fn hit(&mut self, a: &Access) {
        self.queue.iter_mut().find(|e| e.0 == a.key).unwrap().1 = true;
    }
    fn evict(&mut self, _: &Access) -> u64 {
        loop {
            let at = self.hand % self.queue.len();
            if self.queue[at].1 {
                self.queue[at].1 = false;
                self.hand = at + 1;
            } else {
                // past the newest entry the hand starts over, also when newer ones arrive meanwhile
                self.hand = if at + 1 == self.queue.len() { 0 } else { at };
                return self.queue.remove(at).0;
            }
        }
    }
    fn insert(&mut self, a: &Access) {
        self.queue.push((a.key, false));
    }
    fn remove(&mut self, key: u64) {
        let at = self.queue.iter().position(|e| e.0 == key).unwrap();
        self.queue.remove(at);
        if at < self.hand {
            self.hand -= 1;
        } else if at == self.hand && at == self.queue.len() {
            self.hand = 0;
        }
    }
}

struct S3FifoTwin {
    small: Vec<(u64, u8)>,
    main: Vec<(u64, u8)>,
    ghost: Vec<u64>,
    main_max: usize,
}

impl Twin for S3FifoTwin {
    fn new(capacity: usize) -> Self {
        let main_max = capacity - (capacity / 10).max(1);
        Self {
            small: vec![],
            main: vec![],
            ghost: vec![],
            main_max,
        }
    }
    fn holds(&self, key: u64) -> bool {
        self.small.iter().chain(&self.main).any(|e| e.0 == key)
    }
    fn len(&self) -> usize {
        self.small.len() + self.main.len()
    }
    fn hit(&mut self, a: &Access) {
        let entry = self
            .small
            .iter_mut()
            .chain(&mut self.main)
            .find(|e| e.0 == a.key)
            .unwrap();
        entry.1 = 3.min(entry.1 + 1);
    }
    fn evict(&mut self, _: &Access) -> u64 {
        loop {
            if self.main.len() > self.main_max || self.small.is_empty() {
                let (key, uses) = self.main.remove(0);
                if uses == 0 {
                    return key;
                }
                self.main.push((key, uses - 1));
            } else {
                let (key, uses) = self.small.remove(0);
                if uses > 1 {
                    self.main.push((key, 0));
                } else {
                    if !self.ghost.contains(&key) && self.main_max > 0 {
                        if self.ghost.len() == self.main_max {
                            self.ghost.remove(0);
                        }
                        self.ghost.push(key);
                    }
                    return key;
                }
            }
        }
    }
    fn insert(&mut self, a: &Access) {
        if without(&mut self.ghost, a.key) {
            &mut self.main
        } else {
            &mut self.small
        }
        .push((a.key, 0));
    }
    fn remove(&mut self, key: u64) {
        self.small.retain(|e| e.0 != key);
        self.main.retain(|e| e.0 != key);
    }
}

struct ArcTwin {
    t1: Vec<u64>,
    t2: Vec<u64>,
    b1: Vec<u64>,
    b2: Vec<u64>,
    p: usize,
    c: usize,
    to_t2: bool,
}

impl ArcTwin {
    fn replace(&mut self, in_b2: bool) -> u64 {
        let t1 = self.t1.len();
        if t1 > 0 && (t1 > self.p || (in_b2 && t1 == self.p)) || self.t2.is_empty() {
            self.b1.push(self.t1.remove(0));
            *self.b1.last().unwrap()
        } else {
            self.b2.push(self.t2.remove(0));
            *self.b2.last().unwrap()
        }
    }
    /// (was in B1, was in B2)
    fn learn(&mut self, key: u64) -> (bool, bool) {
        let (b1, b2) = (self.b1.len(), self.b2.len());
        if without(&mut self.b1, key) {
            self.p = self.c.min(self.p + 1.max(b2 / b1));
            return (true, false);
        }
        if without(&mut self.b2, key) {
            self.p = self.p.saturating_sub(1.max(b1 / b2));
            return (false, true);
        }
        (false, false)
    }
}

impl Twin for ArcTwin {
    fn new(c: usize) -> Self {
        Self {
            t1: vec![],
            t2: vec![],
            b1: vec![],
            b2: vec![],
            p: 0,
            c,
            to_t2: false,
        }
    }
    fn holds(&self, key: u64) -> bool {
        self.t1.contains(&key) || self.t2.contains(&key)
    }
    fn len(&self) -> usize {
        self.t1.len() + self.t2.len()
    }
    fn hit(&mut self, a: &Access) {
        self.remove(a.key);
        self.t2.push(a.key);
    }
    fn evict(&mut self, a: &Access) -> u64 {
        let (in_b1, in_b2) = self.learn(a.key);
        if in_b1 || in_b2 {
            self.to_t2 = true;
            return self.replace(in_b2);
        }
        if self.t1.len() + self.b1.len() >= self.c {
            if self.t1.len() < self.c {
                self.b1.remove(0);
                return self.replace(false);
            }
            return self.t1.remove(0);
        }
        if self.len() + self.b1.len() + self.b2.len() >= 2 * self.c && !self.b2.is_empty() {
            self.b2.remove(0);
        }
        self.replace(false)
    }
    fn insert(&mut self, a: &Access) {
        let (in_b1, in_b2) = self.learn(a.key);
        if std::mem::take(&mut self.to_t2) || in_b1 || in_b2 {
            &mut self.t2
        } else {
            &mut self.t1
        }
        .push(a.key);
    }
    fn remove(&mut self, key: u64) {
        without(&mut self.t1, key);
        without(&mut self.t2, key);
    }
}

/// An access (`Some`) or a removal of a key, with a priority and a lifetime.
type Step = (bool, u64, i64, u64);

fn accesses(steps: &[Step]) -> Vec<Access> {
    let mut next = HashMap::new();
    let mut accesses: Vec<Access> = Vec::new();
    for (at, &(_, key, priority, life)) in steps.iter().enumerate().rev() {
        let now = at as u64;
        let next_use = next.get(&key).copied().unwrap_or(u64::MAX);
        next.insert(key, now);
        accesses.push(Access {
            key,
            now,
            next_use,
            priority,
            expires: now + life,
        });
    }
    accesses.reverse();
    accesses
}

fn agree<P: EvictionPolicy, T: Twin>(capacity: usize, config: P::Config, steps: &[Step]) -> usize {
    let mut cache: PolicyCache<P> = PolicyCache::new(Capacity::new(capacity).unwrap(), config);
    let mut twin = T::new(capacity);
    let mut hits = 0;
    for (access, step) in accesses(steps).iter().zip(steps) {
        if step.0 {
            let held = twin.holds(access.key);
            if held {
                twin.remove(access.key);
            }
            assert_eq!(cache.remove(access.key), held);
        } else if twin.holds(access.key) {
            twin.hit(access);
            assert_eq!(
                cache.access(access),
                AccessOutcome {
                    hit: true,
                    evicted: None
                }
            );
            hits += 1;
        } else {
            let evicted = (twin.len() == capacity).then(|| twin.evict(access));
            twin.insert(access);
            assert_eq!(cache.access(access), AccessOutcome { hit: false, evicted });
        }
        assert_eq!(cache.len(), twin.len());
    }
    hits
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (prop::bool::weighted(0.06), 0u64..14, -2i64..3, 1u64..40);
    prop::collection::vec(step, 1..250)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Property: every policy names the same victims as its twin, with entries removed by the caller in between.
    #[test]
    fn every_policy_agrees_with_its_naive_twin(capacity in 1usize..12, steps in steps()) {
        agree::<Lru, Sorted<'r'>>(capacity, (), &steps);
        agree::<Fifo, Sorted<'i'>>(capacity, (), &steps);
        agree::<Lfu, Sorted<'f'>>(capacity, (), &steps);
        agree::<Priority, Sorted<'p'>>(capacity, (), &steps);
        agree::<Ttl, Sorted<'t'>>(capacity, (), &steps);
        agree::<Belady, Sorted<'b'>>(capacity, (), &steps);
        agree::<Slru, SlruTwin>(capacity, SlruConfig::default(), &steps);
        agree::<Sieve, SieveTwin>(capacity, (), &steps);
        agree::<S3Fifo, S3FifoTwin>(capacity, (), &steps);
        agree::<Arc, ArcTwin>(capacity, (), &steps);
    }

    /// Property: without removals no policy has more hits than Belady's.
    #[test]
    fn no_policy_beats_belady(capacity in 1usize..12, steps in steps()) {
        let steps: Vec<Step> = steps.into_iter().map(|(_, key, p, life)| (false, key, p, life)).collect();
        let bound = agree::<Belady, Sorted<'b'>>(capacity, (), &steps);
        prop_assert!(agree::<Lru, Sorted<'r'>>(capacity, (), &steps) <= bound);
        prop_assert!(agree::<Lfu, Sorted<'f'>>(capacity, (), &steps) <= bound);
        prop_assert!(agree::<Sieve, SieveTwin>(capacity, (), &steps) <= bound);
        prop_assert!(agree::<S3Fifo, S3FifoTwin>(capacity, (), &steps) <= bound);
        prop_assert!(agree::<Arc, ArcTwin>(capacity, (), &steps) <= bound);
        prop_assert!(agree::<Slru, SlruTwin>(capacity, SlruConfig::default(), &steps) <= bound);
    }
}

#[test]
fn a_scan_does_not_flush_what_sieve_arc_and_s3_fifo_saw_used_twice() {
    fn survivors<P: EvictionPolicy<Config = ()>>() -> usize {
        let mut cache: PolicyCache<P> = PolicyCache::new(Capacity::new(20).unwrap(), ());
        let warm = (0..3).flat_map(|_| 0..10u64);
        for (now, key) in warm.chain(1000..1012).enumerate() {
            cache.access(&Access::new(key, now as u64));
        }
        (0..10).filter(|&key| cache.contains(key)).count()
    }
    assert_eq!(survivors::<Lru>(), 8);
    assert_eq!(survivors::<Sieve>(), 10);
    assert_eq!(survivors::<Arc>(), 10);
    assert_eq!(survivors::<S3Fifo>(), 10);
}

#[test]
fn expired_entries_come_out_in_order_and_only_when_due() {
    let mut policy = Ttl::new(Capacity::new(4).unwrap(), ());
    for (entry, expires) in [(0, 30), (1, 10), (2, 20)] {
        policy.on_insert(
            entry,
            &Access {
                expires,
                ..Access::new(0, 0)
            },
        );
    }
    assert_eq!(policy.pop_expired(9), None);
    assert_eq!(policy.pop_expired(25), Some(1));
    assert_eq!(policy.pop_expired(25), Some(2));
    assert_eq!(policy.pop_expired(25), None);
}

#[test]
fn capacities_that_cannot_be_are_refused() {
    assert!(Capacity::new(0).is_err());
    assert!(Capacity::new(1 << 31).is_err());
    assert!(SlruConfig::new(101).is_err());
}
