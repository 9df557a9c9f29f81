//! The leader's plans for the objects, one command after another. Every node runs this; it does nothing while another
//! one leads.
//!
//! [`Agenda`] decides what to plan and what to do about a plan that was not committed. Planning itself takes a thread
//! of its own: it never holds up those that carry Raft.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use skein_api::write::{Change, Expect, Write};
use skein_control::chance::Chance;
use skein_control::node::departure::Electorate;
use skein_control::plan::{Agenda, Fate, Next, Plan, Round};
use skein_raft_store::{
    Answer, Changes, Handle, Op, Options, Outcome, ProposeError, ReadError, TokioRuntime,
};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::admission::all_done;
use crate::cluster::op;
use crate::leader::{Needs, electorate};
use crate::picture::Picture;
use crate::watchfulness::Verdicts;

/// How long a new leader waits for the clocks of the voters.
const TIME_KNOWN_MAX: Duration = Duration::from_secs(2);
/// How long a new leader waits for what was answered before it led.
const OFFICE_MAX: Duration = Duration::from_secs(10);
/// Plans in a row that came too late, before somebody should look at it.
const OUTDATED_SOUND: u32 = 8;

/// See the module.
pub(crate) struct Planner {
    pub(crate) store: Handle<TokioRuntime>,
    /// Whether the cluster's time is known here: nothing is planned by one that may be years off.
    pub(crate) time_known: watch::Receiver<bool>,
    pub(crate) desk: Desk,
}

/// What planning looks at.
pub(crate) struct Desk {
    pub(crate) picture: Picture,
    pub(crate) verdicts: watch::Receiver<Verdicts>,
    pub(crate) needs: watch::Receiver<Needs>,
    /// The roots by which programs in pods know the API; every namespace has a copy.
    pub(crate) ca_pem: watch::Receiver<Arc<str>>,
    pub(crate) kubernetes_ip: Arc<str>,
}

/// One term of this node's leadership, and its clock.
trait Office {
    /// The time by which plans are made: earlier than what was stamped before only where a wrong clock stamped that.
    fn stamp(&self) -> Timestamp;
    /// What it knows of the log.
    fn electorate(&self, needs: &Needs) -> Electorate;
    /// Whether this node still leads in it.
    fn lasts(&self) -> bool;
    /// Waits, until that may have changed. `false` once the store has stopped.
    fn pause(&mut self, time: Duration) -> impl Future<Output = bool> + Send;
    /// Commits a command in this term or not at all.
    fn propose(&self, ops: Vec<Op>) -> impl Future<Output = Result<Answer, ProposeError>> + Send;
}

/// The office is over, and nothing more can be planned in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Term,
    Store,
}

impl Planner {
    /// Runs until `stopping`.
    pub(crate) async fn run(mut self, stopping: CancellationToken) {
        let mut changes = self.store.on_change();
        loop {
            let metrics = self.store.metrics();
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                over = self.lead(metrics.term), if metrics.leads() => if over == Over::Store { return },
                changed = changes.changed() => if !changed { return },
            }
        }
    }

    /// Plans as the leader of `term` until it is over.
    async fn lead(&mut self, term: u64) -> Over {
        // All that was ever answered must be in the picture before the first plan.
        let revision = match self.store.read_index(OFFICE_MAX).await {
            Ok(revision) => revision,
            Err(ReadError::Stopped) => return Over::Store,
            Err(error) => {
                debug!(term, %error, "could not take office yet");
                return Over::Term;
            }
        };
        // Who took over knows it from the leader before. Voters of an older build tell no clocks.
        let _ = timeout(TIME_KNOWN_MAX, self.time_known.wait_for(|known| *known)).await;
        self.desk.picture.begin_noting();
        self.desk.picture.reach(revision).await;
        let mut office = Term { store: self.store.clone(), term, changes: self.store.on_change() };
        let over = self.desk.work(&mut office).await;
        self.desk.picture.stop_noting();
        over
    }
}

impl Desk {
    /// Plans until the office is over.
    async fn work(&mut self, office: &mut impl Office) -> Over {
        let mut revisions = self.picture.revisions();
        let mut agenda = Agenda::default();
        while office.lasts() {
            let mut plan = self.plan(&mut agenda, office).await;
            for left_out in &plan.left_out {
                warn!(key = %left_out.about, why = %left_out.why, "left out of all plans");
            }
            let next = if plan.writes.is_empty() {
                Next::Wait
            } else {
                match self.commit(office, &mut plan, agenda.failures()).await {
                    Ok(fate) => agenda.became(&plan, fate),
                    Err(over) => return over,
                }
            };
            match next {
                Next::Plan => {}
                Next::Settle => {
                    if let Err(over) = self.settle(office).await {
                        return over;
                    }
                }
                Next::Wait => {
                    let time = agenda.wake_in(office.stamp());
                    if !self.wait(office, &mut revisions, time).await {
                        return Over::Store;
                    }
                }
            }
        }
        Over::Term
    }

    /// Plans on a thread that nothing else waits for.
    async fn plan(&mut self, agenda: &mut Agenda, office: &impl Office) -> Plan {
        let (view, changed) = self.picture.take_changed();
        let verdicts = self.verdicts.borrow_and_update().clone();
        let electorate = office.electorate(&self.needs.borrow_and_update());
        let now = office.stamp();
        let ca_pem = self.ca_pem.borrow_and_update().clone();
        let kubernetes_ip = self.kubernetes_ip.clone();
        let mut taken = std::mem::take(agenda);
        let planning = tokio::task::spawn_blocking(move || {
            let chance = Chance(rand::random());
            let (ca_pem, kubernetes_ip) = (&ca_pem, &kubernetes_ip);
            let round =
                Round { now, chance, verdicts: &verdicts, electorate: &electorate, ca_pem, kubernetes_ip };
            taken.add(changed);
            let plan = taken.plan(&view, &round);
            (taken, plan)
        });
        match planning.await {
            Ok((back, plan)) => {
                *agenda = back;
                plan
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Waits for something new, and not longer than `time`. Whether the store goes on.
    async fn wait(
        &mut self,
        office: &mut impl Office,
        revisions: &mut watch::Receiver<u64>,
        time: Duration,
    ) -> bool {
        tokio::select! {
            biased;
            _ = self.verdicts.changed() => true,
            Ok(()) = self.ca_pem.changed() => {
                self.picture.begin_noting();
                true
            }
            Ok(()) = self.needs.changed() => true,
            _ = revisions.changed() => true,
            goes_on = office.pause(time) => goes_on,
        }
    }

    /// Commits a plan in the term that made it, and waits until the picture shows what became of it.
    async fn commit(&self, office: &impl Office, plan: &mut Plan, failures: u32) -> Result<Fate, Over> {
        let began = tokio::time::Instant::now();
        let writes = std::mem::take(&mut plan.writes);
        let (count, bytes) = (writes.len(), plan.size.bytes);
        let first = writes.first().map(|write| write.key.clone()).unwrap_or_default();
        let proposed = office.propose(writes.into_iter().map(op).collect()).await;
        let took_ms = began.elapsed().as_millis() as u64;
        // Loud, and yet not once for each try.
        let is_news = (failures + 1).is_power_of_two();
        let (fate, error) = match proposed {
            Ok(answer) => {
                self.picture.reach(answer.revision).await;
                let fate = fate_of(&answer)?;
                // The plan's own writes come back by the watch; they change nothing for planners.
                debug!(count, bytes, took_ms, rev = answer.revision, ?fate, "planned");
                match fate {
                    Fate::StoreFull if is_news => {
                        warn!(
                            count,
                            first,
                            "the store is full: nothing is planned but what frees room in it; delete objects"
                        );
                    }
                    Fate::Outdated if is_news && failures + 1 >= OUTDATED_SOUND => {
                        warn!(
                            count,
                            first,
                            tries = failures + 1,
                            "a plan comes too late again and again, trying on"
                        );
                    }
                    _ => {}
                }
                return Ok(fate);
            }
            Err(ProposeError::NotLeader { .. }) => return Err(Over::Term),
            Err(ProposeError::Stopped) => return Err(Over::Store),
            Err(error @ (ProposeError::TooLarge(_) | ProposeError::BadKey(_))) => {
                warn!(%error, count, bytes, first, "a plan was not taken; trying smaller ones");
                return Ok(Fate::NotTaken);
            }
            Err(error @ ProposeError::Unknown(_)) => (Fate::Unknown, error),
            Err(error) => (Fate::NotDone, error),
        };
        if is_news {
            warn!(%error, count, bytes, tries = failures + 1, "a plan was not committed, trying on");
        }
        Ok(fate)
    }

    /// Waits until whatever was proposed before is decided, and shown by the picture: what is proposed later in the
    /// same term stands behind it in the log.
    async fn settle(&self, office: &mut impl Office) -> Result<(), Over> {
        while office.lasts() {
            let nothing =
                Write { key: "skein/settled".to_owned(), expect: Expect::Any, change: Change::Check };
            match office.propose(vec![op(nothing)]).await {
                Ok(answer) => {
                    fate_of(&answer)?;
                    self.picture.reach(answer.revision).await;
                    return Ok(());
                }
                Err(ProposeError::NotLeader { .. }) => return Err(Over::Term),
                Err(ProposeError::Stopped) => return Err(Over::Store),
                Err(error) => {
                    debug!(%error, "what became of a plan is not known yet");
                    if !office.pause(Duration::from_millis(100)).await {
                        return Err(Over::Store);
                    }
                }
            }
        }
        Err(Over::Term)
    }
}

/// What became of a command that has an answer.
fn fate_of(answer: &Answer) -> Result<Fate, Over> {
    if all_done(answer) {
        Ok(Fate::Committed)
    } else if answer.outcomes.contains(&Outcome::WrongTerm) {
        Err(Over::Term)
    } else if answer.outcomes.contains(&Outcome::Full) {
        Ok(Fate::StoreFull)
    } else {
        Ok(Fate::Outdated)
    }
}

/// A term of the real store.
struct Term {
    store: Handle<TokioRuntime>,
    term: u64,
    changes: Changes<TokioRuntime>,
}

impl Office for Term {
    fn stamp(&self) -> Timestamp {
        Timestamp::from_millisecond(self.store.stamp_ms() as i64).unwrap_or_default()
    }

    fn electorate(&self, needs: &Needs) -> Electorate {
        electorate(&self.store, needs)
    }

    fn lasts(&self) -> bool {
        let metrics = self.store.metrics();
        metrics.term == self.term && metrics.leads()
    }

    async fn pause(&mut self, time: Duration) -> bool {
        // An end of the wait changes nothing.
        tokio::time::timeout(time, self.changes.changed()).await.unwrap_or(true)
    }

    async fn propose(&self, ops: Vec<Op>) -> Result<Answer, ProposeError> {
        let options = Options { only_in_term: Some(self.term), ..Options::default() };
        self.store.propose(ops, options).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};

    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};
    use skein_control::plan::Bounds;
    use skein_control::size::{self, Size};
    use skein_raft_store::{Event, Refusal};

    use super::*;

    /// A store on a table, with a clock that stands still until the test moves it.
    #[derive(Clone)]
    struct Table {
        inner: Arc<Mutex<Inner>>,
        picture: Picture,
        now_ms: watch::Sender<i64>,
        /// How often the planner has asked for the time, which it does in each of its rounds.
        looks: watch::Sender<u64>,
    }

    #[derive(Default)]
    struct Inner {
        objects: BTreeMap<Arc<str>, u64>,
        revision: u64,
        /// Commands that the log holds and has not answered.
        held: Vec<Vec<Op>>,
        /// So many commands that change something are held and not answered in time.
        holds: usize,
        proposed: Vec<&'static str>,
        is_over: bool,
    }

    impl Table {
        fn new() -> Table {
            Table {
                inner: Arc::default(),
                picture: Picture::new(),
                now_ms: watch::Sender::new(1_700_000_000_000),
                looks: watch::Sender::new(0),
            }
        }

        fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
            self.inner.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn desk(&self) -> (Desk, watch::Sender<Verdicts>) {
            let (sender, verdicts) = watch::channel(Verdicts::default());
            let picture = self.picture.clone();
            let (_, needs) = watch::channel(Needs::default());
            let ca_pem = watch::channel("ca".into()).1;
            (Desk { picture, verdicts, needs, ca_pem, kubernetes_ip: "10.43.0.1".into() }, sender)
        }

        /// Applies a command: all or nothing.
        fn apply(&self, ops: Vec<Op>) -> Answer {
            let mut inner = self.lock();
            let refused = ops.iter().position(|op| {
                let held = inner.objects.get(&op.key).copied();
                !match op.expect {
                    skein_raft_store::Expect::Any => true,
                    skein_raft_store::Expect::Absent => held.is_none(),
                    skein_raft_store::Expect::Present => held.is_some(),
                    skein_raft_store::Expect::Revision(revision) => held == Some(revision),
                }
            });
            if refused.is_some() {
                let outcomes = vec![Outcome::Refused(Refusal::NotTried); ops.len()];
                return Answer { revision: inner.revision, outcomes };
            }
            let mut events = Vec::new();
            let mut outcomes = Vec::new();
            for Op { key, change, .. } in ops {
                let value = match change {
                    skein_raft_store::Change::Put(value) => Some(value),
                    skein_raft_store::Change::Delete => None,
                    skein_raft_store::Change::Check => {
                        outcomes.push(Outcome::Unchanged { revision: inner.revision });
                        continue;
                    }
                };
                inner.revision += 1;
                let revision = inner.revision;
                match value {
                    Some(_) => drop(inner.objects.insert(key.clone(), revision)),
                    None => drop(inner.objects.remove(&key)),
                }
                outcomes.push(Outcome::Done { revision });
                events.push(Event { revision, key, value, previous: None, stamp_ms: 0 });
            }
            let revision = inner.revision;
            drop(inner);
            let changes: Vec<_> = events.iter().map(crate::picture::Changing::of).collect();
            self.picture.take(&changes, revision);
            Answer { revision, outcomes }
        }

        fn put(&self, key: &str, object: Value) {
            let change = skein_raft_store::Change::Put(object.to_string().into());
            self.apply(vec![Op { key: key.into(), expect: skein_raft_store::Expect::Any, change }]);
        }

        /// Waits until the planner has gone through another round, or has ended.
        async fn looked_at(&self, before: u64) {
            let mut looks = self.looks.subscribe();
            let _ = looks.wait_for(|looks| *looks > before).await;
        }
    }

    impl Office for Table {
        fn stamp(&self) -> Timestamp {
            self.looks.send_modify(|looks| *looks += 1);
            Timestamp::from_millisecond(*self.now_ms.borrow()).expect("in range")
        }

        fn electorate(&self, _: &Needs) -> Electorate {
            Electorate::default()
        }

        fn lasts(&self) -> bool {
            !self.lock().is_over
        }

        async fn pause(&mut self, time: Duration) -> bool {
            let until = *self.now_ms.borrow() + time.as_millis() as i64;
            self.now_ms.subscribe().wait_for(|now| *now >= until).await.is_ok()
        }

        async fn propose(&self, ops: Vec<Op>) -> Result<Answer, ProposeError> {
            let changes = ops.iter().any(|op| op.change != skein_raft_store::Change::Check);
            let mut inner = self.lock();
            inner.proposed.push(if changes { "plan" } else { "nothing" });
            if changes && inner.holds > 0 {
                inner.holds -= 1;
                inner.held.push(ops);
                return Err(ProposeError::Unknown(Duration::from_secs(10)));
            }
            let before = std::mem::take(&mut inner.held);
            drop(inner);
            before.into_iter().for_each(|ops| drop(self.apply(ops)));
            Ok(self.apply(ops))
        }
    }

    fn deployment(replicas: i32) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"namespace": "default", "name": "web", "uid": "u1", "generation": 1},
            "spec": {
                "replicas": replicas, "progressDeadlineSeconds": 5,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": "x:1"}]},
                },
            },
        })
    }

    /// With a hundred writes a second the leader waited anew after each, and never until a timer was due.
    #[tokio::test]
    async fn steady_writes_put_off_no_timer() {
        let table = Table::new();
        table.put("apps/deployments/default/web", deployment(1));
        let (mut desk, _verdicts) = table.desk();
        table.picture.begin_noting();
        let mut office = table.clone();
        let planner = tokio::spawn(async move { desk.work(&mut office).await });
        let timed_out = || {
            let view = table.picture.view();
            let deployment = view.named::<Deployment>("default", "web")?.clone();
            let conditions = deployment.status.as_ref()?.conditions.clone()?;
            conditions.into_iter().find(|held| held.reason.as_deref() == Some("ProgressDeadlineExceeded"))
        };
        let mut ticks = 0;
        while timed_out().is_none() {
            ticks += 1;
            assert!(ticks < 1000, "after ten seconds of writes");
            let looks = *table.looks.borrow();
            table.put("core/configmaps/default/c", json!({"data": {"tick": ticks.to_string()}}));
            table.looked_at(looks).await;
            table.now_ms.send_modify(|now| *now += 10);
        }
        assert!(ticks > 500, "not before its time");
        table.lock().is_over = true;
        table.put("core/configmaps/default/c", json!({}));
        assert_eq!(planner.await.expect("no panic"), Over::Term);
    }

    /// The log took the plan, was slow, and has it yet: pods have names by chance, and a second plan would make as many
    /// again.
    #[tokio::test]
    async fn after_a_plan_of_unknown_outcome_nothing_is_planned_until_that_is_known() {
        let table = Table::new();
        table.put("apps/deployments/default/web", deployment(3));
        table.lock().holds = 1;
        let (mut desk, _verdicts) = table.desk();
        table.picture.begin_noting();
        let mut office = table.clone();
        let planner = tokio::spawn(async move { desk.work(&mut office).await });
        let mut revisions = table.picture.revisions();
        while table.picture.view().all::<Pod>().count() == 0 {
            revisions.changed().await.expect("the picture is there");
        }
        // It is at rest when it has looked once more.
        let looks = *table.looks.borrow();
        table.put("core/configmaps/default/c", json!({}));
        table.looked_at(looks).await;
        table.lock().is_over = true;
        table.put("core/configmaps/default/c", json!({"data": {"again": "so that it wakes"}}));
        planner.await.expect("no panic");
        assert_eq!(table.picture.view().all::<Pod>().count(), 3);
        assert_eq!(table.lock().proposed[..2], ["plan", "nothing"]);
    }

    fn put_node(table: &Table, number: usize) {
        let name = format!("n{number}");
        let record = json!({
            "node": name, "store": "", "name": name, "addresses": [], "subnet": "", "joined_ms": 0, "fresh": false,
        });
        table.put(&format!("skein/members//{name}"), record);
        let status = json!({
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        });
        let metadata = json!({"name": name, "uid": format!("uid of {name}")});
        table.put(
            &format!("core/nodes//{name}"),
            json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {}, "status": status}),
        );
    }

    /// A pod that no node has room for, and for other reasons than any other.
    fn put_greedy_pod(table: &Table, number: usize) {
        let name = format!("greedy{number}");
        let resources = json!({"requests": {"cpu": (10 + number).to_string()}});
        let container = json!({"name": "c", "image": "x:1", "resources": resources});
        table.put(
            &format!("core/pods/default/{name}"),
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": "default", "name": name, "uid": format!("uid of {name}")},
                "spec": {"containers": [container]},
            }),
        );
    }

    /// Raft's timers are served by the workers of the runtime. Here there is only one: a plan that was made on it would
    /// let none of them go off before it is done.
    #[tokio::test]
    async fn a_plan_of_a_second_delays_no_heartbeat() {
        const HEARTBEAT: Duration = Duration::from_millis(20);
        let table = Table::new();
        (0..200).for_each(|number| put_greedy_pod(&table, number));
        let (mut desk, _verdicts) = table.desk();
        let mut nodes = 0;
        // As many nodes as it takes here: machines and builds are differently fast.
        loop {
            let more = nodes.max(50);
            (nodes..nodes + more).for_each(|number| put_node(&table, number));
            nodes += more;
            let beats = Arc::new(Mutex::new(vec![tokio::time::Instant::now()]));
            let heart = tokio::spawn({
                let beats = beats.clone();
                async move {
                    loop {
                        tokio::time::sleep(HEARTBEAT).await;
                        beats.lock().expect("nobody panics holding it").push(tokio::time::Instant::now());
                    }
                }
            });
            // It has begun to wait for its first beat.
            tokio::task::yield_now().await;
            table.picture.begin_noting();
            let began = tokio::time::Instant::now();
            let plan = desk.plan(&mut Agenda::default(), &table).await;
            let ended = tokio::time::Instant::now();
            heart.abort();
            assert!(!plan.writes.is_empty(), "there is something to plan");
            let mut beats = std::mem::take(&mut *beats.lock().expect("nobody panics holding it"));
            beats.push(ended);
            let longest = beats.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
            let took = ended - began;
            if took > 50 * HEARTBEAT {
                // Other work on the machine delays it too, but not until the plan is made.
                assert!(longest < took / 2, "{longest:?} without a heartbeat in a plan of {took:?}");
                break;
            }
        }
    }

    #[test]
    fn a_plan_is_never_larger_than_what_the_store_takes() {
        let most = Size { bytes: skein_raft_store::COMMAND_BYTES_MAX, ops: skein_raft_store::OPS_MAX };
        assert_eq!(Size::COMMAND_MAX, most);
        assert_eq!(size::OBJECT_BYTES_MAX, skein_raft_store::OBJECT_BYTES_MAX);
        // An object and what comes with it, however large, leave room within a plan's limit.
        assert!(Bounds::LIMIT.fits(most) && Bounds::LIMIT.bytes > size::OBJECT_BYTES_MAX);
        for write in
            [Write::create("abc", vec![0; 10]), Write::delete("abc", 7), Write::check("x", Expect::Any)]
        {
            assert_eq!(Size::of(&write).bytes, op(write).size());
        }
    }
}
