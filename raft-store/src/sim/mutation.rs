//! Bugs to be put back on purpose: a checker is believed after it has caught them.

use std::cell::Cell;

/// A rule of the store that is broken while this is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The leader answers reads without asking a quorum whether it still leads.
    NoReadIndex,
    /// Reads trust openraft's own account of acknowledgements.
    OpenraftsReadIndex,
    /// A repeated proposal gets a new serial, so it may be applied twice.
    NewSerialOnRetry,
    /// openraft's default: a restarted leader leads on without an election.
    LeaderRestored,
    /// A watcher loses the first event of each batch.
    WatchEventSkipped,
    /// A watcher gets the last event of each batch again.
    WatchEventRepeated,
    /// A watcher gets the first two events of a batch in the wrong order.
    WatchEventsSwapped,
    /// A watcher is not told that a snapshot took events away.
    EventsLostAtSnapshot,
    /// Each further page of a list begins one key too late.
    IncompleteList,
    /// Now and then a write is answered and not kept.
    LostWrite,
    /// Each node stamps what it applies by its own clock.
    ClockInApply,
    /// The membership is changed whatever it has become since that was decided.
    MembersUnconditionally,
    /// A node reads from its replica without any read index.
    StaleRead,
    /// The log says that entries and votes are durable before any sync.
    AcknowledgedBeforeSync,
    /// A vote is given before its sync.
    VoteBeforeSync,
    /// Truncating after an entry takes that entry too.
    TruncateInclusive,
    /// A new segment's name is not synced.
    NoDirectorySync,
    /// An older segment is not synced before a younger one begins, or an old one goes.
    NoSyncBetweenSegments,
    /// What a start finds is not synced before it is relied on.
    NoSyncAtOpen,
    /// Stores of other clusters and incarnations are taken for this one's.
    ForeignStoresTaken,
    /// A follower that the ring has passed is dropped, and begins anew.
    CatchUpBeginsAnew,
    /// A snapshot leaves out who was answered what.
    SnapshotWithoutSessions,
    /// Raft shows what it has applied although a followed store has shown more.
    ShownAlthoughBehind,
}

thread_local! {
    static BROKEN: Cell<Option<Mutation>> = const { Cell::new(None) };
}

impl Mutation {
    /// Breaks the rule for everything that runs on this thread, until called again.
    pub fn set(broken: Option<Mutation>) {
        BROKEN.set(broken);
    }

    pub(crate) fn is_set(self) -> bool {
        BROKEN.get() == Some(self)
    }
}
