//! Who hears what enters and leaves a tree.

use super::namespace::Namespace;

/// Hears every change of a tree's content, as it happens; does nothing by default.
///
/// Nodes are named by index: the root is 0, an index is reused after its node was removed, and each call about a node
/// comes after `stored` or `split` made it. Tokens are whole pages.
pub trait TreeObserver<T> {
    /// A new leaf `node` under `parent`.
    fn stored(&mut self, parent: u32, node: u32, namespace: Namespace, tokens: &[T]) {
        let _ = (parent, node, namespace, tokens);
    }

    /// `back` was cut: its first part became the node `front` between `parent` and `back`.
    fn split(&mut self, parent: u32, front: u32, back: u32, namespace: Namespace, front_tokens: &[T]) {
        let _ = (parent, front, back, namespace, front_tokens);
    }

    /// The leaf `node` under `parent` goes.
    fn removed(&mut self, parent: u32, node: u32, namespace: Namespace, tokens: &[T]) {
        let _ = (parent, node, namespace, tokens);
    }

    /// The tree was emptied.
    fn cleared(&mut self) {}
}

impl<T> TreeObserver<T> for () {}
