//! Client certificates: to whom they were given, and which were taken back.
//!
//! One record a certificate, `skein/clients//<serial>`, until the certificate has expired. One without a
//! record is believed, since our authority signed it and a replica may be behind: a new kubeconfig works on
//! every node at once. What is taken back has a record that says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use skein_apiserver::identity::{Identity, Serial, WhoMay};
use skein_net::ca::Chain;
use skein_raft_store::{Change, Expect, Handle, Op, Options, State, TokioRuntime};
use tokio::sync::watch;
use tracing::info;

use crate::admission::all_done;

pub(crate) const PREFIX: &str = "skein/clients//";
/// More certificates than anybody gives out by hand; each record is some 200 bytes.
const RECORDS_MAX: usize = 4_096;
/// Expired records that go when a new one comes.
const FORGOTTEN_MAX: usize = 64;
/// Several may be revoked at once, from several nodes.
const TRIES: usize = 8;

/// What the cluster remembers of one certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Hexadecimal, as certificates are printed elsewhere.
    pub(crate) serial: String,
    pub(crate) user: String,
    /// The node that was asked for it.
    pub(crate) node: String,
    /// Seconds since 1970.
    pub(crate) issued: u64,
    /// Seconds since 1970.
    pub(crate) expires: u64,
    pub(crate) revoked: bool,
}

impl Record {
    fn key(serial: &str) -> String {
        format!("{PREFIX}{serial}")
    }

    fn to_op(&self, expect: Expect) -> Op {
        let bytes = serde_json::to_vec(self).expect("plain data has no key that is not a text");
        Op { key: Self::key(&self.serial).into(), expect, change: Change::Put(bytes.into()) }
    }
}

/// The records as this node's replica has them. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    records: Arc<RwLock<BTreeMap<String, Record>>>,
    /// Serials, for whoever waits for theirs.
    revoked: Arc<watch::Sender<BTreeSet<String>>>,
}

impl Default for Clients {
    fn default() -> Self {
        Clients { records: Arc::default(), revoked: Arc::new(watch::channel(BTreeSet::new()).0) }
    }
}

impl Clients {
    /// Takes over everything in `state`.
    pub(crate) fn load(&self, state: &State) {
        let records =
            state.range(PREFIX, None).filter_map(|(_, object)| serde_json::from_slice(&object.value).ok());
        let records: BTreeMap<String, Record> =
            records.map(|record: Record| (record.serial.clone(), record)).collect();
        self.change(|held| *held = records);
    }

    /// Takes over one change of the map, if it is about a certificate.
    pub(crate) fn apply(&self, key: &str, value: Option<&[u8]>) {
        let Some(serial) = key.strip_prefix(PREFIX) else { return };
        self.change(|held| match value.and_then(|bytes| serde_json::from_slice(bytes).ok()) {
            Some(record) => drop(held.insert(serial.to_owned(), record)),
            None => drop(held.remove(serial)),
        });
    }

    /// All of them, the newest last.
    pub(crate) fn list(&self) -> Vec<Record> {
        let held = self.records.read().unwrap_or_else(PoisonError::into_inner);
        let mut records: Vec<Record> = held.values().cloned().collect();
        records.sort_by(|a, b| (a.issued, &a.serial).cmp(&(b.issued, &b.serial)));
        records
    }

    /// Notes a certificate before its holder gets it, and forgets some that have expired.
    pub(crate) async fn note(
        &self,
        store: &Handle<TokioRuntime>,
        chain: &Chain,
        node: &str,
    ) -> Result<Record, String> {
        let record = record_of(chain, node)?;
        let known = self.list();
        if known.len() >= RECORDS_MAX {
            return Err(format!(
                "{} client certificates are in use already; they go when they expire",
                known.len()
            ));
        }
        let mut ops = vec![record.to_op(Expect::Absent)];
        let expired = known.iter().filter(|old| old.expires <= seconds(SystemTime::now()));
        ops.extend(expired.take(FORGOTTEN_MAX).map(|old| Op {
            key: Record::key(&old.serial).into(),
            expect: Expect::Any,
            change: Change::Delete,
        }));
        let answer = store.propose(ops, Options::default()).await.map_err(|error| error.to_string())?;
        if all_done(&answer) { Ok(record) } else { Err("the serial is taken; try again".into()) }
    }

    /// Takes back every certificate that `which` names. Those that are taken back already are among them.
    pub(crate) async fn revoke(
        &self,
        store: &Handle<TokioRuntime>,
        which: &Which,
    ) -> Result<Vec<Record>, String> {
        for _ in 0..TRIES {
            store.read_index(Duration::from_secs(5)).await.map_err(|error| error.to_string())?;
            let state = store.state();
            let (mut ops, mut named) = (Vec::new(), Vec::new());
            for (_, object) in state.range(PREFIX, None) {
                let Ok(mut record) = serde_json::from_slice::<Record>(&object.value) else { continue };
                if which.names(&record) {
                    if !record.revoked {
                        record.revoked = true;
                        ops.push(record.to_op(Expect::Revision(object.mod_rev)));
                    }
                    named.push(record);
                }
            }
            which.check(&named)?;
            if ops.is_empty() {
                return Ok(named);
            }
            let answer = store.propose(ops, Options::default()).await.map_err(|error| error.to_string())?;
            if all_done(&answer) {
                for record in &named {
                    info!(user = record.user, serial = record.serial, "took a client certificate back");
                }
                return Ok(named);
            }
        }
        Err("the certificates change all the time; try again".into())
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Record>)) {
        let mut held = self.records.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut held);
        let revoked: BTreeSet<String> =
            held.values().filter(|record| record.revoked).map(|record| record.serial.clone()).collect();
        drop(held);
        self.revoked.send_if_modified(|known| {
            let changed = *known != revoked;
            *known = revoked;
            changed
        });
    }
}

#[async_trait]
impl WhoMay for Clients {
    fn is_revoked(&self, serial: &Serial) -> bool {
        self.revoked.borrow().contains(&hex(serial))
    }

    async fn until_revoked(&self, serial: &Serial) {
        let serial = hex(serial);
        // Fails only when the node is gone, and with it every connection.
        let _ = self.revoked.subscribe().wait_for(|revoked| revoked.contains(&serial)).await;
    }
}

/// Which certificates are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Which {
    /// The one whose serial begins so.
    Serial(String),
    /// All of this user.
    User(String),
}

impl Which {
    fn names(&self, record: &Record) -> bool {
        match self {
            Which::Serial(begin) => record.serial.starts_with(begin),
            Which::User(user) => record.user == *user,
        }
    }

    fn check(&self, named: &[Record]) -> Result<(), String> {
        const SEE: &str = "see: skein kubeconfig list";
        match self {
            Which::Serial(begin) if named.len() > 1 => {
                Err(format!("{begin:?} is the beginning of {} serials; {SEE}", named.len()))
            }
            Which::Serial(begin) if named.is_empty() => {
                Err(format!("there is no client certificate {begin:?}; {SEE}"))
            }
            Which::User(user) if named.is_empty() => {
                Err(format!("there is no client certificate of {user:?}; {SEE}"))
            }
            _ => Ok(()),
        }
    }
}

fn record_of(chain: &Chain, node: &str) -> Result<Record, String> {
    let (identity, serial) =
        Identity::of_certificate(chain.leaf()).ok_or("the authority's certificate cannot be read")?;
    let validity = chain.validity();
    Ok(Record {
        serial: hex(&serial),
        user: identity.user,
        node: node.to_owned(),
        issued: seconds(SystemTime::now()),
        expires: seconds(validity.until),
        revoked: false,
    })
}

/// Without leading zeros that encodings of numbers add.
fn hex(serial: &Serial) -> String {
    serial.0.iter().skip_while(|byte| **byte == 0).map(|byte| format!("{byte:02x}")).collect()
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(serial: &str, user: &str, revoked: bool) -> Record {
        Record {
            serial: serial.into(),
            user: user.into(),
            node: "one".into(),
            issued: 1,
            expires: 2,
            revoked,
        }
    }

    fn put(clients: &Clients, record: &Record) {
        clients.apply(&Record::key(&record.serial), Some(&serde_json::to_vec(record).unwrap()));
    }

    #[tokio::test]
    async fn whoever_waits_for_a_revocation_hears_of_theirs_and_of_no_other() {
        let clients = Clients::default();
        let serial = Serial(vec![0, 0xab, 0x01]);
        put(&clients, &record("ab01", "ann", false));
        put(&clients, &record("cd02", "bob", true));
        assert!(!clients.is_revoked(&serial));
        assert!(clients.is_revoked(&Serial(vec![0xcd, 0x02])));
        let (waiting, task) = (clients.clone(), serial.clone());
        let heard = tokio::spawn(async move { waiting.until_revoked(&task).await });
        put(&clients, &record("ab01", "ann", true));
        heard.await.unwrap();
        assert!(clients.is_revoked(&serial));
    }

    #[test]
    fn a_beginning_of_several_serials_names_none() {
        let records = [record("ab01", "ann", false), record("ab02", "ann", false)];
        let check = |which: Which| {
            let named: Vec<Record> = records.iter().filter(|record| which.names(record)).cloned().collect();
            which.check(&named).map(|()| named.len())
        };
        assert_eq!(check(Which::Serial("ab01".into())), Ok(1));
        assert_eq!(check(Which::User("ann".into())), Ok(2));
        assert!(check(Which::Serial("ab".into())).unwrap_err().contains("2 serials"));
        assert!(check(Which::User("eve".into())).unwrap_err().contains("no client certificate"));
    }
}
