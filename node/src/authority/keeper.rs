//! The shell of [`skein_control::node::authority`]: what it plans, this does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use skein_control::node::admission::TOKENS;
use skein_control::node::authority::{
    Act, Change as Plan, Fingerprint, HOLDERS, Holder, Made, PREFIX, Sight, TRUST, Trust, plan,
};
use skein_net::ca::ClusterCa;
use skein_net::gossip::service::Members as Gossiped;
use skein_net::identity::NodeId;
use skein_raft_store::{Change, Expect, Op, Options, WatchError};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Authority, Shelf, Trusted, edition_of, holders_of, moment, trust_of};
use crate::admission::{all_done, json};
use crate::clock;
use crate::home::Slot;
use crate::report;
use crate::secrets;
use crate::wire::{self, Answer, Ask};

/// Time alone changes little here: it only has to be noticed some day.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// After what could not be done.
const RETRY_AFTER: Duration = Duration::from_secs(2);
const READ_MAX: Duration = Duration::from_secs(5);
/// More than one change of the authorities asks of one node; what is left is done at the next look.
const ROUNDS_MAX: usize = 8;

/// Everything that is planned by, from one state of the map.
struct Scene {
    me: NodeId,
    leads: bool,
    /// `None` while nobody knows the time: then nothing is due.
    now_ms: Option<u64>,
    voters: BTreeSet<NodeId>,
    joint: bool,
    keepers: BTreeSet<NodeId>,
    members: BTreeSet<NodeId>,
    alive: BTreeSet<NodeId>,
    /// With the revisions that writes are conditional on.
    trust: Option<(u64, Trust)>,
    holders: BTreeMap<NodeId, Holder>,
    revisions: BTreeMap<NodeId, u64>,
    shelf: Shelf,
}

impl Scene {
    fn plan(&self) -> Vec<Act<NodeId>> {
        plan(&Sight {
            me: self.me,
            leads: self.leads,
            now_ms: self.now_ms,
            voters: &self.voters,
            joint: self.joint,
            keepers: &self.keepers,
            members: &self.members,
            alive: &self.alive,
            trust: self.trust.as_ref().map(|(_, trust)| trust),
            holders: &self.holders,
            kept: &self.shelf.kept(),
        })
    }

    fn write(&self, trust: &Trust) -> Op {
        trust_op(self.trust_revision(), trust)
    }

    fn trust_revision(&self) -> Option<u64> {
        self.trust.as_ref().map(|(revision, _)| *revision)
    }

    fn now_ms(&self) -> u64 {
        self.now_ms.unwrap_or_else(clock::now_ms)
    }
}

impl Authority {
    /// Keeps what this node should keep, and as the leader renews what has to be, until `stopping`.
    pub(crate) async fn run(self, gossiped: watch::Receiver<Arc<Gossiped>>, stopping: CancellationToken) {
        let store = self.inner.store.clone();
        let mut changes = store.on_change();
        // Who is to keep them hangs on who stays a member as well.
        let mut members = self.inner.members.editions();
        loop {
            members.mark_unchanged();
            let mut records = match store.watch(PREFIX, store.state().revision()) {
                Ok(records) => records,
                Err(WatchError::Compacted { .. }) => continue,
                Err(WatchError::Stopped) => return,
            };
            self.follow();
            let pause = match self.work(&gossiped).await {
                Ok(()) => LOOK_EVERY,
                Err(error) => {
                    debug!(error, "something about the authorities could not be done yet");
                    RETRY_AFTER
                }
            };
            tokio::select! {
                () = stopping.cancelled() => return,
                _ = records.next() => {}
                changed = members.changed() => if changed.is_err() { return },
                changed = changes.changed() => if !changed { return },
                () = sleep(pause) => {}
            }
        }
    }

    /// Believes from now on whom the map says to believe.
    fn follow(&self) {
        let trusted = Arc::new(Trusted::of(&self.inner.store.state(), &self.inner.founding));
        self.inner.trusted.send_if_modified(|known| {
            let changed = *known != trusted;
            *known = trusted;
            changed
        });
    }

    /// Does what is to be done until nothing is.
    async fn work(&self, gossiped: &watch::Receiver<Arc<Gossiped>>) -> Result<(), String> {
        for _ in 0..ROUNDS_MAX {
            if self.look(gossiped).plan().is_empty() {
                return Ok(());
            }
            // What is deleted must be useless by the newest word, not only by what has arrived here.
            self.inner.store.read_index(READ_MAX).await.map_err(|error| error.to_string())?;
            let scene = self.look(gossiped);
            let acts = scene.plan();
            let mut failed = None;
            for act in acts {
                failed = self.perform(&scene, act).await.err().or(failed);
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(())
    }

    fn look(&self, gossiped: &watch::Receiver<Arc<Gossiped>>) -> Scene {
        let (store, me) = (&self.inner.store, self.inner.identity.node());
        let (state, metrics) = (store.state(), store.metrics());
        let holders = holders_of(&state);
        let members: BTreeSet<NodeId> = self.inner.members.present().into_keys().collect();
        let gossiped = gossiped.borrow();
        let is_there =
            |node: &NodeId| *node == me || gossiped.get(node).is_some_and(|member| member.state.is_active());
        Scene {
            me,
            leads: metrics.leads(),
            now_ms: clock::known_ms(),
            voters: metrics.voters.iter().map(|voter| NodeId(voter.node)).collect(),
            joint: metrics.joint,
            keepers: self.keepers(),
            alive: members.iter().copied().filter(is_there).collect(),
            members,
            trust: trust_of(&state),
            revisions: holders.iter().map(|(node, (revision, _))| (*node, *revision)).collect(),
            holders: holders.into_iter().map(|(node, (_, holder))| (node, holder)).collect(),
            shelf: self.shelf().clone(),
        }
    }

    async fn perform(&self, scene: &Scene, act: Act<NodeId>) -> Result<(), String> {
        match act {
            Act::Found => {
                let current = scene.shelf.current.as_deref().ok_or("it is not kept any more")?;
                let trust = Trust::founded(made(current, None), scene.now_ms());
                self.propose(vec![scene.write(&trust)]).await
            }
            Act::Fetch { edition, from } => self.fetch(edition.as_ref(), &from, Slot::Current).await,
            Act::FetchNext { edition, from } => self.fetch(Some(&edition), &from, Slot::Next).await,
            Act::Promote => {
                self.on_disk(|authority| authority.inner.home.promote_next_authority()).await?;
                let mut shelf = self.shelf();
                shelf.current = shelf.next.take();
                Ok(())
            }
            Act::Discard => {
                self.on_disk(|authority| authority.inner.home.forget_authority(Slot::Next)).await?;
                self.shelf().next = None;
                Ok(())
            }
            Act::Announce(holder) => {
                let change = Change::Put(json(&holder));
                self.propose(vec![op(format!("{HOLDERS}{}", scene.me), Expect::Any, change)]).await
            }
            Act::Withdraw { witness } => self.withdraw(scene, witness).await,
            Act::Make(change) => self.make(scene, change).await,
            Act::Write { trust, tokens_end } => self.write(scene, &trust, tokens_end).await,
            Act::Forget(nodes) => {
                let gone = nodes.iter().map(|node| format!("{HOLDERS}{node}"));
                self.propose(gone.map(|key| op(key, Expect::Any, Change::Delete)).collect()).await
            }
        }
    }

    /// Asks one after the other until one gives what is wanted.
    async fn fetch(&self, edition: Option<&Fingerprint>, from: &[NodeId], slot: Slot) -> Result<(), String> {
        let ask = edition.map_or(Ask::Authority, |edition| Ask::Edition(edition.0.clone()));
        let mut failure = "nobody could be asked for the authorities".to_owned();
        for peer in from {
            let answer: Result<Answer<Vec<u8>>, String> = wire::ask(&self.inner.endpoint, *peer, &ask).await;
            let taken = answer.and_then(|answer| answer).and_then(|bytes| self.check(&bytes, edition));
            match taken {
                Ok(authority) => {
                    self.keep(slot, authority).await?;
                    info!(%peer, "keeps the cluster's authorities now");
                    return Ok(());
                }
                Err(error) => failure = format!("node {peer}: {error}"),
            }
        }
        Err(failure)
    }

    fn check(&self, bytes: &[u8], edition: Option<&Fingerprint>) -> Result<ClusterCa, String> {
        let authority = ClusterCa::from_bytes(bytes).map_err(|error| error.to_string())?;
        let wanted = edition.is_none_or(|edition| edition.0 == authority.fingerprint());
        match wanted && *authority.cluster() == self.inner.founding.cluster {
            true => Ok(authority),
            false => Err("it gave other authorities than were asked for".into()),
        }
    }

    async fn keep(&self, slot: Slot, authority: ClusterCa) -> Result<(), String> {
        let authority = Arc::new(authority);
        let kept = authority.clone();
        self.on_disk(move |this| this.inner.home.set_authority(&this.inner.identity, slot, &kept)).await?;
        let mut shelf = self.shelf();
        match slot {
            Slot::Current => shelf.current = Some(authority),
            Slot::Next => shelf.next = Some(authority),
        }
        Ok(())
    }

    /// A disk may take its time; the threads that carry everything else do not wait for it.
    async fn on_disk(
        &self,
        act: impl FnOnce(&Authority) -> Result<(), crate::home::Error> + Send + 'static,
    ) -> Result<(), String> {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || act(&this)).await;
        done.map_err(|error| error.to_string())?.map_err(|error| report::Chain(&error).to_string())
    }

    async fn withdraw(&self, scene: &Scene, witness: NodeId) -> Result<(), String> {
        let said = scene.revisions.get(&witness).ok_or("the witness has no record any more")?;
        self.propose(vec![
            op(format!("{HOLDERS}{witness}"), Expect::Revision(*said), Change::Check),
            op(TRUST.to_owned(), unchanged(scene.trust_revision()), Change::Check),
            op(format!("{HOLDERS}{}", scene.me), Expect::Any, Change::Delete),
        ])
        .await?;
        self.on_disk(|this| {
            this.inner.home.forget_authority(Slot::Next)?;
            this.inner.home.forget_authority(Slot::Current)
        })
        .await?;
        *self.shelf() = Shelf::default();
        info!(%witness, "votes no more, so it keeps the cluster's authorities no more");
        Ok(())
    }

    async fn make(&self, scene: &Scene, change: Plan) -> Result<(), String> {
        let (_, trust) = scene.trust.as_ref().ok_or("there is no record any more")?;
        let (now, current) = (moment(scene.now_ms()), scene.shelf.current.as_deref());
        let made_anew = |error: skein_net::ca::Error| error.to_string();
        let in_force = current.filter(|current| current.fingerprint() == trust.current.0);
        if in_force.is_none() && scene.holders.values().any(|holder| holder.holds.contains(&trust.current)) {
            // An edition without what opens the Secrets of before would lose them.
            return Err("the edition in force is not kept here yet".into());
        }
        let (authority, cross) = match change {
            Plan::Renewal => {
                let current = current.ok_or("it is not kept any more")?;
                (current.renewed(now).map_err(made_anew)?, None)
            }
            Plan::Rotation(wish) => {
                let next = ClusterCa::anew(&self.inner.founding.cluster, now).map_err(made_anew)?;
                // Where the old roots end at once nobody is to believe anything by them.
                let cross = current.filter(|_| wish.overlap_ms.is_some());
                let cross = cross.map(|current| current.cross_sign(&next, now)).transpose();
                (next, cross.map_err(made_anew)?)
            }
        };
        let authority = match in_force {
            Some(before) => {
                let state = self.inner.store.state();
                let needed = tokio::task::spawn_blocking(move || secrets::data_keys_in_use(&state)).await;
                let needed = needed.map_err(|error| error.to_string())?;
                authority.following(before, |key| needed.contains(&key))
            }
            None => authority,
        };
        let made = made(&authority, cross.as_deref());
        let edition = authority.fingerprint();
        // On the disk first: what the map says is made must not be lost with this process.
        self.keep(Slot::Next, authority).await?;
        self.propose(vec![scene.write(&trust.with_next(made, change, scene.now_ms()))]).await?;
        let what = match change {
            Plan::Renewal => "renewed the cluster's authorities",
            Plan::Rotation(_) => "made all authorities of the cluster anew",
        };
        info!(edition, "{what}");
        Ok(())
    }

    async fn write(&self, scene: &Scene, trust: &Trust, tokens_end: bool) -> Result<(), String> {
        let mut ops = vec![scene.write(trust)];
        if tokens_end {
            let state = self.inner.store.state();
            let tokens = state.range(TOKENS, None).map(|(key, _)| key.to_string());
            ops.extend(tokens.map(|key| op(key, Expect::Any, Change::Delete)));
        }
        self.propose(ops).await?;
        let before = scene.trust.as_ref().map(|(_, trust)| trust);
        let (number, edition) = (trust.number, &trust.current);
        match before {
            Some(before) if before.clients_number() != trust.clients_number() => {
                warn!(number, %edition, "all authorities of the cluster are new; tokens of before have ended");
            }
            Some(before) if before.number != trust.number => {
                info!(number, %edition, "the cluster's authorities are renewed");
            }
            Some(before) if before.anchors.len() != trust.anchors.len() => {
                warn!("certificates of before the last change of the authorities count no more");
            }
            _ => warn!("an edition of the authorities was lost before it was in force; it is made again"),
        }
        Ok(())
    }

    async fn propose(&self, ops: Vec<Op>) -> Result<(), String> {
        let answer =
            self.inner.store.propose(ops, Options::default()).await.map_err(|error| error.to_string())?;
        // What is planned next is planned by what was just written.
        self.inner.store.wait_revision(answer.revision, READ_MAX).await;
        if all_done(&answer) { Ok(()) } else { Err("somebody else was faster".into()) }
    }
}

/// Writes the record, if it is as it was when this was planned; `None`: there was none.
pub(super) fn trust_op(revision: Option<u64>, trust: &Trust) -> Op {
    op(TRUST.to_owned(), unchanged(revision), Change::Put(json(trust)))
}

fn unchanged(revision: Option<u64>) -> Expect {
    revision.map_or(Expect::Absent, Expect::Revision)
}

fn op(key: String, expect: Expect, change: Change) -> Op {
    Op { key: key.into(), expect, change }
}

/// What everybody may know of an edition.
fn made(authority: &ClusterCa, cross: Option<&[u8]>) -> Made {
    let public = authority.public();
    let root = |bundle: &skein_net::ca::TrustBundle| STANDARD.encode(&bundle.roots()[0]);
    Made {
        fingerprint: edition_of(authority).fingerprint,
        members: root(&public.members),
        clients: root(&public.clients),
        cross: cross.map(|certificate| STANDARD.encode(certificate)),
    }
}
