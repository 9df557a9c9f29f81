//! Members of another cluster or incarnation than this node's: they are told apart by their hello, left alone
//! for a while, and told of.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    identity::NodeId,
    incarnation::{Foreign, Tag},
};

/// How long such a node is not called again: it may be started anew meanwhile.
const ALONE: Duration = Duration::from_secs(10);
/// How long it is shown after it was last met: longer than the rarest call of gossip or beacon.
const SHOWN: Duration = Duration::from_secs(150);
/// How long nothing more is logged of one node, unless it says something new.
const TELL_EVERY: Duration = Duration::from_secs(3600);
/// Nodes that are remembered.
const NODES_MAX: usize = 64;

/// Whom this node gives nothing, and why.
#[derive(Default)]
pub(super) struct Estranged(Mutex<BTreeMap<NodeId, Met>>);

#[derive(Clone, Copy)]
struct Met {
    foreign: Foreign,
    tag: Tag,
    at: Instant,
    told_at: Instant,
}

impl Estranged {
    /// The hello of `node` was a foreign one, with this tag.
    pub(super) fn meet(&self, node: NodeId, foreign: Foreign, tag: Tag) {
        if self.is_news(node, foreign, tag, Instant::now()) {
            tracing::warn!(peer = %node, reason = %foreign, "a node is left alone");
        }
    }

    /// The hello of `node` was one of this cluster.
    pub(super) fn forgive(&self, node: NodeId) {
        self.lock().remove(&node);
    }

    /// Why `node` need not be called now.
    pub(super) fn why(&self, node: NodeId, now: Instant) -> Option<Foreign> {
        self.lock().get(&node).filter(|met| now.duration_since(met.at) < ALONE).map(|met| met.foreign)
    }

    /// All who were met lately.
    pub(super) fn all(&self, now: Instant) -> BTreeMap<NodeId, Foreign> {
        self.lately(now, |met| met.foreign)
    }

    /// Where those belong who were met lately.
    pub(super) fn tags(&self, now: Instant) -> BTreeMap<NodeId, Tag> {
        self.lately(now, |met| met.tag)
    }

    fn lately<T>(&self, now: Instant, what: impl Fn(&Met) -> T) -> BTreeMap<NodeId, T> {
        let met = self.lock();
        let lately = met.iter().filter(|(_, met)| now.duration_since(met.at) < SHOWN);
        lately.map(|(node, met)| (*node, what(met))).collect()
    }

    fn is_news(&self, node: NodeId, foreign: Foreign, tag: Tag, now: Instant) -> bool {
        let mut met = self.lock();
        met.retain(|_, met| now.duration_since(met.told_at) < TELL_EVERY);
        let known = met.get(&node).copied().filter(|known| known.foreign == foreign);
        if known.is_none() && met.len() >= NODES_MAX && !met.contains_key(&node) {
            return false;
        }
        let told_at = known.map_or(now, |known| known.told_at);
        met.insert(node, Met { foreign, tag, at: now, told_at });
        known.is_none()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Met>> {
        // One value changes at a time, so a panic elsewhere cannot have torn the map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLDER: Foreign = Foreign::Older { ours: 2, theirs: 1 };
    const TAG: Tag = crate::loopback::tag(1, 1);

    #[test]
    fn a_foreign_node_is_left_alone_for_a_while_and_told_of_once() {
        let estranged = Estranged::default();
        let (node, now) = (NodeId([1; 16]), Instant::now());
        assert!(estranged.is_news(node, OLDER, TAG, now));
        assert!(!estranged.is_news(node, OLDER, TAG, now));
        assert_eq!(estranged.why(node, now), Some(OLDER));
        assert_eq!(estranged.why(node, now + ALONE), None);
        assert_eq!(estranged.all(now + ALONE).len(), 1);
        assert_eq!(estranged.tags(now + ALONE), [(node, TAG)].into());
        assert_eq!(estranged.all(now + SHOWN).len(), 0);
        assert!(estranged.is_news(node, Foreign::Twin { number: 2 }, TAG, now), "it says something new");
        estranged.forgive(node);
        assert_eq!(estranged.why(node, now), None);
    }

    #[test]
    fn many_foreign_nodes_are_bounded() {
        let estranged = Estranged::default();
        let now = Instant::now();
        let told =
            (0..200).filter(|number| estranged.is_news(NodeId([*number; 16]), OLDER, TAG, now)).count();
        assert_eq!(told, NODES_MAX);
    }
}
