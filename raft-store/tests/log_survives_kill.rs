//! SIGKILL at any moment loses no write that was acknowledged, and no vote.
//!
//! The test starts itself again as a child that appends to a log on a real disk and says what is
//! acknowledged, kills the child somewhere in the middle, and reads what is left.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::vote::RaftLeaderId;
use openraft::{AsyncRuntime, EntryPayload};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use skein_raft_store::{
    CommittedLeaderId, DirectoryError, DiskFiles, Entry, Log, LogId, TokioRuntime, Vote, VoterId, log::Limits,
};

const DIRECTORY: &str = "SKEIN_TEST_KILLED_LOG";
const KILLS: usize = 12;
const VOTER: VoterId = VoterId { node: [1; 16], store: [2; 8] };

#[test]
fn a_killed_process_loses_nothing_it_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let mut chance = SmallRng::seed_from_u64(9);
    let (mut acknowledged, mut voted) = (None, 0);
    for kill in 0..KILLS {
        let mut child = Killed::start(root.path());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        // The kernel's pipe decides how far the child is ahead of this, so any number is any moment.
        let mut patience = chance.random_range(1..60);
        while let Some(Ok(line)) = lines.next() {
            let mut words = line.split(' ');
            match (words.next(), words.next().and_then(|number| number.parse().ok())) {
                (Some("appended"), Some(index)) => acknowledged = Some(index),
                (Some("voted"), Some(term)) => voted = term,
                _ => continue,
            }
            patience -= 1;
            if patience == 0 {
                // Everything said before the end still counts: it is read until the pipe is empty.
                child.0.kill().unwrap();
            }
        }
        child.0.wait().unwrap();
        TokioRuntime::run(async {
            let mut log = open(root.path()).await;
            let entries = log.try_get_log_entries(..).await.unwrap();
            for (index, entry) in entries.iter().enumerate() {
                assert_eq!(*entry, blank(index as u64), "kill {kill}");
            }
            let last = entries.last().map(|entry| entry.log_id.index);
            assert!(last >= acknowledged, "kill {kill}: {acknowledged:?} acknowledged, {last:?} found");
            let vote = log.read_vote().await.unwrap().map_or(0, |vote| vote.leader_id.term);
            assert!(vote >= voted, "kill {kill}: voted in term {voted}, found {vote}");
            log.close().await;
        });
    }
    assert!(acknowledged.is_some() && voted > 0);
}

/// The child: nothing, unless it is told where to write.
#[test]
fn a_child_appends_until_it_is_killed() {
    let Some(root) = env::var_os(DIRECTORY) else { return };
    TokioRuntime::run(async {
        let mut log = open(Path::new(&root)).await;
        let mut term = log.read_vote().await.unwrap().map_or(0, |vote| vote.leader_id.term);
        let mut next = log.get_log_state().await.unwrap().last_log_id.map_or(0, |last| last.index + 1);
        loop {
            let last = next + next % 5;
            log.blocking_append((next..=last).map(blank)).await.unwrap();
            say(&format!("appended {last}"));
            next = last + 1;
            if next % 7 == 0 {
                term += 1;
                let leader_id = RaftLeaderId::new(term, VOTER);
                log.save_vote(&Vote { leader_id, committed: false }).await.unwrap();
                say(&format!("voted {term}"));
            }
        }
    });
}

/// Straight to the pipe: what is said was said before the kill.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The test is gone when nobody listens.
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

async fn open(root: &Path) -> Log<TokioRuntime, DiskFiles> {
    // A killed process holds its lock until the kernel has taken it apart.
    let files = loop {
        match DiskFiles::open(root) {
            Ok(files) => break files,
            Err(DirectoryError::InUse { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    Log::open(files, VOTER, Limits { segment_bytes: 2000, ..Limits::default() }).await.unwrap()
}

fn blank(index: u64) -> Entry {
    Entry { log_id: LogId::new(CommittedLeaderId::new(1), index), payload: EntryPayload::Blank }
}

/// A child that does not outlive the test.
struct Killed(Child);

impl Killed {
    fn start(root: &Path) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "a_child_appends_until_it_is_killed", "--nocapture"]);
        command.env(DIRECTORY, root).stdout(Stdio::piped()).stderr(Stdio::null());
        Killed(command.spawn().unwrap())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // Already dead where the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
