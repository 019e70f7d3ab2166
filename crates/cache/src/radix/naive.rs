//! A slow twin of the tree for property tests: boxes of vectors, every rule spelled out, every search linear.

use super::policy::{LeafFacts, Rank, TreePolicy};
use super::tree::Insert;

#[derive(Debug, Clone, Default)]
pub(super) struct NaiveNode {
    pub name: usize,
    pub namespace: u32,
    pub key: Vec<u32>,
    pub slots: Vec<u32>,
    pub children: Vec<NaiveNode>,
    pub locks: u32,
    facts: Facts,
}

#[derive(Debug, Clone, Copy, Default)]
struct Facts {
    last_access: u64,
    created: u64,
    hits: u64,
    priority: i64,
    history: u32,
}

#[derive(Debug, Clone)]
pub(super) struct NaiveTree {
    pub root: NaiveNode,
    page: usize,
    policy: TreePolicy,
    clock: u64,
    names: usize,
}

impl NaiveTree {
    pub(super) fn new(page: usize, policy: TreePolicy) -> Self {
        Self {
            root: NaiveNode::default(),
            page,
            policy,
            clock: 0,
            names: 0,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1_000_000;
        self.clock
    }

    fn new_name(&mut self) -> usize {
        self.names += 1;
        self.names
    }

    fn common(&self, a: &[u32], b: &[u32]) -> usize {
        let n = a.iter().zip(b).take_while(|(x, y)| x == y).count();
        n / self.page * self.page
    }

    /// Child positions from the root along `key`, splitting the last node where the key ends inside of it;
    /// `visit` sees each node on the way (after the split).
    fn walk(
        &mut self,
        namespace: u32,
        key: &[u32],
        touch: bool,
        mut visit: impl FnMut(&mut NaiveNode, usize, usize),
    ) -> (Vec<usize>, usize) {
        let (mut path, mut done) = (Vec::new(), 0);
        while key.len() - done >= self.page {
            let page = self.page;
            let rest = &key[done..];
            let here = node_at(&mut self.root, &path);
            let Some(at) = here
                .children
                .iter()
                .position(|c| c.namespace == namespace && c.key[..page] == rest[..page])
            else {
                break;
            };
            let common = {
                let child_key = here.children[at].key.clone();
                self.common(&child_key, rest)
            };
            let times = [self.tick(), self.tick(), self.tick()];
            let name = self.new_name();
            let child = &mut node_at(&mut self.root, &path).children[at];
            if touch {
                child.facts.last_access = times[0];
            }
            let partial = common < child.key.len();
            if partial {
                let mut back = child.clone();
                back.key.drain(..common);
                back.slots.drain(..common);
                back.facts.last_access = times[2];
                let mut front = child.clone();
                front.name = name;
                front.key.truncate(common);
                front.slots.truncate(common);
                front.facts.last_access = times[1];
                front.children = vec![back];
                *child = front;
            }
            visit(child, done, done + common);
            path.push(at);
            done += common;
        }
        (path, done)
    }

    /// The matched length and the name of the node where the match ends.
    pub(super) fn match_prefix(&mut self, namespace: u32, key: &[u32]) -> (usize, usize) {
        let key = &key[..key.len() / self.page * self.page];
        if key.is_empty() {
            return (0, 0);
        }
        let (path, done) = self.walk(namespace, key, false, |_, _, _| {});
        let now = self.tick();
        for depth in 0..=path.len() {
            let node = node_at(&mut self.root, &path[..depth]);
            node.facts.last_access = now - (path.len() - depth) as u64;
        }
        (done, node_at(&mut self.root, &path).name)
    }

    /// The length found and the name of the node where the key ends.
    pub(super) fn insert(&mut self, insert: &Insert<'_, u32>, duplicates: &mut Vec<u32>) -> (usize, usize) {
        let len = insert.key.len() / self.page * self.page;
        let (key, slots) = (&insert.key[..len], &insert.slots[..len]);
        let (path, done) = self.walk(insert.namespace.0, key, true, |node, start, end| {
            for (at, &slot) in slots.iter().enumerate().take(end).skip(start) {
                if at >= insert.owned_by_tree {
                    duplicates.push(slot);
                }
            }
            node.facts.priority = node.facts.priority.max(insert.priority);
            node.facts.hits += u64::from(end > insert.already_counted);
        });
        let mut name = node_at(&mut self.root, &path).name;
        if done < len {
            name = self.new_name();
            let now = self.tick();
            let leaf = NaiveNode {
                name,
                namespace: insert.namespace.0,
                key: key[done..].to_vec(),
                slots: slots[done..].to_vec(),
                children: Vec::new(),
                locks: 0,
                facts: Facts {
                    last_access: now,
                    created: now,
                    hits: u64::from(len > insert.already_counted),
                    priority: insert.priority,
                    history: len as u32,
                },
            };
            for depth in 0..=path.len() {
                let node = node_at(&mut self.root, &path[..depth]);
                node.facts.history = node.facts.history.max(len as u32);
            }
            node_at(&mut self.root, &path).children.push(leaf);
        }
        (done, name)
    }

    /// Adds `by` to the lock count of the path that ends at the node called `name`.
    pub(super) fn lock(&mut self, name: usize, by: i32) {
        fn go(node: &mut NaiveNode, name: usize, by: i32) -> bool {
            let found = node.name == name || node.children.iter_mut().any(|c| go(c, name, by));
            if found {
                node.locks = node.locks.checked_add_signed(by).expect("locks are balanced");
            }
            found
        }
        assert!(go(&mut self.root, name, by), "the node is gone");
    }

    /// The slots of the victim.
    pub(super) fn evict_one(&mut self) -> Option<Vec<u32>> {
        fn leaves(
            node: &NaiveNode,
            above: usize,
            path: &mut Vec<usize>,
            policy: TreePolicy,
            best: &mut Option<(Rank, Vec<usize>)>,
        ) {
            for (at, child) in node.children.iter().enumerate() {
                path.push(at);
                if child.children.is_empty() && child.locks == 0 {
                    let rank = policy.rank(&LeafFacts {
                        last_access: child.facts.last_access,
                        created: child.facts.created,
                        hits: child.facts.hits,
                        priority: child.facts.priority,
                        history: child.facts.history,
                        tokens_above: above as u32,
                    });
                    if best.as_ref().is_none_or(|(other, _)| rank < *other) {
                        *best = Some((rank, path.clone()));
                    }
                }
                leaves(child, above + child.key.len(), path, policy, best);
                path.pop();
            }
        }
        let mut best = None;
        leaves(&self.root, 0, &mut Vec::new(), self.policy, &mut best);
        let (_, mut path) = best?;
        let last = path.pop().expect("a leaf is not the root");
        Some(node_at(&mut self.root, &path).children.remove(last).slots)
    }

    /// Evictable and protected tokens.
    pub(super) fn totals(&self) -> (usize, usize) {
        fn go(node: &NaiveNode, totals: &mut (usize, usize)) {
            for child in &node.children {
                *(if child.locks == 0 {
                    &mut totals.0
                } else {
                    &mut totals.1
                }) += child.key.len();
                go(child, totals);
            }
        }
        let mut totals = (0, 0);
        go(&self.root, &mut totals);
        totals
    }
}

fn node_at<'a>(root: &'a mut NaiveNode, path: &[usize]) -> &'a mut NaiveNode {
    path.iter().fold(root, |node, &at| &mut node.children[at])
}
