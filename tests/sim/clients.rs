//! Users: ConfigMaps written and read back for the checks, Deployments made, scaled, changed, deleted.

use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::async_runtime::Instant as _;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use skein_api::kinds;
use skein_api::object::{self, Context, DeleteOptions, Deletion, Update};
use skein_api::write::Write;
use skein_control::chance::Chance;
use skein_raft_store::sim::SimRt;
use skein_raft_store::{Change, Expect, Op, Options, Outcome as Applied, ProposeError};

use crate::history::{Call, Outcome, What};
use crate::planner;
use crate::world::{Asked, Now, World};

const DEPLOYMENTS: u32 = 3;
const CONFIG_MAPS: &str = "core/configmaps/default/";
/// Few, so that writes meet each other.
const CONFIG_MAPS_MAX: u32 = 4;
/// So that there is more than one.
const PAGE: usize = 2;
const PAGE_AFTER: Duration = Duration::from_millis(5);
const TIMEOUT: Duration = Duration::from_secs(3);

/// Writes and reads until `until`.
pub(crate) async fn write_and_read(world: Arc<World>, client: usize, seed: u64, until: Now) {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut serial = 0;
    while Now::now() < until {
        serial += 1;
        let number = chance.random_range(0..world.plan.nodes);
        let key = format!("{CONFIG_MAPS}c{}", chance.random_range(0..CONFIG_MAPS_MAX));
        let begin = world.elapsed();
        let what = if chance.random_bool(0.1) {
            list(&world, number, CONFIG_MAPS).await
        } else if chance.random_bool(0.7) {
            let value =
                json!({"metadata": {"namespace": "default"}, "data": {"from": client, "write": serial}});
            let expect = if chance.random_bool(0.8) { Expect::Any } else { Expect::Absent };
            write(&world, number, key, expect, value.to_string()).await
        } else {
            read(&world, number, key).await
        };
        let call = what.map(|what| Call { begin, end: world.elapsed(), what });
        world.note(&format!("client {client} by node {number}: {call:?}"));
        world.history.lock().unwrap().calls.extend(call);
        SimRt::sleep(Duration::from_millis(chance.random_range(20..300))).await;
    }
}

/// One conditional put through one node; `None` if that node was down.
pub(crate) async fn write(
    world: &Arc<World>,
    number: usize,
    key: String,
    expect: Expect,
    value: String,
) -> Option<What> {
    let op = Op { key: key.as_str().into(), expect, change: Change::Put(value.clone().into()) };
    let options = Options { timeout: TIMEOUT, ..Options::default() };
    let begin = world.elapsed();
    let by = world.site(number).map(|site| site.id);
    let asked =
        world.ask(number, move |site| Box::pin(async move { site.store.propose(vec![op], options).await }));
    let outcome = match asked.await {
        Asked::NotRunning => return None,
        Asked::Answer(Ok(answer)) => match answer.outcomes[0] {
            Applied::Done { revision } => {
                world.wrote(by, begin);
                Outcome::Done(revision)
            }
            _ => Outcome::NotDone,
        },
        Asked::Answer(Err(ProposeError::NoQuorum(_) | ProposeError::Busy)) => Outcome::NotDone,
        Asked::Answer(Err(_)) | Asked::Lost => Outcome::Unknown,
    };
    world.count(match outcome {
        Outcome::Done(_) => "writes done",
        Outcome::NotDone => "writes refused",
        Outcome::Unknown => "writes unknown",
    });
    Some(What::Write { key, value, outcome })
}

/// Writes as fast as a pause after each write allows, through one node after another, until `until`.
pub(crate) async fn burst(world: Arc<World>, pause: Duration, until: Now) {
    let value = "x".repeat(1000);
    for serial in 0_usize.. {
        if Now::now() >= until || world.is_healed() {
            return;
        }
        let key = format!("skein/burst//b{}", serial % 20);
        let value = format!("{serial} {value}");
        let asked = world.ask(serial % world.plan.nodes, move |site| {
            Box::pin(async move {
                let op = Op { key: key.into(), expect: Expect::Any, change: Change::Put(value.into()) };
                site.store.propose(vec![op], Options { timeout: TIMEOUT, ..Options::default() }).await.is_ok()
            })
        });
        if matches!(asked.await, Asked::Answer(true)) {
            world.count("writes of bursts");
        }
        SimRt::sleep(pause).await;
    }
}

async fn read(world: &Arc<World>, number: usize, key: String) -> Option<What> {
    let wanted = key.clone();
    let asked = world.ask(number, move |site| {
        Box::pin(async move {
            site.store.read_index(TIMEOUT).await.ok()?;
            let state = site.store.state();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Some((state.get(&wanted).map(|object| text(&object.value)), state.revision()))
        })
    });
    let Asked::Answer(Some((value, revision))) = asked.await else { return None };
    world.count("reads");
    Some(What::Read { key, value, revision })
}

/// Page by page, all of the state that the first page came from.
async fn list(world: &Arc<World>, number: usize, prefix: &'static str) -> Option<What> {
    let asked = world.ask(number, move |site| {
        Box::pin(async move {
            site.store.read_index(TIMEOUT).await.ok()?;
            let state = site.store.state();
            let mut found: Vec<(String, String)> = Vec::new();
            loop {
                let after = found.last().map(|(key, _)| key.clone());
                let page = state.range(prefix, after.as_deref()).take(PAGE);
                let before = found.len();
                found.extend(page.map(|(key, object)| {
                    (key.to_string(), String::from_utf8_lossy(&object.value).into_owned())
                }));
                if found.len() < before + PAGE {
                    return Some((found, state.revision()));
                }
                SimRt::sleep(PAGE_AFTER).await;
            }
        })
    });
    let Asked::Answer(Some((found, revision))) = asked.await else { return None };
    world.count("lists");
    Some(What::List { prefix, found, revision })
}

/// Changes Deployments until `until`.
pub(crate) async fn deploy(world: Arc<World>, seed: u64, until: Now) {
    let mut chance = StdRng::seed_from_u64(seed);
    while Now::now() < until {
        let number = chance.random_range(0..world.plan.nodes);
        let name = format!("d{}", chance.random_range(0..DEPLOYMENTS));
        let wish = match chance.random_range(0..10) {
            0..6 => Wish::Scale(chance.random_range(0..6)),
            6..9 => Wish::Image(chance.random_range(0..3)),
            _ => Wish::Delete,
        };
        let uid = Chance(chance.random()).of(&name).uid();
        let asked = world.ask(number, move |site| {
            Box::pin(async move {
                let state = site.store.state();
                let now = planner::stamp(&site);
                let stored = state.get(&format!("apps/deployments/default/{name}"));
                let stored = stored.map(|stored| (stored.mod_rev, stored.value.clone()));
                let write =
                    wanted(&name, stored.as_ref().map(|(at, bytes)| (*at, &**bytes)), wish, &uid, now)?;
                let options = Options { timeout: TIMEOUT, ..Options::default() };
                site.store.propose(vec![planner::op(write)], options).await.ok()
            })
        });
        if let Asked::Answer(Some(answer)) = asked.await
            && matches!(answer.outcomes[0], Applied::Done { .. })
        {
            world.count("deployments changed");
        }
        SimRt::sleep(Duration::from_millis(chance.random_range(300..2500))).await;
    }
}

#[derive(Clone, Copy)]
enum Wish {
    Scale(u32),
    Image(u32),
    Delete,
}

/// The write that the API would propose.
fn wanted(
    name: &str,
    stored: Option<(u64, &[u8])>,
    wish: Wish,
    uid: &str,
    now: jiff::Timestamp,
) -> Option<Write> {
    let kind = kinds::by_kind("apps", "Deployment").expect("it is served");
    let key = kind.key("default", name).to_string();
    let context = Context { now, uid, suffix: "sim00", namespace: Some("default"), user: "sim" };
    let Some((revision, bytes)) = stored else {
        let mut new = deployment(name);
        object::prepare_create(kind, &mut new, &context).expect("a valid deployment");
        return Some(Write::create(key, object::encode(&new)));
    };
    let old: Value = object::read(bytes).expect("it was written so");
    let mut new = old.clone();
    match wish {
        Wish::Delete => {
            return match object::prepare_delete(kind, &old, &DeleteOptions::default(), now).ok()? {
                Deletion::Remove => Some(Write::delete(key, revision)),
                Deletion::Mark(marked) => Some(Write::replace(key, revision, object::encode(&marked))),
                Deletion::Underway => None,
            };
        }
        Wish::Scale(replicas) => new["spec"]["replicas"] = replicas.into(),
        Wish::Image(tag) => {
            new["spec"]["template"]["spec"]["containers"][0]["image"] = format!("x:{tag}").into();
        }
    }
    match object::prepare_update(kind, &old, &mut new, &context).expect("a valid change") {
        Update::Changed => Some(Write::replace(key, revision, object::encode(&new))),
        Update::Unchanged | Update::Removed => None,
    }
}

fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "x:0"}]},
            },
        },
    })
}
