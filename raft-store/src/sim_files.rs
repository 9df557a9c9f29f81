//! [`Files`] in memory, with a disk's bad habits.
//!
//! The disk knows of every file how far it was synced, and of every directory which names were. A
//! [power cut](SimDisk::power_cut) keeps of the rest what a real one keeps: some beginning, perhaps
//! with a zeroed end. What the disk does by itself follows from its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::files::{Files, Listed, Pending};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// The disk of one simulated machine. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<Disk>>);

/// What a power cut did, for counting how often tests see the rare cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Bytes that were written and are gone.
    pub bytes: u64,
    /// Bytes that are zero now.
    pub zeroed: u64,
    /// Names made, changed or removed that are as before.
    pub names: u64,
}

/// What a broken disk refuses, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Writes end with EIO, and syncs too.
    Writes,
    /// Syncs end with EIO, and after the first of them everything.
    Syncs,
}

impl SimDisk {
    /// An empty disk whose syncs take no time.
    pub fn new(seed: u64) -> Self {
        SimDisk(Arc::new(Mutex::new(Disk {
            inodes: BTreeMap::new(),
            next_inode: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            directories: BTreeSet::from([String::new()]),
            incarnation: 0,
            chance: SmallRng::seed_from_u64(seed),
            sync_time: (Duration::ZERO, Duration::ZERO),
            capacity: u64::MAX,
            broken: None,
            failed: false,
            syncs: 0,
        })))
    }

    /// Opens the store directory for a new process. Handles of the one before do nothing any more.
    pub fn files<Rt: AsyncRuntime>(&self) -> SimFiles<Rt> {
        let mut disk = self.disk();
        disk.incarnation += 1;
        // What one kernel could not write, another process may try again; the disk decides.
        disk.failed = false;
        SimFiles { disk: self.clone(), incarnation: disk.incarnation, runtime: PhantomData }
    }

    /// The process is gone; the kernel and all that was written live on.
    pub fn kill(&self) {
        self.disk().incarnation += 1;
    }

    /// The machine is off: of what was not synced only some beginning is left.
    pub fn power_cut(&self, chance: &mut impl Rng) -> Lost {
        let mut disk = self.disk();
        disk.incarnation += 1;
        let mut lost = Lost::default();
        let unsynced = std::mem::take(&mut disk.unsynced_names);
        let kept = chance.random_range(0..=unsynced.len());
        lost.names = (unsynced.len() - kept) as u64;
        unsynced.into_iter().take(kept).for_each(|change| change.apply(&mut disk.durable_names));
        disk.names = disk.durable_names.clone();
        let named: BTreeSet<u64> = disk.names.values().copied().collect();
        disk.inodes.retain(|inode, _| named.contains(inode));
        disk.inodes.values_mut().for_each(|inode| inode.power_cut(chance, &mut lost));
        lost
    }

    /// Each sync begun from now on takes a time between these two.
    pub fn set_sync_time(&self, shortest: Duration, longest: Duration) {
        self.disk().sync_time = (shortest, longest.max(shortest));
    }

    /// The disk holds this much.
    pub fn set_capacity(&self, bytes: u64) {
        self.disk().capacity = bytes;
    }

    /// How much of it files take up now.
    pub fn used(&self) -> u64 {
        self.disk().used()
    }

    /// Breaks the disk, or puts in a new one with the same bytes.
    pub fn set_broken(&self, broken: Option<Broken>) {
        self.disk().broken = broken;
    }

    /// Whether it is broken.
    pub fn is_broken(&self) -> bool {
        self.disk().broken.is_some()
    }

    /// How many syncs were begun.
    pub fn syncs(&self) -> u64 {
        self.disk().syncs
    }

    /// The names of all files.
    pub fn names(&self) -> Vec<String> {
        self.disk().names.keys().cloned().collect()
    }

    /// The bytes of `file` as a process reads them.
    pub fn bytes(&self, file: &str) -> Option<Vec<u8>> {
        let disk = self.disk();
        disk.names.get(file).map(|inode| disk.inodes[inode].bytes.clone())
    }

    /// Puts `bytes` into `file`, durably, whatever was there: damage, or a file from elsewhere.
    pub fn put(&self, file: &str, bytes: Vec<u8>) {
        let mut disk = self.disk();
        let synced = bytes.len();
        let number = disk.inode(file, true).expect("it is made where it is missing");
        disk.inodes.insert(number, Inode { bytes, synced, ..Inode::default() });
        disk.durable_names.insert(file.to_owned(), number);
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A store directory on a [`SimDisk`]. One for each run of a process.
pub struct SimFiles<Rt> {
    disk: SimDisk,
    incarnation: u64,
    runtime: PhantomData<fn() -> Rt>,
}

impl<Rt> Clone for SimFiles<Rt> {
    fn clone(&self) -> Self {
        SimFiles { disk: self.disk.clone(), incarnation: self.incarnation, runtime: PhantomData }
    }
}

impl<Rt: AsyncRuntime> SimFiles<Rt> {
    /// The disk, if the process of this handle still runs.
    fn disk(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let disk = self.disk.disk();
        if disk.incarnation == self.incarnation {
            Ok(disk)
        } else {
            Err(io::Error::new(io::ErrorKind::BrokenPipe, "the process of this handle has ended"))
        }
    }

    fn at_once<T: Send + 'static>(&self, work: impl FnOnce(&mut Disk) -> io::Result<T>) -> Pending<T> {
        let result = self.disk().and_then(|mut disk| work(&mut disk));
        Box::pin(std::future::ready(result))
    }

    /// Does `begin` at once and, a sync's time later, `end` with what it returned.
    fn with_sync<T: Send + 'static>(
        &self,
        begin: impl FnOnce(&mut Disk) -> io::Result<T>,
        end: impl FnOnce(&mut Disk, T) + Send + 'static,
    ) -> Pending<()> {
        let begun = self.disk().and_then(|mut disk| {
            let begun = begin(&mut disk)?;
            Ok((begun, disk.begin_sync()?))
        });
        let files = self.clone();
        Box::pin(async move {
            let (begun, time) = begun?;
            if !time.is_zero() {
                Rt::sleep(time).await;
            }
            let mut disk = files.disk()?;
            if disk.broken.is_some() {
                disk.failed = true;
                return Err(eio());
            }
            end(&mut disk, begun);
            Ok(())
        })
    }
}

impl<Rt: AsyncRuntime> Files for SimFiles<Rt> {
    fn beside(&self) -> Self {
        self.clone()
    }

    fn describe(&self, file: &str) -> String {
        file.to_owned()
    }

    fn make_directory(&self, directory: &str) -> Pending<()> {
        self.at_once(|disk| {
            disk.directories.insert(directory.to_owned());
            Ok(())
        })
    }

    fn list(&self, directory: &str) -> Pending<Vec<Listed>> {
        self.at_once(|disk| {
            if !disk.directories.contains(directory) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let inside = |(name, inode): (&String, &u64)| {
                let (parent, name) = name.rsplit_once('/').unwrap_or(("", name));
                let bytes = disk.inodes[inode].bytes.len() as u64;
                (parent == directory).then(|| Listed { name: name.to_owned(), bytes })
            };
            Ok(disk.names.iter().filter_map(inside).collect())
        })
    }

    fn read(&self, file: &str, at: u64, length: usize) -> Pending<Bytes> {
        self.at_once(|disk| {
            let number = disk.inode(file, false)?;
            let bytes = &disk.inodes[&number].bytes;
            let start = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
            let end = start.saturating_add(length).min(bytes.len());
            Ok(Bytes::copy_from_slice(&bytes[start..end]))
        })
    }

    fn append(&self, file: &str, at: u64, bytes: Bytes, sync: bool) -> Pending<()> {
        if !sync {
            return self.at_once(|disk| disk.append(file, at, &bytes).map(drop));
        }
        self.with_sync(|disk| disk.append(file, at, &bytes), |disk, (inode, end)| disk.synced(inode, end))
    }

    fn sync(&self, file: &str) -> Pending<()> {
        let begin = |disk: &mut Disk| {
            disk.check()?;
            let inode = disk.inode(file, false)?;
            Ok((inode, disk.inodes[&inode].bytes.len()))
        };
        self.with_sync(begin, |disk, (inode, end)| disk.synced(inode, end))
    }

    fn cut(&self, file: &str, length: u64) -> Pending<()> {
        self.at_once(|disk| {
            let number = disk.inode(file, false)?;
            let length = usize::try_from(length).map_err(io::Error::other)?;
            disk.inodes.get_mut(&number).expect("every name has one").cut(length);
            Ok(())
        })
    }

    fn reserve(&self, file: &str, bytes: u64) -> Pending<()> {
        self.at_once(|disk| {
            disk.check_space(bytes)?;
            let number = disk.inode(file, true)?;
            disk.inodes.get_mut(&number).expect("every name has one").reserved = bytes;
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> Pending<()> {
        self.at_once(|disk| {
            let number = disk.inode(from, false)?;
            disk.change_names(to, vec![(from.to_owned(), None), (to.to_owned(), Some(number))]);
            Ok(())
        })
    }

    fn remove(&self, file: &str) -> Pending<()> {
        self.at_once(|disk| {
            if disk.names.contains_key(file) {
                disk.change_names(file, vec![(file.to_owned(), None)]);
            }
            Ok(())
        })
    }

    fn sync_directory(&self, directory: &str) -> Pending<()> {
        let directory = directory.to_owned();
        let begin = |disk: &mut Disk| {
            disk.check()?;
            Ok(disk.unsynced_names.len())
        };
        self.with_sync(begin, move |disk, count| disk.synced_names(&directory, count))
    }

    fn close(&self) -> Pending<()> {
        Box::pin(std::future::ready(Ok(())))
    }
}

#[derive(Debug)]
struct Disk {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    unsynced_names: Vec<NameChange>,
    directories: BTreeSet<String>,
    /// Of the process that has the directory open.
    incarnation: u64,
    chance: SmallRng,
    sync_time: (Duration, Duration),
    capacity: u64,
    broken: Option<Broken>,
    /// A sync of this process failed.
    failed: bool,
    syncs: u64,
}

/// A file: what a process reads, and what the disk has of it.
#[derive(Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    /// The bytes up to here are durable.
    synced: usize,
    /// What the disk still has behind that: durable bytes that were cut off or overwritten.
    before: Vec<u8>,
    reserved: u64,
}

/// One change of the names of one directory, which is durable as a whole or not at all.
#[derive(Debug)]
struct NameChange {
    directory: String,
    names: Vec<(String, Option<u64>)>,
}

impl Disk {
    fn inode(&mut self, file: &str, create: bool) -> io::Result<u64> {
        match self.names.get(file) {
            Some(&number) => Ok(number),
            None if !create => Err(io::ErrorKind::NotFound.into()),
            None => {
                self.next_inode += 1;
                let number = self.next_inode;
                self.inodes.insert(number, Inode::default());
                self.change_names(file, vec![(file.to_owned(), Some(number))]);
                Ok(number)
            }
        }
    }

    fn append(&mut self, file: &str, at: u64, bytes: &[u8]) -> io::Result<(u64, usize)> {
        self.check()?;
        if self.broken == Some(Broken::Writes) {
            self.failed = true;
            return Err(eio());
        }
        self.check_space(bytes.len() as u64)?;
        let number = self.inode(file, true)?;
        let inode = self.inodes.get_mut(&number).expect("every name has one");
        let at = usize::try_from(at).map_err(io::Error::other)?;
        assert!(at <= inode.bytes.len(), "a hole in {file} at {at}");
        let end = at + bytes.len();
        let rest = inode.bytes.get(end..).unwrap_or_default().to_vec();
        inode.cut(at);
        inode.bytes.extend_from_slice(bytes);
        inode.bytes.extend_from_slice(&rest);
        Ok((number, inode.bytes.len()))
    }

    fn check(&self) -> io::Result<()> {
        if self.failed { Err(eio()) } else { Ok(()) }
    }

    fn used(&self) -> u64 {
        let named = self.names.values().map(|inode| &self.inodes[inode]);
        named.map(|inode| inode.bytes.len() as u64 + inode.reserved).sum()
    }

    fn check_space(&self, more: u64) -> io::Result<()> {
        if self.used().saturating_add(more) > self.capacity {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    }

    fn begin_sync(&mut self) -> io::Result<Duration> {
        self.syncs += 1;
        let (shortest, longest) = self.sync_time;
        Ok(if shortest == longest { shortest } else { self.chance.random_range(shortest..=longest) })
    }

    fn synced(&mut self, inode: u64, end: usize) {
        // A file removed in the meantime has nothing left to keep.
        if let Some(inode) = self.inodes.get_mut(&inode) {
            inode.synced = inode.synced.max(end.min(inode.bytes.len()));
            inode.before.clear();
        }
    }

    fn change_names(&mut self, file: &str, names: Vec<(String, Option<u64>)>) {
        let directory = file.rsplit_once('/').map_or("", |(directory, _)| directory).to_owned();
        let change = NameChange { directory, names };
        change.apply(&mut self.names);
        self.unsynced_names.push(change);
    }

    fn synced_names(&mut self, directory: &str, count: usize) {
        for (number, change) in std::mem::take(&mut self.unsynced_names).into_iter().enumerate() {
            if number < count && change.directory == directory {
                change.apply(&mut self.durable_names);
            } else {
                self.unsynced_names.push(change);
            }
        }
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        for (name, inode) in &self.names {
            match inode {
                Some(inode) => drop(names.insert(name.clone(), *inode)),
                None => drop(names.remove(name)),
            }
        }
    }
}

impl Inode {
    fn cut(&mut self, length: usize) {
        if length < self.synced {
            let cut_off = self.bytes[length..self.synced].iter().copied();
            self.before = cut_off.chain(std::mem::take(&mut self.before)).collect();
            self.synced = length;
        }
        self.bytes.truncate(length);
    }

    fn power_cut(&mut self, chance: &mut impl Rng, lost: &mut Lost) {
        let written = self.bytes.len();
        if !self.before.is_empty() && chance.random_bool(0.5) {
            self.bytes.truncate(self.synced);
            self.bytes.append(&mut self.before);
        } else {
            self.bytes.truncate(self.synced + chance.random_range(0..=written - self.synced));
        }
        lost.bytes += (written as u64).saturating_sub(self.bytes.len() as u64);
        if self.synced < self.bytes.len() && self.before.is_empty() && chance.random_bool(0.3) {
            // The length arrived, and some whole sectors, or all since the last sync, did not.
            let sectors = self.bytes.len().div_ceil(SECTOR) - self.synced / SECTOR;
            let from = (self.synced / SECTOR + chance.random_range(0..sectors)) * SECTOR;
            let from = from.max(self.synced);
            lost.zeroed += (self.bytes.len() - from) as u64;
            self.bytes[from..].fill(0);
        }
        self.before.clear();
        self.synced = self.bytes.len();
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}
