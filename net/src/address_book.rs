//! Where each node was seen: addresses by node id, the one that worked last in front.
//!
//! Fed by gossip, joins and connections; kept on disk by the node, so that a cluster whose power was cut
//! finds itself again. An address here is a guess: whoever answers there still has to prove its key.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::identity::NodeId;

/// Addresses kept per node: four it may announce, and as many from before its last move.
pub const ADDRESSES_MAX: usize = 8;
/// Nodes kept; as many as gossip remembers.
pub const NODES_MAX: usize = 4096;

/// The book as plain data, for the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pages(pub BTreeMap<NodeId, Page>);

/// What is written about one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Its name, as it last gave it; empty if it never did.
    #[serde(default)]
    pub name: String,
    /// Best guess first, at most [`ADDRESSES_MAX`].
    pub addresses: Vec<SocketAddr>,
}

/// The book, shared by all who dial and all who learn. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct AddressBook(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    pages: Mutex<Pages>,
    edition: watch::Sender<u64>,
}

impl AddressBook {
    /// A book that starts with what the disk remembers; too long pages are cut.
    pub fn new(mut pages: Pages) -> Self {
        for page in pages.0.values_mut() {
            page.addresses.truncate(ADDRESSES_MAX);
        }
        while pages.0.len() > NODES_MAX {
            pages.0.pop_last();
        }
        Self(Arc::new(Inner { pages: Mutex::new(pages), edition: watch::Sender::new(0) }))
    }

    /// Where to look for `node`, best guess first.
    pub fn addresses(&self, node: NodeId) -> Vec<SocketAddr> {
        self.lock().0.get(&node).map(|page| page.addresses.clone()).unwrap_or_default()
    }

    /// Every node there is a page for.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.lock().0.keys().copied().collect()
    }

    /// A copy for the disk.
    pub fn pages(&self) -> Pages {
        self.lock().clone()
    }

    /// Changes whenever the book does: the moment to write it down.
    pub fn editions(&self) -> watch::Receiver<u64> {
        self.0.edition.subscribe()
    }

    /// Notes what `node` says of itself: these addresses, best first, go before what was known.
    pub fn learn(&self, node: NodeId, name: &str, addresses: &[SocketAddr]) {
        self.change(node, |page| {
            if !name.is_empty() {
                page.name = name.into();
            }
            // The address that is in use stays in front if it is still announced.
            let in_use = page.addresses.first().copied().map(|address| vec![address]).unwrap_or_default();
            let in_use = in_use.into_iter().filter(|address| addresses.contains(address));
            page.addresses = in_use.chain(addresses.iter().copied()).chain(page.addresses.clone()).collect();
        });
    }

    /// Notes that `node` proved its key at `address`, which so becomes the best guess.
    pub fn worked(&self, node: NodeId, address: SocketAddr) {
        self.change(node, |page| page.addresses.insert(0, address));
    }

    /// Tears out the page of a node that was removed from the cluster.
    pub fn forget(&self, node: NodeId) {
        if self.lock().0.remove(&node).is_some() {
            self.0.edition.send_modify(|edition| *edition += 1);
        }
    }

    fn change(&self, node: NodeId, edit: impl FnOnce(&mut Page)) {
        let mut pages = self.lock();
        let before = pages.0.get(&node);
        if before.is_none() && pages.0.len() >= NODES_MAX {
            return;
        }
        let mut page = before.cloned().unwrap_or_default();
        edit(&mut page);
        page.addresses = tidy(&page.addresses);
        if before == Some(&page) || (before.is_none() && page == Page::default()) {
            return;
        }
        pages.0.insert(node, page);
        drop(pages);
        self.0.edition.send_modify(|edition| *edition += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        // Pages are replaced whole, so a panic elsewhere cannot have left half a page.
        self.0.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each address once, in its plain form, none that cannot be dialled, and not too many.
fn tidy(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut kept = Vec::new();
    for address in addresses.iter().copied().map(plain) {
        let is_dialable =
            address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast();
        if is_dialable && !kept.contains(&address) && kept.len() < ADDRESSES_MAX {
            kept.push(address);
        }
    }
    kept
}

/// An IPv4 address that a dual-stack socket shows as IPv6, as what it is.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            SocketAddr::new(address.ip().to_canonical(), address.port())
        }
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId([7; 16]);

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn the_address_that_worked_last_comes_first() {
        let book = AddressBook::default();
        book.learn(NODE, "kitchen", &[at(1), at(2)]);
        book.worked(NODE, at(2));
        assert_eq!(book.addresses(NODE), [at(2), at(1)]);
    }

    #[test]
    fn news_of_a_move_goes_before_old_addresses_but_keeps_what_is_in_use() {
        let book = AddressBook::default();
        book.worked(NODE, at(1));
        book.learn(NODE, "kitchen", &[at(3), at(1)]);
        assert_eq!(book.addresses(NODE), [at(1), at(3)], "port 1 is still announced");
        book.learn(NODE, "kitchen", &[at(4)]);
        assert_eq!(book.addresses(NODE), [at(4), at(1), at(3)], "port 1 no longer is");
    }

    #[test]
    fn a_page_never_grows_beyond_its_limit_nor_holds_what_cannot_be_dialled() {
        let book = AddressBook::default();
        for port in 0..100 {
            book.worked(NODE, at(port));
        }
        assert_eq!(book.addresses(NODE).len(), ADDRESSES_MAX);
        assert_eq!(book.addresses(NODE)[0], at(99));
        book.worked(NODE, SocketAddr::from(([0, 0, 0, 0], 5)));
        assert_eq!(book.addresses(NODE)[0], at(99));
    }

    #[test]
    fn a_mapped_address_is_the_plain_one() {
        let book = AddressBook::default();
        book.worked(NODE, "[::ffff:192.0.2.1]:9".parse().unwrap());
        assert_eq!(book.addresses(NODE), [at(9)]);
    }

    #[test]
    fn only_a_real_change_makes_a_new_edition() {
        let book = AddressBook::default();
        let editions = book.editions();
        book.worked(NODE, at(1));
        assert_eq!(*editions.borrow(), 1);
        book.worked(NODE, at(1));
        book.learn(NODE, "", &[at(1)]);
        assert_eq!(*editions.borrow(), 1);
        book.forget(NODE);
        assert_eq!(*editions.borrow(), 2);
        assert!(book.nodes().is_empty());
    }

    #[test]
    fn the_book_survives_the_disk() {
        let book = AddressBook::default();
        book.learn(NODE, "kitchen", &[at(1)]);
        let text = serde_json::to_string(&book.pages()).unwrap();
        assert_eq!(AddressBook::new(serde_json::from_str(&text).unwrap()).pages(), book.pages());
    }
}
