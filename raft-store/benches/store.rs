//! What applying a command and telling the watchers cost.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use skein_raft_store::bench::Watched;
use skein_raft_store::{Change, Command, Expect, Op, Session, State};

const VALUE: usize = 512;

fn command(serial: u64, key: u64) -> Command {
    let value = Bytes::from(serial.to_le_bytes().repeat(VALUE / 8));
    let key = format!("core/pods/default/{key:08}");
    Command {
        session: Session { node: [1; 16], generation: 1 },
        serial,
        unanswered_from: serial,
        stamp_ms: serial,
        only_in_term: None,
        atomic: true,
        ops: vec![Op { key: key.into(), expect: Expect::Any, change: Change::Put(value) }],
    }
}

fn filled(objects: u64) -> State {
    let mut state = State::default();
    for serial in 1..=objects {
        state.apply(1, command(serial, serial));
    }
    state
}

fn apply(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply");
    for objects in [1_000, 100_000] {
        let mut state = filled(objects);
        let mut serial = objects;
        group.bench_function(format!("update one of {objects}"), |bencher| {
            bencher.iter(|| {
                serial += 1;
                black_box(state.apply(1, command(serial, serial % objects)))
            });
        });
        group.bench_function(format!("clone and update one of {objects}"), |bencher| {
            bencher.iter_batched(
                || {
                    serial += 1;
                    (state.clone(), command(serial, serial % objects))
                },
                |(mut copy, command)| copy.apply(1, command),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn watch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("watch");
    for (watchers, matching) in [(1, true), (1_000, true), (1_000, false)] {
        let mut watched = Watched::new(watchers, if matching { "core/pods/" } else { "core/nodes/" });
        let mut serial = 0;
        let which = if matching { "that see it" } else { "of other keys" };
        group.bench_function(format!("one change, {watchers} watchers {which}"), |bencher| {
            bencher.iter(|| {
                serial += 1;
                black_box(watched.change(command(serial, serial % 1000)))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, apply, watch);
criterion_main!(benches);
