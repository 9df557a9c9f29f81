//! Which pod has which address of this node's subnet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Subnet;

/// Addresses of one node's subnet, handed out locally: no log entry per pod, so pods also start in a
/// part of the cluster that has no quorum.
///
/// The address freed longest ago is used next, so that a peer's stale connection seldom meets a new
/// pod. Kept in one small file, because a restarted daemon must not give a running pod's address away;
/// not synced, because no pod survives a power cut.
#[derive(Debug)]
pub struct Ipam {
    path: PathBuf,
    table: Table,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Table {
    subnet: Subnet,
    used: BTreeMap<String, Ipv4Addr>,
    free: VecDeque<Ipv4Addr>,
}

impl Table {
    fn new(subnet: Subnet) -> Table {
        Table { subnet, used: BTreeMap::new(), free: subnet.hosts().collect() }
    }

    /// Whether every host address stands in it exactly once: what a damaged file would break.
    fn is_whole(&self) -> bool {
        let seen: BTreeSet<_> = self.used.values().chain(&self.free).copied().collect();
        seen.len() == self.used.len() + self.free.len() && seen == self.subnet.hosts().collect()
    }
}

impl Ipam {
    /// Opens the table at `path` for `subnet`. A missing or unreadable file, or one of another subnet,
    /// starts an empty table: addresses that pods still hold come back by [`Ipam::claim`] at adoption.
    pub fn open(path: &Path, subnet: Subnet) -> Ipam {
        let table = std::fs::read(path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Table>(&bytes).ok())
            .filter(|table| table.subnet == subnet && table.is_whole())
            .unwrap_or_else(|| Table::new(subnet));
        Ipam { path: path.to_owned(), table }
    }

    /// The address of `pod`: the one it has, or a free one. `None` if the subnet is used up.
    ///
    /// Errors: the file could not be written; nothing was handed out.
    pub fn address(&mut self, pod: &str) -> io::Result<Option<Ipv4Addr>> {
        if let Some(address) = self.table.used.get(pod) {
            return Ok(Some(*address));
        }
        let Some(address) = self.table.free.front().copied() else { return Ok(None) };
        self.change(|table| {
            table.free.pop_front();
            table.used.insert(pod.to_owned(), address);
        })?;
        Ok(Some(address))
    }

    /// Notes that `pod` runs with `address` (read from its namespace). Refused (`false`) if the address
    /// is not of this subnet or another pod's.
    pub fn claim(&mut self, pod: &str, address: Ipv4Addr) -> io::Result<bool> {
        if self.table.used.get(pod) == Some(&address) {
            return Ok(true);
        }
        if !self.table.free.contains(&address) || self.table.used.contains_key(pod) {
            return Ok(false);
        }
        self.change(|table| {
            table.free.retain(|free| *free != address);
            table.used.insert(pod.to_owned(), address);
        })?;
        Ok(true)
    }

    /// Frees the address of `pod`, if it has one.
    pub fn release(&mut self, pod: &str) -> io::Result<()> {
        if !self.table.used.contains_key(pod) {
            return Ok(());
        }
        self.change(|table| {
            let address = table.used.remove(pod).expect("looked up above");
            table.free.push_back(address);
        })
    }

    /// Every pod that holds an address, in order of uid.
    pub fn pods(&self) -> impl Iterator<Item = (&str, Ipv4Addr)> {
        self.table.used.iter().map(|(pod, address)| (pod.as_str(), *address))
    }

    /// The subnet the addresses are taken from.
    pub fn subnet(&self) -> Subnet {
        self.table.subnet
    }

    /// The table in memory never runs ahead of the file.
    fn change(&mut self, edit: impl FnOnce(&mut Table)) -> io::Result<()> {
        let mut next = self.table.clone();
        edit(&mut next);
        let unfinished = self.path.with_extension("tmp");
        std::fs::write(&unfinished, serde_json::to_vec(&next).map_err(io::Error::other)?)?;
        std::fs::rename(&unfinished, &self.path)?;
        self.table = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(dir: &tempfile::TempDir) -> Ipam {
        Ipam::open(&dir.path().join("addresses.json"), "10.42.3.0/29".parse().unwrap())
    }

    #[test]
    fn a_pod_keeps_its_address_and_two_pods_never_share_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = table(&dir);
        let first = ipam.address("a").unwrap();
        assert_eq!(ipam.address("a").unwrap(), first);
        assert_ne!(ipam.address("b").unwrap(), first);
    }

    #[test]
    fn a_full_subnet_hands_out_nothing_until_a_pod_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = table(&dir);
        for pod in ["a", "b", "c", "d", "e", "f"] {
            assert!(ipam.address(pod).unwrap().is_some());
        }
        assert_eq!(ipam.address("g").unwrap(), None);
        ipam.release("c").unwrap();
        assert_eq!(ipam.address("g").unwrap(), Some("10.42.3.3".parse().unwrap()));
    }

    #[test]
    fn the_address_freed_longest_ago_is_used_next() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = table(&dir);
        let freed = ipam.address("a").unwrap();
        ipam.release("a").unwrap();
        for pod in ["b", "c", "d", "e", "f"] {
            assert_ne!(ipam.address(pod).unwrap(), freed);
        }
        assert_eq!(ipam.address("g").unwrap(), freed);
    }

    #[test]
    fn a_restart_remembers_and_a_damaged_file_starts_empty() {
        let dir = tempfile::tempdir().unwrap();
        let address = table(&dir).address("a").unwrap();
        assert_eq!(table(&dir).address("a").unwrap(), address);
        std::fs::write(dir.path().join("addresses.json"), b"{\"subnet\":\"10.42.3.0/29\"").unwrap();
        assert_eq!(table(&dir).pods().count(), 0);
    }

    #[test]
    fn a_running_pods_address_is_claimed_back_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = table(&dir);
        let address = "10.42.3.4".parse().unwrap();
        assert!(ipam.claim("a", address).unwrap());
        assert!(ipam.claim("a", address).unwrap());
        assert!(!ipam.claim("b", address).unwrap());
        assert!(!ipam.claim("b", "10.42.9.1".parse().unwrap()).unwrap());
        assert_eq!(ipam.address("a").unwrap(), Some(address));
    }
}
