//! Openraft's own suite on the log.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::impls::EmptyNode;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, OptionalSend, SnapshotMeta, StorageError, StoredMembership};
use openraft_rt_tokio::TokioRuntime;

use super::*;
use crate::type_config::CommittedLeaderId;
use crate::{Answer, DiskFiles};

type Tokio = TypeConfig<TokioRuntime>;
type DiskLog = Log<TokioRuntime, DiskFiles>;

fn ordinary() -> Limits {
    Limits { reserve_bytes: 0, ..Limits::default() }
}

#[test]
fn openrafts_suite_passes_with_ordinary_limits() {
    TokioRuntime::run(Suite::test_all(OnDisk(ordinary()))).unwrap();
}

#[test]
fn openrafts_suite_passes_when_every_segment_and_cache_is_tiny() {
    TokioRuntime::run(Suite::test_all(OnDisk(Limits {
        segment_bytes: 100,
        cache_bytes: 0,
        read_bytes_max: 300,
        ..ordinary()
    })))
    .unwrap();
}

struct OnDisk(Limits);

impl StoreBuilder<Tokio, DiskLog, Memory, tempfile::TempDir> for OnDisk {
    async fn build(&self) -> Result<(tempfile::TempDir, DiskLog, Memory), StorageError<Tokio>> {
        let root = tempfile::tempdir().unwrap();
        let files = DiskFiles::open(root.path()).unwrap();
        let log = Log::open(files, VoterId::default(), self.0).await.unwrap();
        Ok((root, log, Memory::default()))
    }
}

/// The least that the suite takes for a state machine.
#[derive(Clone, Default)]
struct Memory {
    applied: Option<LogId>,
    membership: StoredMembership<CommittedLeaderId, VoterId, EmptyNode>,
    snapshot: Arc<Mutex<Option<Kept>>>,
}

type Kept = Snapshot<CommittedLeaderId, VoterId, EmptyNode, ()>;

impl RaftStateMachine<Tokio> for Memory {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> io::Result<(Option<LogId>, StoredMembership<CommittedLeaderId, VoterId, EmptyNode>)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Tokio>>> + Unpin + OptionalSend,
    {
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            self.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            if let Some(responder) = responder {
                responder.send(Answer::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<CommittedLeaderId, VoterId, EmptyNode>,
        (): (),
    ) -> io::Result<()> {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        *lock(&self.snapshot) = Some(Snapshot { meta: meta.clone(), snapshot: () });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Kept>> {
        Ok(lock(&self.snapshot).clone())
    }
}

impl RaftSnapshotBuilder<Tokio> for Memory {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<Kept> {
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        let kept = Snapshot { meta, snapshot: () };
        *lock(&self.snapshot) = Some(kept.clone());
        Ok(kept)
    }
}
