//! Durable appends of whole batches to the log on a real disk: one write and one sync each.
//!
//! `cargo bench -p skein-raft-store --bench log`. Run it on a quiet machine; the disk under the
//! target directory is what is measured.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::{AsyncRuntime, EntryPayload};
use skein_raft_store::{
    Change, Command, CommittedLeaderId, DiskFiles, Entry, Expect, Log, LogId, Op, Session, TokioRuntime,
    VoterId, log::Limits,
};

/// Entries that stay: enough for several segments, little enough for any disk.
const KEPT: u64 = 50_000;

fn append(criterion: &mut Criterion) {
    let mut runtime = TokioRuntime::new(2);
    for value_bytes in [512, 2048] {
        let mut group = criterion.benchmark_group(format!("append {value_bytes} B"));
        for batch in [1_u64, 8, 64, 256] {
            let root =
                tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the target directory is writable");
            let files = DiskFiles::open(root.path()).expect("nobody else knows this directory");
            let opened = Log::<TokioRuntime, _>::open(files, VoterId::default(), Limits::default());
            let mut log = runtime.block_on(opened).expect("an empty directory");
            let value = Bytes::from(vec![b'x'; value_bytes]);
            let mut next = 0;
            group.throughput(Throughput::Elements(batch));
            group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
                bencher.iter(|| {
                    let entries: Vec<Entry> =
                        (next..next + batch).map(|index| entry(index, &value)).collect();
                    next += batch;
                    runtime.block_on(async {
                        log.blocking_append(black_box(entries)).await.expect("the disk works");
                        if next > KEPT {
                            log.purge(log_id(next - KEPT)).await.expect("the disk works");
                        }
                    });
                });
            });
            runtime.block_on(log.close());
        }
        group.finish();
    }
}

fn entry(index: u64, value: &Bytes) -> Entry {
    let key = format!("core/pods/default/pod-{}", index % 1000).into();
    let op = Op { key, expect: Expect::Any, change: Change::Put(value.clone()) };
    let command = Command {
        session: Session::default(),
        serial: index,
        unanswered_from: index,
        stamp_ms: 1_800_000_000_000,
        only_in_term: None,
        atomic: false,
        ops: vec![op],
    };
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(command) }
}

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1), index)
}

criterion_group!(benches, append);
criterion_main!(benches);
