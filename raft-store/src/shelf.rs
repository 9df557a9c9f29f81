//! Whole states as snapshots on disk, and back.
//!
//! The bytes of a snapshot are the records of [`State::records`], each behind its length (u32, little
//! endian). Log position and membership are part of the state, so nothing else is kept.

use std::io;

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use openraft::storage::SnapshotMeta;

use crate::files::Files;
use crate::machine::Shelf;
use crate::snapshot_file::{SnapshotError, Snapshots};
use crate::state::State;
use crate::wire::Meta;
use crate::{CommittedLeaderId, DecodeError, LogId, VALUE_BYTES_MAX};

/// Why the latest snapshot could not be loaded. The files are as they were.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read, or not every byte of it is as it was written.
    #[error(transparent)]
    File(#[from] SnapshotError),
    /// Its bytes are as written, but mean nothing to this build.
    #[error("the snapshot up to entry {index} could not be understood; start the newer build that wrote it")]
    Record {
        /// Last entry of the snapshot.
        index: u64,
        /// What is wrong with the record.
        #[source]
        source: DecodeError,
    },
    /// Records end early or do not belong to the name of the file.
    #[error(
        "the snapshot up to entry {index} is not whole; move the data directory away and join this node anew"
    )]
    NotWhole {
        /// Last entry of the snapshot, by its name.
        index: u64,
    },
}

/// What identifies a snapshot of `state`.
pub(crate) fn meta(state: &State) -> Meta {
    SnapshotMeta { last_log_id: state.applied(), last_membership: state.members().clone() }
}

/// The state of the latest snapshot, if there is one.
pub(crate) async fn load<F: Files>(snapshots: &Snapshots<F>) -> Result<Option<State>, LoadError> {
    load_named(snapshots, State::applied).await
}

/// The same for snapshots that are named by `name`.
async fn load_named<F: Files>(
    snapshots: &Snapshots<F>,
    name: impl Fn(&State) -> Option<LogId>,
) -> Result<Option<State>, LoadError> {
    let Some(last) = snapshots.list().await?.into_iter().next() else {
        return Ok(None);
    };
    let index = last.index;
    let mut reader = snapshots.read(last).await?;
    let (mut state, mut unread) = (State::default(), BytesMut::new());
    while let Some(bytes) = reader.next().await? {
        unread.extend_from_slice(&bytes);
        while let Some(length) = unread.first_chunk().map(|length| u32::from_le_bytes(*length) as usize) {
            if length > VALUE_BYTES_MAX {
                return Err(LoadError::NotWhole { index });
            }
            if unread.len() < 4 + length {
                break;
            }
            unread.advance(4);
            let record = unread.split_to(length);
            state.add_record(&record).map_err(|source| LoadError::Record { index, source })?;
        }
    }
    match unread.is_empty() && name(&state) == Some(last) {
        true => Ok(Some(state)),
        false => Err(LoadError::NotWhole { index }),
    }
}

#[async_trait]
impl<F: Files> Shelf for Snapshots<F> {
    async fn save(&self, state: &State) -> io::Result<()> {
        let Some(last) = state.applied() else {
            return Err(io::Error::other("a state without entries needs no snapshot"));
        };
        write(self, last, state).await.map_err(io_error)
    }
}

async fn write<F: Files>(snapshots: &Snapshots<F>, last: LogId, state: &State) -> Result<(), SnapshotError> {
    let mut writer = snapshots.write(last).await?;
    // A record at a time: encoding all at once would take the memory of the store once more.
    for record in state.records() {
        let length = u32::try_from(record.len()).expect("a record is a little over 1 MiB");
        writer.write(&length.to_le_bytes()).await?;
        writer.write(&record).await?;
    }
    writer.finish().await
}

/// Where copies of what a store without a log has followed are kept, apart from Raft's snapshots.
#[async_trait]
pub(crate) trait Copies: Send + Sync + 'static {
    /// Makes `state` the only copy, durably.
    async fn save(&self, state: &State) -> Result<(), SnapshotError>;

    /// Removes every copy.
    async fn clear(&self) -> Result<(), SnapshotError>;
}

/// The copies in one store directory. They have no place in the log, so the revision is their number.
pub(crate) struct Followed<F>(Snapshots<F>);

impl<F: Files> Followed<F> {
    /// Opens the copies and returns what the latest holds. One that is damaged is passed over: all that
    /// it stood for is fetched again from the others.
    pub(crate) async fn open(files: F) -> Result<(Self, Option<State>), SnapshotError> {
        let snapshots = Snapshots::open_in(files, "follow").await?;
        let state = load_named(&snapshots, |state| Some(number(state))).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "a copy of what was followed is not used");
            None
        });
        Ok((Followed(snapshots), state))
    }
}

#[async_trait]
impl<F: Files> Copies for Followed<F> {
    async fn save(&self, state: &State) -> Result<(), SnapshotError> {
        write(&self.0, number(state), &state.for_followers()).await?;
        self.0.prune(1).await
    }

    async fn clear(&self) -> Result<(), SnapshotError> {
        self.0.prune(0).await
    }
}

fn number(state: &State) -> LogId {
    LogId::new(CommittedLeaderId::new(0), state.revision())
}

/// Keeps the kind: a full disk is waited for, a broken one is not.
fn io_error(error: SnapshotError) -> io::Error {
    let kind = match &error {
        SnapshotError::Io { source, .. } => source.kind(),
        SnapshotError::Damaged { .. } | SnapshotError::NewerFormat { .. } => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error)
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use bytes::Bytes;
    use openraft::AsyncRuntime;
    use openraft_rt_sim::SimRuntime;

    use super::*;
    use crate::feed::Step;
    use crate::sim_files::SimDisk;

    fn state(revision: u64) -> State {
        let mut state = State::default();
        for revision in 1..=revision {
            let value = Some(Bytes::from_static(b"value"));
            state.follow(Step { revision, key: "key".into(), value, stamp_ms: revision });
        }
        state
    }

    async fn open(disk: &SimDisk) -> (Followed<crate::sim_files::SimFiles<SimRuntime>>, Option<u64>) {
        let (followed, state) = Followed::open(disk.files()).await.unwrap();
        (followed, state.map(|state| state.revision()))
    }

    #[test]
    fn the_latest_copy_is_found_again_and_is_the_only_one() {
        SimRuntime::run(async {
            let disk = SimDisk::new(0);
            let (followed, none) = open(&disk).await;
            assert_eq!(none, None);
            for revision in [3, 7] {
                followed.save(&state(revision)).await.unwrap();
            }
            assert_eq!((open(&disk).await.1, disk.names().len()), (Some(7), 1));
            let (followed, _) = open(&disk).await;
            followed.clear().await.unwrap();
            assert_eq!((open(&disk).await.1, disk.names().len()), (None, 0));
        });
    }

    #[test]
    fn a_damaged_copy_is_none_and_stops_nobody() {
        SimRuntime::run(async {
            let disk = SimDisk::new(0);
            open(&disk).await.0.save(&state(3)).await.unwrap();
            let name = disk.names().remove(0);
            let whole = disk.bytes(&name).unwrap();
            for at in 0..whole.len() {
                let mut flipped = whole.clone();
                flipped[at] ^= 0x40;
                disk.put(&name, flipped);
                assert_eq!(open(&disk).await.1, None, "flipped at {at}");
            }
            disk.put(&name, whole);
            assert_eq!(open(&disk).await.1, Some(3));
        });
    }
}
