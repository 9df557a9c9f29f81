//! Snapshots on disk: written whole or not at all, verified to the last byte when read.
//!
//! `snap/<index>-<term>.snap` (or another directory, for other snapshots than Raft's), little endian, crc32c:
//!
//! ```text
//! header   "SKEINSNP" | format u32 | index u64 | term u64 | crc u32
//! chunk    length u32 (1 to 1 MiB) | crc u32 | bytes
//! end      0 u32 | crc u32 | bytes in all chunks u64 | crc of them all u32
//! ```
//!
//! The sum of a chunk starts from the header's sum and the chunk's offset, so chunks cannot trade
//! places. A snapshot is written under another name and renamed when it is durable, so a torn one is
//! never seen: every fault in a `.snap` file is damage. Memory: one chunk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};

use crate::files::Files;
use crate::type_config::{CommittedLeaderId, LogId};

/// What this build writes, and the newest it reads.
const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"SKEINSNP";
/// Where Raft's snapshots are.
const DIRECTORY: &str = "snap";
const HEADER: usize = 32;
const CHUNK_HEAD: usize = 8;
const END: usize = CHUNK_HEAD + 12;
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// The newest, and the one before in case a copy of it is being sent.
const KEPT: usize = 2;

/// Why a snapshot could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Of a snapshot being written nothing is left; one being read is untouched.
    #[error("could not read or write the snapshot {path}; check the disk and the free space on it")]
    Io {
        /// The file or directory.
        path: String,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
    /// The file is untouched.
    #[error(
        "the snapshot {path} is damaged: {what} at offset {offset}; this node has lost what it stood for, so \
         move its data directory away and join it anew, the other nodes have everything"
    )]
    Damaged {
        /// The file.
        path: String,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// The file is untouched.
    #[error(
        "the snapshot {path} has format {found}, this build reads up to {FORMAT}; start the newer build that wrote it"
    )]
    NewerFormat {
        /// The file.
        path: String,
        /// The format it has.
        found: u32,
    },
}

/// The snapshots of one store directory.
#[derive(Clone, Debug)]
pub struct Snapshots<F> {
    files: F,
    directory: &'static str,
    /// Tells two snapshots apart that are written at the same time.
    begun: Arc<AtomicU64>,
}

impl<F: Files> Snapshots<F> {
    /// Makes the directory where it is missing, and removes what never became a snapshot.
    ///
    /// `files` should be a handle [beside](Files::beside) the log's: a snapshot of 256 MiB keeps the
    /// disk busy for seconds, and a vote must not wait for it.
    pub async fn open(files: F) -> Result<Self, SnapshotError> {
        Self::open_in(files, DIRECTORY).await
    }

    /// The same for the snapshots in `directory`.
    pub(crate) async fn open_in(files: F, directory: &'static str) -> Result<Self, SnapshotError> {
        let failed = io_error(&files, directory);
        files.make_directory(directory).await.map_err(&failed)?;
        files.sync_directory("").await.map_err(&failed)?;
        for file in files.list(directory).await.map_err(&failed)? {
            if file.name.ends_with(".tmp") {
                files.remove(&format!("{directory}/{}", file.name)).await.map_err(&failed)?;
            }
        }
        Ok(Snapshots { files, directory, begun: Arc::default() })
    }

    /// The last entry of each snapshot, newest first.
    pub async fn list(&self) -> Result<Vec<LogId>, SnapshotError> {
        let listed = self.files.list(self.directory).await.map_err(io_error(&self.files, self.directory))?;
        let mut known: Vec<LogId> = listed.iter().filter_map(|file| log_id_of(&file.name)).collect();
        known.sort_by_key(|log_id| std::cmp::Reverse((log_id.index, log_id.leader_id.term)));
        Ok(known)
    }

    /// Begins the snapshot whose last entry is `last`.
    pub async fn write(&self, last: LogId) -> Result<SnapshotWriter<F>, SnapshotError> {
        let name = self.file_name(last);
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let temporary = format!("{name}.{number}.tmp");
        let header = header(last);
        let mut writer = SnapshotWriter {
            snapshots: self.clone(),
            salt: crc32c::crc32c(&header),
            name,
            temporary,
            at: 0,
            chunk: BytesMut::new(),
            total: 0,
            sum: 0,
            done: false,
        };
        writer.append(Bytes::copy_from_slice(&header)).await?;
        Ok(writer)
    }

    /// Opens the snapshot whose last entry is `last`, one of [`list`](Self::list).
    pub async fn read(&self, last: LogId) -> Result<SnapshotReader<F>, SnapshotError> {
        let name = self.file_name(last);
        let mut reader = SnapshotReader {
            files: self.files.clone(),
            name,
            salt: 0,
            at: 0,
            total: 0,
            sum: 0,
            ended: false,
        };
        let found = reader.take(HEADER).await?;
        let format = u32::from_le_bytes(found[8..12].try_into().expect("four bytes"));
        if found.starts_with(MAGIC) && format > FORMAT {
            let path = reader.files.describe(&reader.name);
            return Err(SnapshotError::NewerFormat { path, found: format });
        }
        if found[..] != header(last) {
            reader.at = 0;
            return Err(reader.damaged("a header that is not this snapshot's"));
        }
        reader.salt = crc32c::crc32c(&found);
        Ok(reader)
    }

    /// Removes all but the newest `kept`.
    pub(crate) async fn prune(&self, kept: usize) -> Result<(), SnapshotError> {
        for old in self.list().await?.into_iter().skip(kept) {
            let name = self.file_name(old);
            self.files.remove(&name).await.map_err(io_error(&self.files, &name))?;
        }
        Ok(())
    }

    fn file_name(&self, last: LogId) -> String {
        format!("{}/{}", self.directory, file_name(last))
    }
}

/// A snapshot in the making. Dropped before [`finish`](Self::finish), it leaves nothing behind.
#[derive(Debug)]
pub struct SnapshotWriter<F: Files> {
    snapshots: Snapshots<F>,
    name: String,
    temporary: String,
    salt: u32,
    at: u64,
    /// What is not yet in the file: less than a chunk.
    chunk: BytesMut,
    total: u64,
    sum: u32,
    done: bool,
}

impl<F: Files> SnapshotWriter<F> {
    /// Adds `bytes`, of any length.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), SnapshotError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_BYTES_MAX - self.chunk.len()));
            self.chunk.extend_from_slice(now);
            bytes = later;
            if self.chunk.len() == CHUNK_BYTES_MAX {
                self.write_chunk().await?;
            }
        }
        Ok(())
    }

    /// Makes the snapshot durable under its name, and older ones but the last go.
    pub async fn finish(mut self) -> Result<(), SnapshotError> {
        if !self.chunk.is_empty() {
            self.write_chunk().await?;
        }
        let mut totals = [0; 12];
        totals[..8].copy_from_slice(&self.total.to_le_bytes());
        totals[8..].copy_from_slice(&self.sum.to_le_bytes());
        self.write_framed(0, &totals).await?;

        let files = &self.snapshots.files;
        let failed = io_error(files, &self.temporary);
        files.sync(&self.temporary).await.map_err(&failed)?;
        files.rename(&self.temporary, &self.name).await.map_err(&failed)?;
        self.done = true;
        files.sync_directory(self.snapshots.directory).await.map_err(&failed)?;
        self.snapshots.prune(KEPT).await
    }

    async fn write_chunk(&mut self) -> Result<(), SnapshotError> {
        let chunk = self.chunk.split().freeze();
        self.total += chunk.len() as u64;
        self.sum = crc32c::crc32c_append(self.sum, &chunk);
        let length = u32::try_from(chunk.len()).expect("a chunk has at most 1 MiB");
        self.write_framed(length, &chunk).await
    }

    async fn write_framed(&mut self, length: u32, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut framed = BytesMut::with_capacity(CHUNK_HEAD + bytes.len());
        framed.extend_from_slice(&length.to_le_bytes());
        framed.extend_from_slice(&sum(self.salt, self.at, length, bytes).to_le_bytes());
        framed.extend_from_slice(bytes);
        self.append(framed.freeze()).await
    }

    async fn append(&mut self, bytes: Bytes) -> Result<(), SnapshotError> {
        let files = &self.snapshots.files;
        let length = bytes.len() as u64;
        let appended = files.append(&self.temporary, self.at, bytes, false).await;
        appended.map_err(io_error(files, &self.temporary))?;
        self.at += length;
        Ok(())
    }
}

impl<F: Files> Drop for SnapshotWriter<F> {
    fn drop(&mut self) {
        if !self.done {
            // Goes on without being awaited; what it cannot remove, the next start does.
            drop(self.snapshots.files.remove(&self.temporary));
        }
    }
}

/// A snapshot being read.
#[derive(Debug)]
pub struct SnapshotReader<F> {
    files: F,
    name: String,
    salt: u32,
    at: u64,
    total: u64,
    sum: u32,
    ended: bool,
}

impl<F: Files> SnapshotReader<F> {
    /// The next bytes, verified; at most 1 MiB. Only after `None` is the snapshot known to be whole.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        if self.ended {
            return Ok(None);
        }
        let start = self.at;
        let head = self.take(CHUNK_HEAD).await?;
        let [length, expected] =
            [0, 4].map(|at| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes")));
        if length as usize > CHUNK_BYTES_MAX {
            self.at = start;
            return Err(self.damaged("an impossible length"));
        }
        let bytes = self.take(if length == 0 { END - CHUNK_HEAD } else { length as usize }).await?;
        if sum(self.salt, start, length, &bytes) != expected {
            self.at = start;
            return Err(self.damaged("a bad checksum"));
        }
        if length > 0 {
            self.total += bytes.len() as u64;
            self.sum = crc32c::crc32c_append(self.sum, &bytes);
            return Ok(Some(bytes));
        }
        let whole = bytes[..8] == self.total.to_le_bytes() && bytes[8..] == self.sum.to_le_bytes();
        let rest =
            self.files.read(&self.name, self.at, 1).await.map_err(io_error(&self.files, &self.name))?;
        match (whole, rest.is_empty()) {
            (true, true) => self.ended = true,
            (false, _) => return Err(self.damaged("a total that does not fit")),
            (true, false) => return Err(self.damaged("bytes behind the end")),
        }
        Ok(None)
    }

    async fn take(&mut self, length: usize) -> Result<Bytes, SnapshotError> {
        let read = self.files.read(&self.name, self.at, length).await;
        let bytes = read.map_err(io_error(&self.files, &self.name))?;
        if bytes.len() < length {
            return Err(self.damaged("a missing end"));
        }
        self.at += length as u64;
        Ok(bytes)
    }

    fn damaged(&self, what: &'static str) -> SnapshotError {
        SnapshotError::Damaged { path: self.files.describe(&self.name), offset: self.at, what }
    }
}

fn header(last: LogId) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[12..20].copy_from_slice(&last.index.to_le_bytes());
    bytes[20..28].copy_from_slice(&last.leader_id.term.to_le_bytes());
    let sum = crc32c::crc32c(&bytes[..28]);
    bytes[28..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn sum(salt: u32, at: u64, length: u32, bytes: &[u8]) -> u32 {
    let placed = crc32c::crc32c_append(salt, &at.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(placed, &length.to_le_bytes()), bytes)
}

fn file_name(last: LogId) -> String {
    format!("{:020}-{:020}.snap", last.index, last.leader_id.term)
}

fn log_id_of(name: &str) -> Option<LogId> {
    let (index, term) = name.strip_suffix(".snap")?.split_once('-')?;
    let log_id = LogId::new(CommittedLeaderId::new(term.parse().ok()?), index.parse().ok()?);
    // Only names that are ours to the letter.
    (file_name(log_id) == name).then_some(log_id)
}

fn io_error<F: Files>(files: &F, file: &str) -> impl Fn(io::Error) -> SnapshotError + use<F> {
    let path = files.describe(file);
    move |source| SnapshotError::Io { path: path.clone(), source }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use std::time::Duration;

    use openraft::AsyncRuntime;
    use openraft_rt_sim::SimRuntime;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::sim_files::{Broken, SimDisk};

    fn at(index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(2), index)
    }

    async fn shelf(disk: &SimDisk) -> Snapshots<crate::sim_files::SimFiles<SimRuntime>> {
        Snapshots::open(disk.files()).await.unwrap()
    }

    async fn write<F: Files>(
        snapshots: &Snapshots<F>,
        last: LogId,
        content: &[u8],
    ) -> Result<(), SnapshotError> {
        let mut writer = snapshots.write(last).await?;
        for part in content.chunks(700_001) {
            writer.write(part).await?;
        }
        writer.finish().await
    }

    async fn read<F: Files>(snapshots: &Snapshots<F>, last: LogId) -> Result<Vec<u8>, SnapshotError> {
        let mut reader = snapshots.read(last).await?;
        let mut content = Vec::new();
        while let Some(bytes) = reader.next().await? {
            assert!(bytes.len() <= CHUNK_BYTES_MAX);
            content.extend_from_slice(&bytes);
        }
        assert!(reader.next().await?.is_none(), "the end stays the end");
        Ok(content)
    }

    #[test]
    fn a_snapshot_of_any_size_is_read_as_it_was_written() {
        SimRuntime::run(async {
            let disk = SimDisk::new(0);
            let snapshots = shelf(&disk).await;
            for (index, size) in [0, 1, CHUNK_BYTES_MAX, CHUNK_BYTES_MAX + 1, 3 << 20].into_iter().enumerate()
            {
                let content: Vec<u8> = (0..size).map(|n| (n * 7 % 251) as u8).collect();
                write(&snapshots, at(index as u64), &content).await.unwrap();
                assert!(read(&snapshots, at(index as u64)).await.unwrap() == content, "{size} bytes");
            }
        });
    }

    #[test]
    fn the_newest_two_are_kept() {
        SimRuntime::run(async {
            let disk = SimDisk::new(0);
            let snapshots = shelf(&disk).await;
            for index in [8, 9, 100] {
                write(&snapshots, at(index), b"state").await.unwrap();
            }
            assert_eq!(snapshots.list().await.unwrap(), [at(100), at(9)]);
        });
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_noticed() {
        SimRuntime::run(async {
            let disk = SimDisk::new(0);
            let snapshots = shelf(&disk).await;
            let content = [5; 300];
            write(&snapshots, at(4), &content).await.unwrap();
            let name = format!("snap/{}", file_name(at(4)));
            let whole = disk.bytes(&name).unwrap();
            let mut damaged: Vec<Vec<u8>> = (0..whole.len()).map(|end| whole[..end].to_vec()).collect();
            for at in 0..whole.len() {
                for mask in [0x01, 0x80, 0xff] {
                    let mut flipped = whole.clone();
                    flipped[at] ^= mask;
                    damaged.push(flipped);
                }
            }
            damaged.push([&whole[..], &[0]].concat());
            for bytes in damaged {
                disk.put(&name, bytes.clone());
                let error = read(&snapshots, at(4)).await.expect_err("damage");
                match &error {
                    SnapshotError::Damaged { path, offset, .. } => {
                        assert!(*path == name && *offset <= whole.len() as u64, "{error}");
                    }
                    SnapshotError::NewerFormat { path, .. } => assert_eq!(*path, name),
                    SnapshotError::Io { .. } => panic!("{error}"),
                }
                assert_eq!(disk.bytes(&name).unwrap(), bytes, "a damaged snapshot is untouched");
            }
            disk.put(&name, whole);
            assert_eq!(read(&snapshots, at(4)).await.unwrap(), content);
        });
    }

    #[test]
    fn a_snapshot_under_another_name_is_noticed() {
        SimRuntime::run(async {
            let disk = SimDisk::new(0);
            let snapshots = shelf(&disk).await;
            write(&snapshots, at(4), b"state").await.unwrap();
            let [five, four] = [5, 4].map(|index| format!("snap/{}", file_name(at(index))));
            disk.put(&five, disk.bytes(&four).unwrap());
            assert!(matches!(read(&snapshots, at(5)).await, Err(SnapshotError::Damaged { offset: 0, .. })));
        });
    }

    #[test]
    fn after_a_power_cut_a_finished_snapshot_is_whole_and_a_torn_one_is_none() {
        for seed in 0..100 {
            SimRuntime::with_seed(seed).block_on(async {
                let mut chance = SmallRng::seed_from_u64(seed);
                let disk = SimDisk::new(seed);
                let snapshots = shelf(&disk).await;
                write(&snapshots, at(1), &[1; 5000]).await.unwrap();
                disk.set_sync_time(Duration::from_millis(1), Duration::from_millis(5));
                let second = SimRuntime::timeout(
                    Duration::from_millis(seed % 12),
                    Box::pin(write(&snapshots, at(2), &[2; 5000])),
                );
                let finished = second.await.is_ok();
                disk.power_cut(&mut chance);
                let snapshots = shelf(&disk).await;
                let listed = snapshots.list().await.unwrap();
                assert!(listed.contains(&at(1)), "seed {seed}");
                assert!(listed.contains(&at(2)) || !finished, "seed {seed}: a finished snapshot is lost");
                for last in listed {
                    assert_eq!(
                        read(&snapshots, last).await.unwrap(),
                        [last.index as u8; 5000],
                        "seed {seed}"
                    );
                }
                assert!(disk.names().iter().all(|name| name.ends_with(".snap")), "seed {seed}: leftovers");
            });
        }
    }

    #[test]
    fn a_full_or_broken_disk_leaves_no_half_snapshot() {
        SimRuntime::run(async {
            let disk = SimDisk::new(0);
            let snapshots = shelf(&disk).await;
            write(&snapshots, at(1), b"state").await.unwrap();
            disk.set_capacity(1000);
            let error = write(&snapshots, at(2), &[0; 5000]).await.unwrap_err();
            assert!(matches!(&error, SnapshotError::Io { source, .. } if crate::is_full(source)), "{error}");
            disk.set_capacity(u64::MAX);
            disk.set_broken(Some(Broken::Syncs));
            assert!(write(&snapshots, at(3), b"state").await.is_err());
            assert_eq!(snapshots.list().await.unwrap(), [at(1)]);
            assert_eq!(disk.names().len(), 1, "{:?}", disk.names());
        });
    }

    #[test]
    fn only_names_of_snapshots_are_snapshots() {
        let name = file_name(at(7));
        assert_eq!(log_id_of(&name), Some(at(7)));
        for other in ["7-2.snap", "x-y.snap", "00000000000000000007.snap", "notes"] {
            assert_eq!(log_id_of(other), None, "{other}");
        }
    }
}
