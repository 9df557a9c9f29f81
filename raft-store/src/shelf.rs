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
use crate::{DecodeError, VALUE_BYTES_MAX};

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
    match unread.is_empty() && state.applied() == Some(last) {
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
        let mut writer = self.write(last).await.map_err(io_error)?;
        // A record at a time: encoding all at once would take the memory of the store once more.
        for record in state.records() {
            let length = u32::try_from(record.len()).expect("a record is a little over 1 MiB");
            writer.write(&length.to_le_bytes()).await.map_err(io_error)?;
            writer.write(&record).await.map_err(io_error)?;
        }
        writer.finish().await.map_err(io_error)
    }
}

/// Keeps the kind: a full disk is waited for, a broken one is not.
fn io_error(error: SnapshotError) -> io::Error {
    let kind = match &error {
        SnapshotError::Io { source, .. } => source.kind(),
        SnapshotError::Damaged { .. } | SnapshotError::NewerFormat { .. } => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error)
}
