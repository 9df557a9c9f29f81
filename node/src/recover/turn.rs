//! From one incarnation to the next, on the disk of one node.
//!
//! ```text
//! store.next/    written whole: whose it is, and the state it begins with
//! cluster.json   names the new incarnation: from here on the node belongs to it
//! store/         moved away, to former/<time>-before-incarnation-<number>/store
//! store.next/    becomes store/
//! ```
//!
//! The second step decides. A crash before it leaves the node as it was, and `store.next` is removed at the next
//! start; after it the next start finishes what is left ([`settle`]).

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use skein_control::node::recovery::{Basis, RECOVERIES};
use skein_net::identity::{Identity, StoreId};
use skein_net::incarnation::Tag;
use skein_raft_store::{
    Change, DiskFiles, Expect, Files as _, Legacy, Op, State, VoterId, begin, begin_as_follower, store_id,
};
use tracing::info;

use super::{Founding, Move};
use crate::admission::json;
use crate::clock;
use crate::daemon::Failure;
use crate::home::{Home, Membership, failed, sync};
use crate::members::Record;
use crate::wire;

const STORE: &str = "store";
const NEXT: &str = "store.next";

/// What the map keeps of a recovery, under [`RECOVERIES`] and the number of the incarnation.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// What tells this incarnation from another of the same number.
    pub(crate) id: String,
    /// By this node's clock, milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// Its name.
    pub(crate) founder: String,
    /// The last revision of the incarnation before that it had.
    pub(crate) revision: u64,
    /// When the backup was made that it was restored from, milliseconds since 1970; `None` where it was recovered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) restored_from_ms: Option<u64>,
    /// Names of the members that followed at once.
    pub(crate) followers: Vec<String>,
    /// Of those that did not answer.
    pub(crate) absent: Vec<String>,
    /// Of those of them whose machines somebody knew to be off: nothing of them runs any more.
    pub(crate) off: Vec<String>,
}

impl Kept {
    /// Keeps it, under the number of the incarnation.
    pub(crate) fn to_op(&self, number: u64) -> Op {
        Op {
            key: format!("{RECOVERIES}{number}").into(),
            expect: Expect::Any,
            change: Change::Put(json(self)),
        }
    }
}

/// Does what `next` says in the directory of a node whose store has been closed, and had `legacy`.
pub(crate) async fn turn(
    home: &Home,
    identity: &Identity,
    membership: &Membership,
    next: Move,
    legacy: Legacy,
) -> Result<(), Failure> {
    let voter = VoterId { node: identity.node().0, store: rand::random() };
    let (incarnation, founding) = match next {
        Move::Found(founding) => (founding.incarnation, Some(founding)),
        Move::Follow(incarnation) => (incarnation, None),
    };
    let tag = Tag { incarnation, ..membership.tag() };
    let dir = home.dir().join(NEXT);
    remove(&dir)?;
    let files = open(&dir).await?;
    match founding {
        Some(founding) => {
            let (state, ops) = beginning(&founding, &legacy, membership, voter)?;
            begin(&files, voter, wire::store_tag(tag), state.next_life(1, ops)).await?;
        }
        None => begin_as_follower(&files, voter, wire::store_tag(tag), legacy.shown).await?,
    }
    files.close().await?;
    drop(files);
    home.set_incarnation(incarnation)?;
    let (number, id) = (incarnation.number, incarnation.id);
    settle(home, tag).await?;
    info!(number, %id, "this node is in another incarnation of the cluster now");
    Ok(())
}

/// What the incarnation begins with: a state, and the changes of its founder.
fn beginning(
    founding: &Founding,
    legacy: &Legacy,
    membership: &Membership,
    voter: VoterId,
) -> Result<(State, Vec<Op>), Failure> {
    let state = match (founding.basis, &legacy.log) {
        (Basis::Log, Some(log)) => log.whole.clone(),
        (Basis::Log, None) => return Err("the log could not be read any more; nothing was changed".into()),
        (Basis::Shown, _) => legacy.shown.clone(),
    };
    let mut ops = Vec::new();
    for (key, object) in state.range(skein_control::node::roster::PREFIX, None) {
        let Ok(record) = serde_json::from_slice::<Record>(&object.value) else { continue };
        if record.removed {
            continue;
        }
        let mut record = record.reborn();
        if record.node.0 == voter.node {
            record.store = StoreId(voter.store);
        }
        let change = Change::Put(record.to_bytes().into());
        ops.push(Op { key: key.clone(), expect: Expect::Any, change });
    }
    let Founding { incarnation, followers, absent, off, .. } = founding;
    let kept = Kept {
        id: incarnation.id.to_string(),
        at_ms: clock::machine_ms(),
        founder: membership.name.clone(),
        revision: state.revision(),
        restored_from_ms: None,
        followers: followers.clone(),
        absent: absent.clone(),
        off: off.clone(),
    };
    ops.push(kept.to_op(incarnation.number));
    Ok((state, ops))
}

/// Finishes what a crash left of a move, or undoes it: `tag` is where the node belongs.
pub(crate) async fn settle(home: &Home, tag: Tag) -> Result<(), Failure> {
    let next = home.dir().join(NEXT);
    if !next.exists() {
        return Ok(());
    }
    let files = open(&next).await?;
    let found = store_id::load(&files).await;
    files.close().await?;
    drop(files);
    if !matches!(found, Ok(Some((_, Some(found)))) if found == wire::store_tag(tag)) {
        return Ok(remove(&next)?);
    }
    let store = home.dir().join(STORE);
    if store.exists() {
        let aside = home.set_store_aside(&format!("before-incarnation-{}", tag.incarnation.number))?;
        info!(aside = %aside.display(), "the store of the incarnation before is kept; remove it when nobody misses anything");
    }
    fs::rename(&next, &store).map_err(failed("move", &next))?;
    Ok(sync(home.dir())?)
}

/// The files of a store, for this process alone.
pub(crate) async fn open(dir: &Path) -> Result<DiskFiles, Failure> {
    let dir = dir.to_owned();
    Ok(tokio::task::spawn_blocking(move || DiskFiles::open(&dir)).await??)
}

fn remove(dir: &Path) -> Result<(), crate::home::Error> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", dir)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use skein_net::ca::ClusterId;
    use skein_net::incarnation::{Incarnation, IncarnationId};

    use super::*;

    fn tag(number: u64) -> Tag {
        let incarnation = Incarnation { number, id: IncarnationId([7; 16]) };
        Tag { cluster: ClusterId([1; 16]), incarnation }
    }

    /// A store of incarnation `number` in `name`.
    async fn put(home: &Home, name: &str, number: u64) {
        let files = open(&home.dir().join(name)).await.unwrap();
        let voter = VoterId { node: [1; 16], store: [number as u8; 8] };
        begin_as_follower(&files, voter, wire::store_tag(tag(number)), State::default()).await.unwrap();
        files.close().await.unwrap();
    }

    /// Of which incarnation the store is that a start would find, and whether one was put aside.
    async fn found(home: &Home) -> (Option<u64>, bool) {
        assert!(!home.dir().join(NEXT).exists(), "nothing is left of it");
        let files = open(&home.dir().join(STORE)).await.unwrap();
        let number = store_id::load(&files).await.unwrap().and_then(|(_, tag)| Some(tag?.number));
        files.close().await.unwrap();
        (number, home.dir().join("former").exists())
    }

    #[tokio::test]
    async fn whatever_a_crash_leaves_the_next_start_finds_one_incarnation_whole() {
        // What lies there, where the node belongs, and what it finds then.
        for (store, next, belongs, expect) in [
            (Some(1), None, 1, (Some(1), false)),
            (Some(1), Some(2), 1, (Some(1), false)),
            (Some(1), Some(2), 2, (Some(2), true)),
            (None, Some(2), 2, (Some(2), false)),
            (Some(2), Some(3), 2, (Some(2), false)),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let home = Home::new(dir.path());
            for (name, number) in [(STORE, store), (NEXT, next)] {
                if let Some(number) = number {
                    put(&home, name, number).await;
                }
            }
            settle(&home, tag(belongs)).await.unwrap();
            assert_eq!(found(&home).await, expect, "{store:?}, {next:?}, {belongs}");
        }
    }

    #[tokio::test]
    async fn a_store_that_was_not_written_whole_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        put(&home, STORE, 1).await;
        fs::create_dir(dir.path().join(NEXT)).unwrap();
        fs::write(dir.path().join(NEXT).join("store.tmp"), b"half").unwrap();
        settle(&home, tag(1)).await.unwrap();
        assert_eq!(found(&home).await, (Some(1), false));
    }
}
