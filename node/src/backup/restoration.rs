//! What a backup becomes in an empty directory: the store of a cluster with one member.

use skein_control::node::restoration::{self, INCARNATIONS};
use skein_net::ca::{Chain, ClusterCa};
use skein_net::identity::{Identity, StoreId};
use skein_net::incarnation::Tag;
use skein_raft_store::{Files as _, Op, VoterId, begin};

use super::Backup;
use crate::admission::first_of;
use crate::clock;
use crate::cluster::op;
use crate::daemon::{Failure, first_subnet};
use crate::home::{Home, Membership, Slot};
use crate::members::Record;
use crate::recover::{self, Kept};
use crate::wire;

/// What is restored, and what ends by that.
pub(crate) fn told(backup: &Backup) -> String {
    let header = &backup.header;
    let taken = i64::try_from(header.taken_ms / 1000).unwrap_or(i64::MAX);
    let taken = jiff::Timestamp::from_second(taken).unwrap_or_default();
    format!(
        "This is cluster {:?} ({}) as it was at {taken}, revision {}: {} objects. Its nodes were {}.\n\
         What was written after that is lost. This machine is its only node; others join it anew.\n\
         No node of then is a member any more, and no kubeconfig and no token of then counts. Images that were loaded by\n\
         hand are loaded anew.",
        header.cluster,
        header.tag.cluster.fingerprint(),
        header.revision,
        header.objects,
        header.members.join(", "),
    )
}

/// Makes this directory the one of the only member of the cluster of `backup`, in another incarnation.
///
/// Cut off in between it is a founding that was cut off: nobody has joined, and the next try begins anew.
pub(crate) async fn begin_anew(
    home: &Home,
    identity: &Identity,
    name: String,
    backup: Backup,
) -> Result<(Membership, Chain), Failure> {
    let Backup { header, authority, state } = backup;
    let incarnation = header.tag.incarnation.later(INCARNATIONS)?;
    let tag = Tag { incarnation, ..header.tag };
    let (node, store) = (identity.node(), StoreId(rand::random()));
    let mut ops: Vec<Op> =
        restoration::ends(state.range("", None).map(|(key, object)| (&**key, &*object.value)))?
            .into_iter()
            .map(op)
            .collect();
    // Where it is the others hear from itself.
    let record =
        Record::new(node, store, name.clone(), Vec::new(), first_subnet(), clock::now_ms()).founder();
    let kept = Kept {
        id: incarnation.id.to_string(),
        at_ms: clock::machine_ms(),
        founder: name.clone(),
        revision: header.revision,
        restored_from_ms: Some(header.taken_ms),
        followers: Vec::new(),
        absent: header.members,
        off: Vec::new(),
    };
    ops.extend(first_of(&record));
    ops.push(kept.to_op(incarnation.number));

    let chain = certify(&authority, identity)?;
    let public = authority.public();
    let membership = Membership { public, incarnation: Some(incarnation), name, founding: true, left: None };
    home.set_membership(&membership)?;
    home.set_authority(identity, Slot::Current, &authority)?;
    home.set_certificate(&chain)?;
    let files = recover::open(&home.part("store")?).await?;
    let voter = VoterId { node: node.0, store: store.0 };
    begin(&files, voter, wire::store_tag(tag), state.next_life(INCARNATIONS, ops)).await?;
    files.close().await?;
    drop(files);
    home.set_incarnation(incarnation)?;
    Ok((Membership { founding: false, ..membership }, chain))
}

/// This node's certificate. Of an old backup the issuing certificate may have ended: one under the same roots will do until
/// the leader, which is this node, has renewed the authorities.
fn certify(authority: &ClusterCa, identity: &Identity) -> Result<Chain, Failure> {
    let now = clock::system();
    let csr = identity.csr()?;
    match authority.issuing_validity().until < now {
        true => Ok(authority.renewed(now)?.issue_member(&csr, now)?),
        false => Ok(authority.issue_member(&csr, now)?),
    }
}
