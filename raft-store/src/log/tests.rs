//! The log as a whole: restarts, damage, power cuts, full and broken disks.

use std::time::Duration;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::async_runtime::Instant;
use openraft::storage::RaftLogStorageExt;
use openraft::vote::RaftLeaderId;
use openraft_rt_sim::SimRuntime;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::stored::log_id;
use super::*;
use crate::sim_files::{Broken, Lost, SimDisk, SimFiles};
use crate::{Change, Command, Expect, Op, Session};

type SimLog = Log<SimRuntime, SimFiles<SimRuntime>>;

/// Small enough that a handful of entries fills several segments and leaves the cache.
const SMALL: Limits = Limits {
    segment_bytes: 700,
    batch_bytes: 1 << 20,
    cache_bytes: 300,
    queue_bytes_max: 1 << 20,
    read_bytes_max: 400,
    reserve_bytes: 0,
};
const VOTER: VoterId = VoterId { node: [7; 16], store: [9; 8] };

async fn open(disk: &SimDisk) -> Result<SimLog, OpenError> {
    Log::open(disk.files(), VOTER, SMALL).await
}

/// An entry that is known by its `tag`.
fn entry(term: u64, index: u64, tag: u64) -> Entry {
    let op = Op {
        key: format!("key/{tag}").into(),
        expect: Expect::Any,
        change: Change::Put(Bytes::from(vec![1; 40])),
    };
    let command = Command {
        session: Session { node: [3; 16], generation: 1 },
        serial: tag,
        unanswered_from: 0,
        stamp_ms: 0,
        only_in_term: None,
        atomic: false,
        ops: vec![op],
    };
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(command) }
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: RaftLeaderId::new(term, VOTER), committed: false }
}

/// Everything a log remembers.
#[derive(Clone, Debug, Default, PartialEq)]
struct Content {
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    entries: Vec<Entry>,
}

async fn content(log: &SimLog) -> Content {
    let mut log = log.clone();
    let content = Content {
        vote: log.read_vote().await.unwrap(),
        purged: log.get_log_state().await.unwrap().last_purged_log_id,
        committed: log.read_committed().await.unwrap(),
        entries: log.try_get_log_entries(..).await.unwrap(),
    };
    let last = content.entries.last().map(|entry| entry.log_id);
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, last.or(content.purged));
    content
}

/// A log of several segments with a bit of everything in it, and what it held after each call.
async fn write_history(disk: &SimDisk) -> Vec<Content> {
    let mut log = open(disk).await.unwrap();
    let mut history = vec![content(&log).await];
    log.save_vote(&vote(1)).await.unwrap();
    history.push(content(&log).await);
    for index in 0..12 {
        log.blocking_append([entry(1, index, index)]).await.unwrap();
        history.push(content(&log).await);
    }
    log.save_committed(Some(log_id(1, 5))).await.unwrap();
    history.push(content(&log).await);
    log.save_vote(&vote(2)).await.unwrap();
    history.push(content(&log).await);
    log.truncate_after(Some(log_id(1, 9))).await.unwrap();
    history.push(content(&log).await);
    for index in 10..13 {
        log.blocking_append([entry(2, index, 10 + index)]).await.unwrap();
        history.push(content(&log).await);
    }
    log.purge(log_id(1, 1)).await.unwrap();
    history.push(content(&log).await);
    log.blocking_append([entry(2, 13, 23)]).await.unwrap();
    history.push(content(&log).await);
    log.close().await;
    history
}

async fn write_sample(disk: &SimDisk) -> Content {
    write_history(disk).await.pop().unwrap()
}

fn segments(disk: &SimDisk) -> Vec<String> {
    disk.names().into_iter().filter(|name| name.starts_with("log/")).collect()
}

#[test]
fn a_restart_finds_everything() {
    SimRuntime::run(async {
        let disk = SimDisk::new(0);
        let written = write_sample(&disk).await;
        assert_eq!(written.entries.len(), 12);
        assert!(segments(&disk).len() >= 3, "the sample should have several segments");
        assert_eq!(content(&open(&disk).await.unwrap()).await, written);
    });
}

#[test]
fn a_log_cut_at_any_byte_of_its_end_keeps_what_is_whole() {
    SimRuntime::run(async {
        let disk = SimDisk::new(0);
        let history = write_history(&disk).await;
        let last = segments(&disk).pop().unwrap();
        let whole = disk.bytes(&last).unwrap();
        let mut reached = 0;
        for end in 0..whole.len() {
            disk.put(&last, whole[..end].to_vec());
            let kept = content(&open(&disk).await.unwrap()).await;
            // A longer file never tells less, and none tells what never was.
            let at = history.iter().rposition(|held| *held == kept);
            let at = at.unwrap_or_else(|| panic!("never held after a cut at {end}: {kept:?}"));
            assert!(at >= reached, "a longer file lost something at {end}");
            reached = at;
            // The torn end is gone for good: the next start sees the same.
            assert_eq!(content(&open(&disk).await.unwrap()).await, kept, "cut at {end}");
            assert!(disk.bytes(&last).is_none_or(|bytes| bytes.len() <= end));
        }
        assert_eq!(reached, history.len() - 2, "all but the last byte is all but the last call");
    });
}

#[test]
fn an_older_segment_cut_at_any_byte_refuses() {
    SimRuntime::run(async {
        let disk = SimDisk::new(0);
        write_sample(&disk).await;
        let older = segments(&disk)[1].clone();
        let whole = disk.bytes(&older).unwrap();
        for end in 0..whole.len() {
            disk.put(&older, whole[..end].to_vec());
            // Cut between two records, it is the next segment that tells of the missing ones.
            let refused = open(&disk).await.err().unwrap_or_else(|| panic!("cut at {end}"));
            assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
            assert_eq!(disk.bytes(&older).unwrap().len(), end, "a refused log is untouched");
        }
    });
}

#[test]
fn any_flipped_byte_anywhere_refuses_and_says_where() {
    SimRuntime::run(async {
        let disk = SimDisk::new(0);
        let written = write_sample(&disk).await;
        for segment in segments(&disk) {
            let whole = disk.bytes(&segment).unwrap();
            for at in 0..whole.len() {
                for mask in [0x01, 0x80, 0xff] {
                    let mut flipped = whole.clone();
                    flipped[at] ^= mask;
                    disk.put(&segment, flipped.clone());
                    let error =
                        open(&disk).await.err().unwrap_or_else(|| panic!("{segment} flipped at {at}"));
                    match error {
                        OpenError::Damaged { path, offset, .. } => {
                            assert!(path == segment && offset <= at as u64, "{path} {offset}");
                        }
                        // A flip in the format itself.
                        OpenError::NewerFormat { path, .. } => {
                            assert!(path == segment && (8..12).contains(&at))
                        }
                        other => panic!("{other}"),
                    }
                    assert_eq!(disk.bytes(&segment).unwrap(), flipped, "a refused log is untouched");
                }
            }
            disk.put(&segment, whole);
        }
        assert_eq!(content(&open(&disk).await.unwrap()).await, written);
    });
}

#[test]
fn a_missing_segment_and_another_voters_log_refuse() {
    SimRuntime::run(async {
        let disk = SimDisk::new(0);
        write_sample(&disk).await;
        let files = disk.files::<SimRuntime>();
        let other = VoterId { store: [1; 8], ..VOTER };
        let refused = Log::<SimRuntime, _>::open(files.clone(), other, SMALL).await.err().unwrap();
        assert!(matches!(refused, OpenError::Damaged { what: What::Foreign, offset: 0, .. }), "{refused}");
        for missing in &segments(&disk)[..segments(&disk).len() - 1] {
            let bytes = disk.bytes(missing).unwrap();
            disk.files::<SimRuntime>().remove(missing).await.unwrap();
            let refused = open(&disk).await.err().unwrap();
            assert!(matches!(&refused, OpenError::Missing { path } if path == missing), "{refused}");
            disk.put(missing, bytes);
        }
    });
}

/// Random work under power cuts and kills. After each the log must be what it was after some call,
/// not earlier than the last one that was acknowledged.
#[test]
fn nothing_acknowledged_is_lost_by_power_cuts_and_nothing_comes_back_out_of_order() {
    let mut lost = Lost::default();
    for seed in 0..150 {
        let survived = SimRuntime::with_seed(seed).block_on(survive(seed, &mut lost));
        survived.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
    assert!(lost.bytes > 0 && lost.zeroed > 0 && lost.names > 0, "the cuts were too mild: {lost:?}");
}

/// A checker is believed after it has caught the bugs it is for.
#[test]
fn the_power_cuts_catch_each_rule_that_is_broken_on_purpose() {
    use crate::sim::Mutation::*;
    let rules = [
        AcknowledgedBeforeSync,
        VoteBeforeSync,
        TruncateInclusive,
        NoDirectorySync,
        NoSyncBetweenSegments,
        NoSyncAtOpen,
    ];
    for rule in rules {
        crate::sim::Mutation::set(Some(rule));
        let caught = (0..2000)
            .find(|&seed| SimRuntime::with_seed(seed).block_on(survive(seed, &mut Lost::default())).is_err());
        crate::sim::Mutation::set(None);
        assert!(caught.is_some(), "{rule:?} is not noticed");
    }
}

/// What a log should hold after each call, and what it must hold at least.
struct Expected {
    /// After each call, or each entry of one.
    history: Vec<Content>,
    /// Position in `history` that was acknowledged as durable.
    durable: Arc<Mutex<usize>>,
}

impl Expected {
    fn of(content: Content) -> Self {
        Expected { history: vec![content], durable: Arc::default() }
    }

    fn now(&self) -> Content {
        self.history.last().expect("it begins with one").clone()
    }

    /// The last call is durable once `done` says so.
    fn durable_when<T: Send + 'static>(&self, done: impl Future<Output = Option<T>> + Send + 'static) {
        let (durable, position) = (self.durable.clone(), self.history.len() - 1);
        drop(SimRuntime::spawn(async move {
            if done.await.is_some() {
                let mut durable = lock(&durable);
                *durable = position.max(*durable);
            }
        }));
    }

    fn check(&self, found: &Content) -> Result<(), String> {
        let durable = *lock(&self.durable);
        if self.history[durable..].contains(found) {
            return Ok(());
        }
        let (least, most) = (&self.history[durable], self.now());
        Err(format!("acknowledged {least:?}\nasked {most:?}\nfound {found:?}"))
    }
}

async fn survive(seed: u64, lost: &mut Lost) -> Result<(), String> {
    let mut chance = SmallRng::seed_from_u64(seed);
    let disk = SimDisk::new(seed);
    disk.set_sync_time(Duration::from_micros(100), Duration::from_millis(20));
    let mut log = open(&disk).await.map_err(text)?;
    let mut expected = Expected::of(Content::default());
    let (mut tag, mut term) = (0, 1);
    for _ in 0..120 {
        let mut now = expected.now();
        match chance.random_range(0..100) {
            0..50 => {
                let last = now.entries.last().map(|entry| entry.log_id).or(now.purged);
                let first = last.map_or(0, |last| last.index + 1);
                let mut entries = Vec::new();
                for index in first..first + chance.random_range(1..4) {
                    tag += 1;
                    entries.push(entry(term, index, tag));
                    now.entries.push(entry(term, index, tag));
                    // Each entry may be the last that arrives.
                    expected.history.push(now.clone());
                }
                let (flushed, done) = <SimRuntime as AsyncRuntime>::Oneshot::channel();
                log.append(entries, IOFlushed::signal(flushed)).await.map_err(text)?;
                expected.durable_when(async { done.await.ok()?.ok() });
            }
            50..60 => {
                term += 1;
                now.vote = Some(vote(term));
                expected.history.push(now);
                let mut log = log.clone();
                expected.durable_when(async move { log.save_vote(&vote(term)).await.ok() });
                // Recorded before anything else happens, awaited or not.
                SimRuntime::sleep(Duration::from_micros(10)).await;
            }
            60..68 if !now.entries.is_empty() => {
                let kept = chance.random_range(0..now.entries.len());
                let last = kept.checked_sub(1).map(|at| now.entries[at].log_id).or(now.purged);
                now.entries.truncate(kept);
                expected.history.push(now);
                log.truncate_after(last).await.map_err(text)?;
            }
            68..76 if !now.entries.is_empty() => {
                let upto = chance.random_range(0..now.entries.len());
                let purged = now.entries[upto].log_id;
                now.purged = Some(purged);
                now.entries.drain(..=upto);
                expected.history.push(now);
                log.purge(purged).await.map_err(text)?;
            }
            76..84 if !now.entries.is_empty() => {
                now.committed = now.entries.first().map(|entry| entry.log_id);
                log.save_committed(now.committed).await.map_err(text)?;
                expected.history.push(now);
            }
            84..93 => SimRuntime::sleep(Duration::from_millis(chance.random_range(1..40))).await,
            93..98 => {
                if chance.random_bool(0.7) {
                    let cut = disk.power_cut(&mut chance);
                    lost.bytes += cut.bytes;
                    lost.zeroed += cut.zeroed;
                    lost.names += cut.names;
                } else {
                    disk.kill();
                }
                log = open(&disk).await.map_err(text)?;
                let found = content(&log).await;
                expected.check(&found)?;
                // Whatever was found is durable from now on.
                expected = Expected::of(found);
            }
            _ => {
                let seen = content(&log).await;
                if seen != now {
                    return Err(format!("readers should see each call at once: {now:?}, not {seen:?}"));
                }
            }
        }
    }
    Ok(())
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

#[test]
fn many_appends_share_a_sync() {
    SimRuntime::run(async {
        let disk = SimDisk::new(0);
        let mut log = SimLog::open(disk.files(), VOTER, Limits::default()).await.unwrap();
        log.blocking_append([entry(1, 0, 0)]).await.unwrap();
        disk.set_sync_time(Duration::from_millis(10), Duration::from_millis(10));
        let before = disk.syncs();
        let mut waiting = Vec::new();
        for index in 1..=100 {
            let (flushed, done) = <SimRuntime as AsyncRuntime>::Oneshot::channel();
            log.append([entry(1, index, index)], IOFlushed::signal(flushed)).await.unwrap();
            waiting.push(done);
        }
        for done in waiting {
            done.await.unwrap().unwrap();
        }
        assert!(disk.syncs() - before <= 2, "{} syncs", disk.syncs() - before);
    });
}

/// A disk of ten seconds a sync cost the leader its office, because purging waited for it.
#[test]
fn purging_truncating_and_committing_do_not_wait_for_the_disk() {
    SimRuntime::run(async {
        let disk = SimDisk::new(0);
        let mut log = open(&disk).await.unwrap();
        log.blocking_append((0..10).map(|index| entry(1, index, index))).await.unwrap();
        disk.set_sync_time(Duration::from_secs(10), Duration::from_secs(10));
        let start = <SimRuntime as AsyncRuntime>::Instant::now();
        log.save_committed(Some(log_id(1, 8))).await.unwrap();
        log.truncate_after(Some(log_id(1, 8))).await.unwrap();
        log.purge(log_id(1, 4)).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        log.save_vote(&vote(2)).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(10), "a vote does wait");
    });
}

#[test]
fn purged_segments_leave_the_disk_and_the_log_still_opens() {
    SimRuntime::run(async {
        let disk = SimDisk::new(0);
        let mut log = open(&disk).await.unwrap();
        log.save_vote(&vote(3)).await.unwrap();
        for index in 0..100 {
            log.blocking_append([entry(3, index, index)]).await.unwrap();
        }
        let many = segments(&disk).len();
        log.purge(log_id(3, 97)).await.unwrap();
        log.blocking_append([entry(3, 100, 100)]).await.unwrap();
        assert!(many > 10 && segments(&disk).len() <= 2, "{many} segments, then {:?}", segments(&disk));
        assert_eq!(log.size().entries, 3);
        let before = content(&log).await;
        log.close().await;
        assert_eq!(content(&open(&disk).await.unwrap()).await, before);
    });
}

#[test]
fn old_entries_come_from_the_files_in_bounded_pieces() {
    SimRuntime::run(async {
        let disk = SimDisk::new(0);
        let mut log = open(&disk).await.unwrap();
        for index in 0..50 {
            log.blocking_append([entry(1, index, index)]).await.unwrap();
        }
        let some = log.limited_get_log_entries(3, 50).await.unwrap();
        assert!(some.len() > 1 && some.len() < 10, "{} entries", some.len());
        assert_eq!(some[0], entry(1, 3, 3));
        let streamed: Vec<Entry> =
            log.entries_stream(2..49).await.map(|entry| entry.unwrap()).collect().await;
        assert_eq!(streamed, (2..49).map(|index| entry(1, index, index)).collect::<Vec<_>>());
        assert!(log.limited_get_log_entries(7, 7).await.unwrap().is_empty());
    });
}

#[test]
fn holes_falling_terms_and_giants_are_refused() {
    SimRuntime::run(async {
        let disk = SimDisk::new(0);
        let mut log = open(&disk).await.unwrap();
        log.blocking_append([entry(5, 0, 0)]).await.unwrap();
        assert!(log.blocking_append([entry(5, 2, 0)]).await.is_err(), "a hole");
        assert!(log.blocking_append([entry(4, 1, 0)]).await.is_err(), "a falling term");
        let mut giant = entry(5, 1, 0);
        if let EntryPayload::Normal(command) = &mut giant.payload {
            command.ops[0].change = Change::Put(Bytes::from(vec![0; crate::VALUE_BYTES_MAX]));
        }
        assert!(log.blocking_append([giant]).await.is_err(), "a giant");
        log.blocking_append([entry(5, 1, 1)]).await.unwrap();
        log.close().await;
        assert_eq!(content(&open(&disk).await.unwrap()).await.entries, [entry(5, 0, 0), entry(5, 1, 1)]);
    });
}

#[test]
fn a_broken_disk_ends_the_log_for_good() {
    for broken in [Broken::Writes, Broken::Syncs] {
        SimRuntime::run(async {
            let disk = SimDisk::new(0);
            let mut log = open(&disk).await.unwrap();
            log.blocking_append([entry(1, 0, 0)]).await.unwrap();
            disk.set_broken(Some(broken));
            assert!(log.blocking_append([entry(1, 1, 1)]).await.is_err(), "{broken:?}");
            // Even a disk that works again is not believed by this process.
            disk.set_broken(None);
            assert!(log.save_vote(&vote(1)).await.is_err());
            assert!(log.read_vote().await.is_err());
            assert!(matches!(log.health(), Health::Failed(_)));
            log.close().await;
            let next = open(&disk).await.unwrap();
            assert_eq!(content(&next).await.entries[0], entry(1, 0, 0));
        });
    }
}

#[test]
fn a_full_disk_stops_nothing_but_time() {
    SimRuntime::run(async {
        let disk = SimDisk::new(0);
        disk.set_capacity(30_000);
        let limits = Limits { reserve_bytes: 5_000, ..SMALL };
        let mut log = SimLog::open(disk.files(), VOTER, limits).await.unwrap();
        let mut index = 0;
        while log.health() == Health::Good {
            log.blocking_append([entry(1, index, index)]).await.unwrap();
            index += 1;
        }
        assert_eq!(log.health(), Health::Full);
        // The reserve is given up, so that the log can say that it needs less.
        log.purge(log_id(1, index - 2)).await.unwrap();
        log.save_vote(&vote(1)).await.unwrap();
        SimRuntime::sleep(Duration::from_secs(5)).await;
        assert_eq!(log.health(), Health::Good, "users may write 5 s after there is space");

        // No reserve can help where somebody else takes all: it waits, and goes on when there is room.
        disk.set_capacity(0);
        let (flushed, done) = <SimRuntime as AsyncRuntime>::Oneshot::channel();
        log.append([entry(1, index, index)], IOFlushed::signal(flushed)).await.unwrap();
        SimRuntime::sleep(Duration::from_secs(60)).await;
        assert_eq!(log.health(), Health::Full);
        disk.set_capacity(30_000);
        done.await.unwrap().unwrap();
        SimRuntime::sleep(Duration::from_secs(5)).await;
        assert_eq!(log.health(), Health::Good);
    });
}

/// Only silence was used to look for space once, so a log that was written to more often than once a
/// second stayed full for ever.
#[test]
fn a_log_that_is_never_silent_notices_that_its_disk_has_space_again() {
    SimRuntime::run(async {
        let disk = SimDisk::new(0);
        disk.set_capacity(30_000);
        let limits = Limits { reserve_bytes: 5_000, ..SMALL };
        let mut log = SimLog::open(disk.files(), VOTER, limits).await.unwrap();
        let mut index = 0;
        while log.health() == Health::Good {
            log.blocking_append([entry(1, index, index)]).await.unwrap();
            index += 1;
        }
        disk.set_capacity(1 << 20);
        for _ in 0..10 {
            log.blocking_append([entry(1, index, index)]).await.unwrap();
            index += 1;
            SimRuntime::sleep(Duration::from_millis(400)).await;
        }
        assert_eq!(log.health(), Health::Good);
    });
}

#[test]
fn a_newer_format_is_refused_untouched() {
    SimRuntime::run(async {
        let disk = SimDisk::new(0);
        write_sample(&disk).await;
        let first = segments(&disk).remove(0);
        let mut bytes = disk.bytes(&first).unwrap();
        bytes[8] = 2;
        disk.put(&first, bytes.clone());
        let refused = open(&disk).await.err().unwrap();
        assert!(matches!(refused, OpenError::NewerFormat { found: 2, newest: 1, .. }), "{refused}");
        assert_eq!(disk.bytes(&first).unwrap(), bytes);
    });
}

#[test]
fn a_closed_log_says_so() {
    SimRuntime::run(async {
        let disk = SimDisk::new(0);
        let mut log = open(&disk).await.unwrap();
        log.close().await;
        assert!(log.save_vote(&vote(1)).await.unwrap_err().to_string().contains("closed"));
        log.close().await;
    });
}
