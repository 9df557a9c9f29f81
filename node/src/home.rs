//! The data directory: what lies where, and what a node keeps there between its lives.
//!
//! ```text
//! node.key node.json   who this node is (skein-net)
//! cluster.json         which cluster it belongs to; absent on a machine that never joined
//! member.json          its certificate
//! api.json             its API server's certificate and key
//! client.json          the last certificate and key of its administrator, for when no new one can be made
//! authority.sealed     the cluster's authorities, on voters, sealed to this node's key
//! authority.next.sealed  those that may follow them
//! secrets.sealed       what opens the Secrets that pods here use, sealed to this node's key
//! addresses.json       where other nodes were seen
//! advertise.json       what others are told of where this node is, if that was given by hand
//! store/               log and snapshots (skein-raft-store)
//! pods/ images/ logs/  containers (skein-runtime)
//! network/             pod addresses (skein-podnet)
//! joining.json         what it asked a cluster for, until it is a member
//! skein.sock           the daemon's own socket
//! former/              what was set aside: memberships that have ended, keys that are not used again
//! ```

mod claim;
mod close;
mod look;
mod owner;
mod path;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skein_net::ca::{Chain, ClusterCa, Pin, Public};
use skein_net::identity::{Identity, StoreId};
use skein_net::incarnation::{Incarnation, Tag};
use skein_net::token::Token;

use crate::wire::Client;

pub(crate) use claim::Claim;

/// What this node's keys for its own files are derived for.
const AUTHORITIES: &str = "seal the cluster's authorities";
const PODS_KEYS: &str = "seal the keys of pods' Secrets";

/// Where a command looks for the daemon unless told otherwise.
pub(crate) const DEFAULT: &str = "/var/lib/skein";

/// A data directory.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    dir: PathBuf,
}

/// What is wrong with the data directory. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The system refused.
    #[error("could not {doing} {path}; check that the disk is mounted, has room, and that this user owns it")]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Another process of this program has the directory.
    #[error("the node of {dir} runs already; see: skein status")]
    InUse { dir: PathBuf },
    /// No data directory can have this path.
    #[error("cannot use {dir:?} as a data directory: {reason}; choose another with --data-dir")]
    Unfit { dir: PathBuf, reason: String },
    /// A file is not what this build wrote.
    #[error(
        "{path} is damaged ({reason}); restore it from a copy, or move {dir} away and join as a new node"
    )]
    Damaged { path: PathBuf, dir: PathBuf, reason: String },
    /// It is open to other users, and closing it would take from them what is no business of ours.
    #[error(
        "cannot close {dir} to other users, for it holds {foreign:?}, which is not skein's; give it a directory of its own, or move that away"
    )]
    Shared { dir: PathBuf, foreign: String },
}

/// Which cluster this node belongs to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Membership {
    /// What every member knows of the cluster.
    pub(crate) public: Public,
    /// Which life of the cluster; absent where a build that knew of none wrote this.
    #[serde(default)]
    pub(crate) incarnation: Option<Incarnation>,
    /// This node's name in it.
    pub(crate) name: String,
    /// This node founds it and its store is still empty. Cleared as soon as that is done: a store that
    /// is lost later must never be founded a second time.
    pub(crate) founding: bool,
    /// It has left: the name under which all that lies here is set aside.
    #[serde(default)]
    pub(crate) left: Option<String>,
}

/// What a machine has asked a cluster for, kept from before it asks until it is a member: if it is cut off in
/// between, it asks for the same again, and is granted the same.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Joining {
    /// Of the cluster's root, as the token has it.
    pub(crate) pin: Pin,
    /// The request for a certificate, DER.
    pub(crate) csr: Vec<u8>,
    /// Under which id the store will be made.
    pub(crate) store: StoreId,
}

impl Joining {
    /// For the cluster of `token`, in the name of `identity`.
    pub(crate) fn new(
        token: &Token,
        identity: &Identity,
        store: StoreId,
    ) -> Result<Joining, skein_net::identity::Error> {
        Ok(Joining { pin: token.pin(), csr: identity.csr()?.to_vec(), store })
    }
}

impl Membership {
    /// Where this node belongs: what its store, its endpoint and its beacon go by.
    pub(crate) fn tag(&self) -> Tag {
        let cluster = self.public.cluster.id;
        let incarnation = self.incarnation.unwrap_or_else(|| Incarnation::unnamed(cluster));
        Tag { cluster, incarnation }
    }
}

/// Where authorities are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Those that are in force, as far as this node knows.
    Current,
    /// Those that may follow.
    Next,
}

impl Slot {
    fn file(self) -> &'static str {
        match self {
            Slot::Current => "authority.sealed",
            Slot::Next => "authority.next.sealed",
        }
    }
}

/// The certificate of this node's API server.
#[derive(Serialize, Deserialize)]
pub(crate) struct ApiCertificate {
    pub(crate) chain: Chain,
    /// PKCS#8, DER.
    pub(crate) key: Vec<u8>,
    pub(crate) names: skein_net::ca::ApiNames,
}

impl Home {
    pub(crate) fn new(dir: &Path) -> Home {
        Home { dir: dir.to_owned() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("skein.sock")
    }

    /// A directory for one part of the node, made if absent.
    pub(crate) fn part(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path).map_err(|source| Error::Io {
            doing: "make",
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }

    pub(crate) fn membership(&self) -> Result<Option<Membership>, Error> {
        self.load("cluster.json")
    }

    pub(crate) fn set_membership(&self, membership: &Membership) -> Result<(), Error> {
        self.save("cluster.json", membership)
    }

    /// Keeps the roots that count now.
    pub(crate) fn set_public(&self, public: &Public) -> Result<(), Error> {
        let _alone = alone();
        match self.membership()? {
            Some(membership) => self.set_membership(&Membership { public: public.clone(), ..membership }),
            None => Ok(()),
        }
    }

    /// Notes that this node belongs to this incarnation of its cluster from now on. Whatever it was before, it is no
    /// founder of the first one any more.
    pub(crate) fn set_incarnation(&self, incarnation: Incarnation) -> Result<(), Error> {
        let _alone = alone();
        let gone = || self.damaged(&self.dir.join("cluster.json"), "it is gone");
        let membership = self.membership()?.ok_or_else(gone)?;
        self.set_membership(&Membership { incarnation: Some(incarnation), founding: false, ..membership })
    }

    /// Notes that this node has left its cluster. What belonged to it is set aside by whoever holds this directory
    /// once its daemon has ended; returns where.
    pub(crate) fn leave(&self) -> Result<Option<PathBuf>, Error> {
        let _alone = alone();
        let Some(membership) = self.membership()? else { return Ok(None) };
        let aside = self.aside(&membership.public.cluster.name);
        let name = aside.file_name().map(|name| name.to_string_lossy().into_owned());
        self.set_membership(&Membership { left: name, ..membership })?;
        Ok(Some(aside))
    }

    /// Where what lies here is to be set aside, if this node has left its cluster.
    pub(crate) fn left(&self) -> Result<Option<PathBuf>, Error> {
        let name = self.membership()?.and_then(|membership| membership.left);
        Ok(name.map(|name| self.former(&name)))
    }

    /// A join that was begun and not finished.
    pub(crate) fn joining(&self) -> Result<Option<Joining>, Error> {
        self.load("joining.json")
    }

    pub(crate) fn set_joining(&self, joining: &Joining) -> Result<(), Error> {
        self.save("joining.json", joining)
    }

    /// The join is over: the machine is a member.
    pub(crate) fn joined(&self) -> Result<(), Error> {
        self.remove("joining.json")
    }

    /// The join is over: the machine is nobody, and nobody has seen its key.
    pub(crate) fn not_joined(&self) -> Result<(), Error> {
        ["node.json", "node.key", "joining.json"].iter().try_for_each(|name| self.remove(name))
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Io { doing: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn certificate(&self) -> Result<Option<Chain>, Error> {
        self.load("member.json")
    }

    pub(crate) fn set_certificate(&self, chain: &Chain) -> Result<(), Error> {
        self.save("member.json", chain)
    }

    pub(crate) fn api_certificate(&self) -> Result<Option<ApiCertificate>, Error> {
        self.load("api.json")
    }

    pub(crate) fn set_api_certificate(&self, certificate: &ApiCertificate) -> Result<(), Error> {
        self.save("api.json", certificate)
    }

    /// What the last kubeconfig of this node's administrator held.
    pub(crate) fn client(&self) -> Result<Option<Client>, Error> {
        self.load("client.json")
    }

    pub(crate) fn set_client(&self, client: &Client) -> Result<(), Error> {
        self.save("client.json", client)
    }

    pub(crate) fn addresses(&self) -> Result<skein_net::address_book::Pages, Error> {
        Ok(self.load("addresses.json")?.unwrap_or_default())
    }

    pub(crate) fn set_addresses(&self, pages: &skein_net::address_book::Pages) -> Result<(), Error> {
        self.save("addresses.json", pages)
    }

    /// What was last given with `--advertise`; empty if nothing was.
    pub(crate) fn advertise(&self) -> Result<Vec<String>, Error> {
        Ok(self.load("advertise.json")?.unwrap_or_default())
    }

    pub(crate) fn set_advertise(&self, words: &[String]) -> Result<(), Error> {
        self.save("advertise.json", &words)
    }

    /// The cluster's authorities in one place, if this node keeps any there.
    pub(crate) fn authority(&self, identity: &Identity, slot: Slot) -> Result<Option<ClusterCa>, Error> {
        let Some(opened) = self.read_sealed(&seal_key(identity, AUTHORITIES), slot.file())? else {
            return Ok(None);
        };
        let damaged =
            |error: skein_net::ca::Error| self.damaged(&self.dir.join(slot.file()), &error.to_string());
        ClusterCa::from_bytes(&opened).map(Some).map_err(damaged)
    }

    /// Keeps the authorities, readable with this node's key only.
    pub(crate) fn set_authority(
        &self,
        identity: &Identity,
        slot: Slot,
        authority: &ClusterCa,
    ) -> Result<(), Error> {
        self.write_sealed(&seal_key(identity, AUTHORITIES), slot.file(), authority.to_bytes())
    }

    /// What opens the Secrets that pods here use, if any was kept.
    pub(crate) fn pods_keys(&self, identity: &Identity) -> Result<Option<Vec<u8>>, Error> {
        self.read_sealed(&seal_key(identity, PODS_KEYS), "secrets.sealed")
    }

    /// Keeps what opens the Secrets that pods here use, readable with this node's key only.
    pub(crate) fn set_pods_keys(&self, identity: &Identity, keys: &[u8]) -> Result<(), Error> {
        self.write_sealed(&seal_key(identity, PODS_KEYS), "secrets.sealed", keys.to_vec())
    }

    fn read_sealed(&self, key: &LessSafeKey, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.dir.join(name);
        let Some(mut sealed) = self.read(&path)? else { return Ok(None) };
        let damaged = |reason: &str| self.damaged(&path, reason);
        let (nonce, bytes) =
            sealed.split_at_mut_checked(NONCE_LEN).ok_or_else(|| damaged("it is too short"))?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged("it is too short"))?;
        let opened = key.open_in_place(nonce, Aad::empty(), bytes);
        Ok(Some(opened.map_err(|_| damaged("it is not sealed to this node's key"))?.to_vec()))
    }

    fn write_sealed(&self, key: &LessSafeKey, name: &str, mut bytes: Vec<u8>) -> Result<(), Error> {
        // A fresh nonce each time: the key stays the same.
        let nonce: [u8; NONCE_LEN] = rand::random();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut bytes)
            .expect("far below the length that AES-GCM can seal");
        self.write(name, &[nonce.as_slice(), &bytes].concat())
    }

    /// What was to follow is in force; what was before goes.
    pub(crate) fn promote_next_authority(&self) -> Result<(), Error> {
        let current = self.dir.join(Slot::Current.file());
        fs::rename(self.dir.join(Slot::Next.file()), &current).map_err(failed("write", &current))?;
        sync(&self.dir)
    }

    /// Keeps no authorities in this place any more.
    pub(crate) fn forget_authority(&self, slot: Slot) -> Result<(), Error> {
        self.remove(slot.file())?;
        sync(&self.dir)
    }

    /// A file of any content that must survive a crash whole.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.dir.join(name);
        let unfinished = self.dir.join(format!("{name}.tmp"));
        let write = || {
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)
        };
        write().map_err(failed("write", &path))?;
        sync(&self.dir)
    }

    fn save(&self, name: &str, value: &impl Serialize) -> Result<(), Error> {
        let bytes = serde_json::to_vec_pretty(value).expect("plain data has no key that is not a text");
        self.write(name, &bytes)
    }

    fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let path = self.dir.join(name);
        let Some(bytes) = self.read(&path)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| self.damaged(&path, &error.to_string()))
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { doing: "read", path: path.to_owned(), source }),
        }
    }

    fn damaged(&self, path: &Path, reason: &str) -> Error {
        Error::Damaged { path: path.to_owned(), dir: self.dir.clone(), reason: reason.to_owned() }
    }
}

/// What was done to `path` went wrong.
pub(crate) fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { doing, path: path.clone(), source }
}

/// What a directory says of its entries is on the disk when this returns.
pub(crate) fn sync(dir: &Path) -> Result<(), Error> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("write", dir))
}

/// Held while a membership is read and written back: a node that leaves must not be made a member again by
/// whoever keeps something else at that moment.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn seal_key(identity: &Identity, purpose: &str) -> LessSafeKey {
    let key = identity.derive(purpose);
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key[..32]).expect("32 bytes are a key of AES-256"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authorities_open_only_with_the_key_they_were_sealed_to() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let (mine, other) = (Identity::ephemeral().unwrap(), Identity::ephemeral().unwrap());
        let authority = ClusterCa::create("home", std::time::SystemTime::now()).unwrap();
        let kept = |identity, slot| home.authority(identity, slot);
        assert!(kept(&mine, Slot::Current).unwrap().is_none());
        home.set_authority(&mine, Slot::Current, &authority).unwrap();
        let fingerprint = |slot| kept(&mine, slot).unwrap().map(|authority| authority.fingerprint());
        assert_eq!(fingerprint(Slot::Current), Some(authority.fingerprint()));
        assert!(
            kept(&other, Slot::Current).unwrap_err().to_string().contains("not sealed to this node's key")
        );

        let next = authority.renewed(std::time::SystemTime::now()).unwrap();
        home.set_authority(&mine, Slot::Next, &next).unwrap();
        assert_eq!(fingerprint(Slot::Current), Some(authority.fingerprint()));
        home.promote_next_authority().unwrap();
        assert_eq!((fingerprint(Slot::Current), fingerprint(Slot::Next)), (Some(next.fingerprint()), None));
        home.forget_authority(Slot::Next).unwrap();
        home.forget_authority(Slot::Current).unwrap();
        assert_eq!(fingerprint(Slot::Current), None);
    }

    #[test]
    fn what_opens_pods_secrets_lies_sealed_to_this_node() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let (mine, other) = (Identity::ephemeral().unwrap(), Identity::ephemeral().unwrap());
        assert!(home.pods_keys(&mine).unwrap().is_none());
        home.set_pods_keys(&mine, b"open sesame").unwrap();
        assert_eq!(home.pods_keys(&mine).unwrap().as_deref(), Some(&b"open sesame"[..]));
        assert!(home.pods_keys(&other).is_err());
        let bytes = fs::read(dir.path().join("secrets.sealed")).unwrap();
        assert!(!bytes.windows(11).any(|window| window == b"open sesame"));
    }

    #[test]
    fn a_damaged_file_is_named_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        fs::write(dir.path().join("cluster.json"), b"{\"public\":").unwrap();
        let error = home.membership().unwrap_err().to_string();
        assert!(error.contains("cluster.json is damaged"), "{error}");
        assert_eq!(fs::read(dir.path().join("cluster.json")).unwrap(), b"{\"public\":");
    }
}
