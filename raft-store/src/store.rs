//! Puts a store together: disk, state machine, network and Raft.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc;
use openraft::async_runtime::Watch;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use openraft::{AsyncRuntime, LogIdOptionExt, Raft};

use crate::TypeConfig;
use crate::calls::Links;
use crate::config::Config;
use crate::confirm::Rounds;
use crate::files::Files;
use crate::follow::{self, Followed};
use crate::handle::{Closing, Core, Handle, Serials, Shared};
use crate::head::Name;
use crate::incarnation::EntriesFrom;
use crate::log::{Health, Log};
use crate::machine::{Heavy, Machine, Shelf};
use crate::network::Network;
use crate::pace;
use crate::replica::Replica;
use crate::shelf::{self, Copies, LoadError, load};
use crate::snapshot_file::Snapshots;
use crate::standing::Standing;
use crate::state::State;
use crate::transport::Transport;

/// Why a store did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nothing was changed.
    #[error("could not open the raft log")]
    Log(#[from] crate::log::OpenError),
    /// Nothing was changed.
    #[error("could not load the latest snapshot")]
    Snapshot(#[from] LoadError),
    /// Log and snapshot are as they were.
    #[error("consensus did not start: {0}; see the log for what failed on the disk")]
    Raft(String),
}

/// Starts the store that lies in `files`, empty where there is none.
///
/// An empty store waits until it is [bootstrapped](Handle::bootstrap) or added as a learner. `files`
/// must be used for nothing else.
pub async fn start<Rt, F>(
    config: Config,
    files: F,
    transport: Arc<dyn Transport>,
) -> Result<Handle<Rt>, StartError>
where
    Rt: AsyncRuntime,
    F: Files,
{
    let shelf_files = files.beside();
    let snapshots = Snapshots::open(shelf_files.clone()).await.map_err(LoadError::File)?;
    let state = load(&snapshots).await?.unwrap_or_default();
    let (copies, copy) = shelf::Followed::open(shelf_files.clone()).await.map_err(LoadError::File)?;
    let log = Log::<Rt, F>::open(files, config.voter, config.log).await?;
    let open_log = log.clone();
    let closing: Closing = Box::new(move || {
        Box::pin(async move {
            open_log.close().await;
            // Closing only ever waits.
            let _ = shelf_files.close().await;
        })
    });
    let asked_log = log.clone();
    let health = Box::new(move || asked_log.health());
    let read_log = log.clone();
    let entries_from: EntriesFrom = Box::new(move |from| {
        let mut log = read_log.clone();
        Box::pin(async move { log.try_get_log_entries(from..).await })
    });
    let (shelf, copies) = (Arc::new(snapshots), Arc::new(copies));
    let disk = Disk { log, health, entries_from, shelf, state, copies, copy, closing };
    assemble(config, disk, transport).await.map_err(StartError::Raft)
}

/// What the disk held, and the ways to write to it.
pub(crate) struct Disk<L> {
    pub(crate) log: L,
    pub(crate) health: Box<dyn Fn() -> Health + Send + Sync>,
    pub(crate) entries_from: EntriesFrom,
    pub(crate) shelf: Arc<dyn Shelf>,
    /// That of the latest snapshot, or an empty one.
    pub(crate) state: State,
    /// What was kept of other stores' states while this one had no part in the log.
    pub(crate) copies: Arc<dyn Copies>,
    pub(crate) copy: Option<State>,
    /// Run after everything that writes has ended.
    pub(crate) closing: Closing,
}

/// Starts Raft on what the disk held. Committed entries behind the snapshot are applied again, which
/// also refills the ring of events.
pub(crate) async fn assemble<Rt, L>(
    config: Config,
    disk: Disk<L>,
    transport: Arc<dyn Transport>,
) -> Result<Handle<Rt>, String>
where
    Rt: AsyncRuntime,
    L: RaftLogStorage<TypeConfig<Rt>>,
{
    // Readers begin with whichever is newer, Raft with its own.
    let shown = disk.copy.filter(|copy| copy.revision() > disk.state.revision());
    let members = shown.as_ref().map(State::shared_members);
    let raft_revision = disk.state.revision();
    let shown = shown.unwrap_or_else(|| disk.state.clone());
    let replica = Replica::new(shown, raft_revision, config.ring);
    let name = Name { voter: config.voter, tag: config.tag };
    let links = Links::<Rt>::new(name, transport);
    let (tell, heavy) = mpsc::channel(1);
    let machine = Machine::new(disk.state, replica.clone(), disk.shelf, config.compaction, tell);
    let network = Network::new(links.clone());
    let raft_config = Arc::new(config.timings.raft());
    let raft = Raft::new(config.voter, raft_config, network, disk.log, machine).await;
    let raft: Core<Rt> = raft.map_err(|fatal| fatal.to_string())?;
    // Until its core has taken a first question, Raft shows an empty membership and term 0.
    raft.with_raft_state(drop_state).await.map_err(|fatal| fatal.to_string())?;
    drop(Rt::spawn(keep_log_light::<Rt>(raft.clone(), heavy)));
    let (standing, _) = Rt::Watch::channel(Standing::default());
    let handle = Handle {
        shared: Arc::new(Shared {
            name,
            session: config.session(),
            clock: config.clock,
            raft,
            replica,
            links,
            rounds: Rounds::default(),
            timings: config.timings,
            health: disk.health,
            entries_from: disk.entries_from,
            serials: Mutex::new(Serials::default()),
            stopping: AtomicBool::new(false),
            standing: Mutex::new(standing),
            heard: Mutex::new(None),
            confirmed: Mutex::new(None),
            followed: Mutex::new(Followed { members, ..Followed::default() }),
            followers: AtomicUsize::new(0),
            snapshots: AtomicUsize::new(0),
            known_revision: AtomicU64::new(0),
            stamps: Mutex::default(),
            following: Mutex::new(None),
            closing: Mutex::new(Some(disk.closing)),
        }),
    };
    handle.look();
    drop(Rt::spawn(handle.clone().mirror()));
    drop(Rt::spawn(pace::run(handle.clone())));
    let following = Rt::spawn(follow::run(handle.clone(), disk.copies));
    *handle.shared.following.lock().unwrap_or_else(PoisonError::into_inner) = Some(following);
    Ok(handle)
}

fn drop_state<C: openraft::RaftTypeConfig>(_: &openraft::RaftState<C>) {}

/// How long a snapshot that was asked for is waited for before it is asked for again.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(1);

/// Takes a snapshot whenever the log behind the last one is heavy, and drops what the log need not keep.
async fn keep_log_light<Rt: AsyncRuntime>(raft: Core<Rt>, mut heavy: mpsc::Receiver<Heavy>) {
    let mut snapshots = raft.watch_snapshot_progress();
    while let Some(Heavy { purge_to }) = heavy.next().await {
        // At least once, because the log is heavy. While one is being made Raft ignores the wish for another, and that
        // one may have begun too early to let anything go: it is wished for until one has what is dropped.
        loop {
            if raft.trigger().snapshot().await.is_err() {
                return;
            }
            if snapshots.get().index() >= purge_to {
                break;
            }
            if let Ok(Err(_)) = Rt::timeout(SNAPSHOT_PATIENCE, snapshots.changed()).await {
                return;
            }
        }
        crate::seen!("log was heavy");
        if let Some(purge_to) = purge_to
            && raft.trigger().purge_log(purge_to).await.is_err()
        {
            return;
        }
    }
}
