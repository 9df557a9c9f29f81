//! Files of every released format still open, and the newest format is written as it was.
//!
//! A new format adds a directory to `fixtures`, and a test that the old one is still read.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::vote::RaftLeaderId;
use openraft::{AsyncRuntime, EntryPayload};
use skein_raft_store::{
    Change, ClusterTag, Command, CommittedLeaderId, DiskFiles, Entry, Expect, Files, Log, LogId, Membership,
    Op, Session, Snapshots, TokioRuntime, Vote, VoterId, log::Limits, store_id,
};

const VOTER: VoterId = VoterId { node: [0x11; 16], store: [0x22; 8] };
const TAG: ClusterTag = ClusterTag { cluster: [0x33; 16], number: 4, incarnation: [0x55; 16] };
const SEGMENT: &str = "log/0000000001.seg";
const SNAPSHOT: &str = "snap/00000000000000000002-00000000000000000003.snap";
const STORE: &str = "store";

#[test]
fn the_first_format_is_read() {
    let root = tempfile::tempdir().unwrap();
    for file in [SEGMENT, SNAPSHOT, STORE] {
        let to = root.path().join(file);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(fixture(file, 1), to).unwrap();
    }
    TokioRuntime::run(async {
        let files = DiskFiles::open(root.path()).unwrap();
        assert_eq!(store_id::load_or_create(&files, VOTER.node, [9; 8], TAG).await.unwrap(), VOTER);
        let snapshots = Snapshots::open(files.beside()).await.unwrap();
        assert_eq!(snapshots.list().await.unwrap(), [at(2)]);
        let mut reader = snapshots.read(at(2)).await.unwrap();
        assert_eq!(reader.next().await.unwrap().unwrap(), "the state");
        assert!(reader.next().await.unwrap().is_none());

        let mut log = Log::<TokioRuntime, _>::open(files, VOTER, limits()).await.unwrap();
        assert_eq!(log.read_vote().await.unwrap(), Some(vote()));
        assert_eq!(log.read_committed().await.unwrap(), Some(at(2)));
        let state = log.get_log_state().await.unwrap();
        assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(at(0)), Some(at(2))));
        assert_eq!(log.try_get_log_entries(..).await.unwrap(), entries()[1..3]);
        log.close().await;
    });
}

/// Log and snapshot have their first format still, the store's id its second.
#[test]
fn the_newest_formats_are_written_to_the_byte() {
    let root = tempfile::tempdir().unwrap();
    TokioRuntime::run(write_all(root.path()));
    for (file, format) in [(SEGMENT, 1), (SNAPSHOT, 1), (STORE, 2)] {
        let written = std::fs::read(root.path().join(file)).unwrap();
        assert!(
            written == std::fs::read(fixture(file, format)).unwrap(),
            "{file} differs: a new format needs a new number"
        );
    }
}

#[test]
fn the_second_format_of_a_stores_id_is_read() {
    let root = tempfile::tempdir().unwrap();
    std::fs::copy(fixture(STORE, 2), root.path().join(STORE)).unwrap();
    TokioRuntime::run(async {
        let files = DiskFiles::open(root.path()).unwrap();
        assert_eq!(store_id::load_or_create(&files, VOTER.node, [9; 8], TAG).await.unwrap(), VOTER);
    });
}

/// One call at a time, each acknowledged before the next, so that the batches are always the same.
async fn write_all(root: &Path) {
    let files = DiskFiles::open(root).unwrap();
    store_id::load_or_create(&files, VOTER.node, VOTER.store, TAG).await.unwrap();
    let snapshots = Snapshots::open(files.beside()).await.unwrap();
    let mut writer = snapshots.write(at(2)).await.unwrap();
    writer.write(b"the state").await.unwrap();
    writer.finish().await.unwrap();

    let mut log = Log::<TokioRuntime, _>::open(files, VOTER, limits()).await.unwrap();
    log.save_vote(&vote()).await.unwrap();
    for entry in entries() {
        log.blocking_append([entry]).await.unwrap();
    }
    log.truncate_after(Some(at(2))).await.unwrap();
    log.save_vote(&vote()).await.unwrap();
    log.purge(at(0)).await.unwrap();
    log.save_vote(&vote()).await.unwrap();
    log.save_committed(Some(at(2))).await.unwrap();
    log.close().await;
}

fn limits() -> Limits {
    Limits { reserve_bytes: 0, ..Limits::default() }
}

fn vote() -> Vote {
    Vote { leader_id: RaftLeaderId::new(3, VOTER), committed: true }
}

fn at(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(3), index)
}

/// One of each kind, and one that is truncated.
fn entries() -> [Entry; 4] {
    let learner = VoterId { store: [0x33; 8], ..VOTER };
    let membership = Membership::new_with_defaults(vec![[VOTER].into()], [VOTER, learner]);
    let command = Command {
        session: Session { node: VOTER.node, generation: 4 },
        serial: 5,
        unanswered_from: 4,
        stamp_ms: 1_800_000_000_000,
        only_in_term: Some(3),
        atomic: true,
        ops: vec![
            Op { key: "a".into(), expect: Expect::Absent, change: Change::Put(Bytes::from_static(b"{}")) },
            Op { key: "b".into(), expect: Expect::Revision(7), change: Change::Delete },
        ],
    };
    let payloads = [
        EntryPayload::Membership(membership),
        EntryPayload::Blank,
        EntryPayload::Normal(command),
        EntryPayload::Blank,
    ];
    let mut index = 0;
    payloads.map(|payload| {
        index += 1;
        Entry { log_id: at(index - 1), payload }
    })
}

fn fixture(file: &str, format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/format-{format}")).join(file)
}
