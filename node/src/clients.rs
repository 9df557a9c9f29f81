//! Client certificates: to whom they were given, and which were taken back.
//!
//! One record a certificate, `skein/clients//<serial>`, written before its holder gets it and kept until it has
//! expired. A certificate that has none, or another hash than its record says, is refused, whoever signed it: so a
//! stolen authority makes nobody an administrator. Before a node refuses one it asks for the cluster's newest word,
//! because its replica may be behind: a new kubeconfig works on every node at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use skein_apiserver::identity::{Identity, Serial, Shown, Standing, Unconfirmed, WhoMay};
use skein_control::node::authority::{CLIENTS as PREFIX, TRUST, Trust};
use skein_control::node::roster;
use skein_net::ca::Chain;
use skein_net::identity::NodeId;
use skein_net::join::RateLimit;
use skein_raft_store::{Change, Expect, Handle, Op, Options, State, TokioRuntime};
use tokio::sync::watch;
use tracing::info;

use crate::admission::all_done;
use crate::picture::Picture;
use crate::{authority, clock, members};

/// More certificates than anybody gives out by hand; each record is some 300 bytes.
const RECORDS_MAX: usize = 4_096;
/// Expired records that go when a new one comes.
const FORGOTTEN_MAX: usize = 64;
/// Several may be revoked at once, from several nodes.
const TRIES: usize = 8;
const READ_MAX: Duration = Duration::from_secs(5);
/// Hex digits of a serial of ours.
const SERIAL_DIGITS: usize = 32;
/// Longer than a client's certificate lives.
const LIFE_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// What the cluster remembers of one certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Hexadecimal, as certificates are printed elsewhere.
    pub(crate) serial: String,
    /// Empty where it was taken back without ever having been on record.
    pub(crate) user: String,
    /// The node that was asked for it.
    pub(crate) node: String,
    /// Its id: if others end its membership, this certificate ends as well, because whoever had root on it may have kept
    /// a copy. Builds before this one wrote none.
    #[serde(default)]
    pub(crate) node_id: String,
    /// Seconds since 1970.
    pub(crate) issued: u64,
    /// Seconds since 1970.
    pub(crate) expires: u64,
    pub(crate) revoked: bool,
    /// SHA-256 of the whole certificate, hexadecimal. Builds before this one wrote none; those are believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
    /// Which of the clients' roots signed it: [`Trust::counts`] says whether that still counts.
    #[serde(default = "first")]
    pub(crate) authority: u64,
}

fn first() -> u64 {
    1
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
    book: Arc<watch::Sender<Book>>,
}

#[derive(Debug, Default)]
struct Book {
    records: BTreeMap<String, Record>,
    /// What the map says of the authorities; all count before it says anything.
    trust: Option<Trust>,
    /// Ids of nodes whose membership others have ended.
    expelled: BTreeSet<String>,
}

impl Book {
    fn standing(&self, shown: &Shown) -> Standing {
        let Some(record) = self.records.get(&serial_of(&shown.serial)) else { return Standing::Unknown };
        match () {
            () if record.sha256.as_ref().is_some_and(|kept| *kept != hex(&shown.sha256)) => Standing::Unknown,
            () if self.is_ended(record) => Standing::Revoked,
            () => Standing::Good,
        }
    }

    /// Taken back, signed by a root that counts no more, or made on a node whose membership others have ended.
    fn is_ended(&self, record: &Record) -> bool {
        let counts = self.trust.as_ref().is_none_or(|trust| trust.counts(record.authority));
        record.revoked || !counts || self.expelled.contains(&record.node_id)
    }
}

impl Default for Clients {
    fn default() -> Self {
        Clients { book: Arc::new(watch::Sender::new(Book::default())) }
    }
}

impl Clients {
    /// Whether this certificate is on record, in date, and not taken back, as far as it is known here.
    pub(crate) fn is_good(&self, chain: &Chain) -> bool {
        let standing = shown_by(chain).map(|(_, shown)| self.book.borrow().standing(&shown));
        standing == Ok(Standing::Good) && chain.validity().until > clock::system()
    }

    /// Takes over everything in `state`.
    pub(crate) fn load(&self, state: &State) {
        let records =
            state.range(PREFIX, None).filter_map(|(_, object)| serde_json::from_slice(&object.value).ok());
        let records = records.map(|record: Record| (record.serial.clone(), record)).collect();
        let trust = authority::trust_of(state).map(|(_, trust)| trust);
        let members = state.range(roster::PREFIX, None);
        let expelled = members.filter(|(_, object)| is_expelled(&object.value));
        let expelled = expelled.filter_map(|(key, _)| key.strip_prefix(roster::PREFIX)).map(str::to_owned);
        self.book.send_replace(Book { records, trust, expelled: expelled.collect() });
    }

    /// Takes over one change of the map, if it is about a certificate or about what it counts by.
    pub(crate) fn apply(&self, key: &str, value: Option<&[u8]>) {
        if key == TRUST {
            let trust = value.and_then(|bytes| serde_json::from_slice(bytes).ok());
            return self.book.send_modify(|book| book.trust = trust);
        }
        if let Some(node) = key.strip_prefix(roster::PREFIX) {
            let is_expelled = value.is_some_and(is_expelled);
            self.book.send_if_modified(|book| match is_expelled {
                true => book.expelled.insert(node.to_owned()),
                false => book.expelled.remove(node),
            });
            return;
        }
        let Some(serial) = key.strip_prefix(PREFIX) else { return };
        let record = value.and_then(|bytes| serde_json::from_slice(bytes).ok());
        self.book.send_modify(|book| match record {
            Some(record) => drop(book.records.insert(serial.to_owned(), record)),
            None => drop(book.records.remove(serial)),
        });
    }

    /// Those that nobody took back and that came from this node.
    pub(crate) fn of_node(&self, node: NodeId) -> Vec<Record> {
        let node = node.to_string();
        let book = self.book.borrow();
        book.records.values().filter(|record| record.node_id == node && !record.revoked).cloned().collect()
    }

    /// All of them, the newest last.
    pub(crate) fn list(&self) -> Vec<Record> {
        let book = self.book.borrow();
        let shown = |record: &Record| Record { revoked: book.is_ended(record), ..record.clone() };
        let mut records: Vec<Record> = book.records.values().map(shown).collect();
        drop(book);
        records.sort_by(|a, b| (a.issued, &a.serial).cmp(&(b.issued, &b.serial)));
        records
    }

    /// Who asks these records, and the cluster where they do not know.
    pub(crate) fn asking(&self, store: Handle<TokioRuntime>, picture: Picture) -> Asking {
        Asking { clients: self.clone(), store, picture, limit: Mutex::default() }
    }

    /// Notes a certificate before its holder gets it, and forgets some that have expired.
    pub(crate) async fn note(
        &self,
        store: &Handle<TokioRuntime>,
        chain: &Chain,
        node: &str,
        node_id: NodeId,
    ) -> Result<Record, String> {
        // Whoever issued it may have heard of new authorities before this node did.
        store.read_index(READ_MAX).await.map_err(|error| error.to_string())?;
        let number = authority::clients_number(&store.state(), chain)
            .ok_or("the cluster's authorities are being made anew at this moment; try again")?;
        let record = record_of(chain, number, node, node_id)?;
        let now = seconds(clock::system());
        let (expired, in_use): (Vec<Record>, Vec<Record>) =
            self.list().into_iter().partition(|old| old.expires <= now);
        if in_use.len() >= RECORDS_MAX {
            return Err(format!(
                "{} client certificates are in use already; they go when they expire",
                in_use.len()
            ));
        }
        let mut ops = vec![record.to_op(Expect::Absent)];
        ops.extend(expired.iter().take(FORGOTTEN_MAX).map(|old| Op {
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
            store.read_index(READ_MAX).await.map_err(|error| error.to_string())?;
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
            if let Some(record) = which.unrecorded().filter(|_| named.is_empty()) {
                ops.push(record.to_op(Expect::Absent));
                named.push(record);
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
}

/// See [`Clients::asking`].
pub(crate) struct Asking {
    clients: Clients,
    store: Handle<TokioRuntime>,
    /// Keeps the records up to date, before it shows what it has.
    picture: Picture,
    /// Whoever has a certificate that is not on record may ask as well: the leader must not feel it.
    limit: Mutex<RateLimit>,
}

#[async_trait]
impl WhoMay for Asking {
    fn standing(&self, shown: &Shown) -> Standing {
        self.clients.book.borrow().standing(shown)
    }

    async fn confirm(&self, shown: &Shown, from: IpAddr) -> Result<Standing, Unconfirmed> {
        if !self.limit.lock().unwrap_or_else(PoisonError::into_inner).allow(from, Instant::now()) {
            return Err(Unconfirmed::TooOften);
        }
        let seen = self.picture.catch_up(&self.store, READ_MAX).await;
        seen.map_err(|error| Unconfirmed::NoMajority(error.to_string()))?;
        Ok(self.standing(shown))
    }

    async fn until_ended(&self, shown: &Shown) {
        let mut was_good = false;
        let ended = |book: &Book| {
            let standing = book.standing(shown);
            was_good |= standing == Standing::Good;
            standing == Standing::Revoked || (was_good && standing == Standing::Unknown)
        };
        // Fails only when the node is gone, and with it every connection.
        let _ = self.clients.book.subscribe().wait_for(ended).await;
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
    /// By a serial or its beginning, as any program prints it: `4A:0B:..`, `0x4a0b..`, `4a0b..`.
    pub(crate) fn serial(text: &str) -> Which {
        let text = text.strip_prefix("0x").unwrap_or(text);
        Which::Serial(text.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase())
    }

    fn names(&self, record: &Record) -> bool {
        match self {
            Which::Serial(begin) => record.serial.starts_with(begin),
            Which::User(user) => record.user == *user,
        }
    }

    /// A record for a whole serial that there is none of yet: it is not to count whatever turns up.
    fn unrecorded(&self) -> Option<Record> {
        let Which::Serial(serial) = self else { return None };
        let whole = serial.len() == SERIAL_DIGITS && serial.bytes().all(|digit| digit.is_ascii_hexdigit());
        let now = clock::system();
        whole.then(|| Record {
            serial: serial.clone(),
            user: String::new(),
            node: String::new(),
            node_id: String::new(),
            issued: seconds(now),
            expires: seconds(now + LIFE_MAX),
            revoked: true,
            sha256: None,
            authority: first(),
        })
    }

    fn check(&self, named: &[Record]) -> Result<(), String> {
        const SEE: &str = "see: skein kubeconfig list";
        match self {
            Which::Serial(begin) if named.len() > 1 => {
                Err(format!("{begin:?} is the beginning of {} serials; {SEE}", named.len()))
            }
            Which::Serial(begin) if named.is_empty() => Err(format!(
                "there is no client certificate {begin:?}; to take back one that is not on record give its whole serial, {SERIAL_DIGITS} digits; {SEE}"
            )),
            Which::User(user) if named.is_empty() => {
                Err(format!("there is no client certificate of {user:?}; {SEE}"))
            }
            _ => Ok(()),
        }
    }
}

/// What a client shows of this certificate.
fn shown_by(chain: &Chain) -> Result<(Identity, Shown), String> {
    let shown = Identity::of_certificate(chain.leaf());
    shown.ok_or_else(|| "the authority's certificate cannot be read".to_owned())
}

fn is_expelled(member: &[u8]) -> bool {
    serde_json::from_slice::<members::Record>(member).is_ok_and(|record| record.expelled)
}

fn record_of(chain: &Chain, authority: u64, node: &str, node_id: NodeId) -> Result<Record, String> {
    let (identity, shown) = shown_by(chain)?;
    let validity = chain.validity();
    Ok(Record {
        serial: serial_of(&shown.serial),
        user: identity.user,
        node: node.to_owned(),
        node_id: node_id.to_string(),
        issued: seconds(clock::system()),
        expires: seconds(validity.until),
        revoked: false,
        sha256: Some(hex(&shown.sha256)),
        authority,
    })
}

/// Without leading zeros that encodings of numbers add.
fn serial_of(serial: &Serial) -> String {
    let zeros = serial.0.iter().take_while(|byte| **byte == 0).count();
    hex(&serial.0[zeros..])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: [u8; 32] = [7; 32];

    fn record(serial: &str, user: &str, revoked: bool) -> Record {
        Record {
            serial: serial.into(),
            user: user.into(),
            node: "one".into(),
            node_id: "11".repeat(16),
            issued: 1,
            expires: 2,
            revoked,
            sha256: Some(hex(&HASH)),
            authority: 1,
        }
    }

    fn put(clients: &Clients, record: &Record) {
        clients.apply(&Record::key(&record.serial), Some(&serde_json::to_vec(record).unwrap()));
    }

    fn shown(serial: &[u8]) -> Shown {
        Shown { serial: Serial(serial.into()), sha256: HASH, until: u64::MAX }
    }

    #[track_caller]
    fn check(clients: &Clients, shown: &Shown, expected: Standing) {
        assert_eq!(clients.book.borrow().standing(shown), expected);
    }

    #[test]
    fn only_what_is_on_record_with_its_hash_is_good() {
        let clients = Clients::default();
        put(&clients, &record("ab01", "ann", false));
        put(&clients, &record("cd02", "bob", true));
        check(&clients, &shown(&[0xab, 0x01]), Standing::Good);
        check(&clients, &shown(&[0, 0xab, 0x01]), Standing::Good);
        check(&clients, &shown(&[0xcd, 0x02]), Standing::Revoked);
        check(&clients, &shown(&[0xef, 0x03]), Standing::Unknown);
        // Somebody with the authority's key made another certificate of a serial that is good.
        check(&clients, &Shown { sha256: [8; 32], ..shown(&[0xab, 0x01]) }, Standing::Unknown);
        clients.apply("skein/clients//ab01", None);
        check(&clients, &shown(&[0xab, 0x01]), Standing::Unknown);
    }

    #[test]
    fn a_record_of_an_older_build_is_believed_by_its_serial() {
        let clients = Clients::default();
        let old = br#"{"serial":"ab01","user":"ann","node":"one","issued":1,"expires":2,"revoked":false}"#;
        clients.apply("skein/clients//ab01", Some(old));
        check(&clients, &shown(&[0xab, 0x01]), Standing::Good);
        assert_eq!(clients.list()[0].authority, 1);
    }

    #[test]
    fn a_certificate_ends_with_the_authority_that_signed_it() {
        let clients = Clients::default();
        put(&clients, &record("ab01", "ann", false));
        put(&clients, &Record { authority: 2, ..record("cd02", "bob", false) });
        let trust = |number: u64| {
            let anchors = format!(r#"[{{"number":{number},"members":"","clients":""}}]"#);
            format!(r#"{{"number":{number},"current":"","since_ms":1,"anchors":{anchors}}}"#)
        };
        clients.apply(TRUST, Some(trust(1).as_bytes()));
        check(&clients, &shown(&[0xab, 0x01]), Standing::Good);
        clients.apply(TRUST, Some(trust(2).as_bytes()));
        check(&clients, &shown(&[0xab, 0x01]), Standing::Revoked);
        check(&clients, &shown(&[0xcd, 0x02]), Standing::Good);
        let revoked: Vec<bool> = clients.list().iter().map(|record| record.revoked).collect();
        assert_eq!(revoked, [true, false]);
    }

    #[test]
    fn certificates_of_a_node_that_others_took_out_end_with_its_membership() {
        let clients = Clients::default();
        put(&clients, &record("ab01", "ann", false));
        let id = "11".repeat(16);
        let member = |expelled: bool| {
            serde_json::json!({
                "node": id, "store": "0011223344556677", "name": "one", "addresses": [], "subnet": "10.42.0.0/24",
                "joined_ms": 1, "fresh": false, "removed": true, "expelled": expelled,
            })
        };
        // One that left took its kubeconfigs nowhere.
        for (expelled, standing) in [(false, Standing::Good), (true, Standing::Revoked)] {
            let value = member(expelled).to_string();
            clients.apply(&format!("{}{id}", roster::PREFIX), Some(value.as_bytes()));
            check(&clients, &shown(&[0xab, 0x01]), standing);
            assert_eq!(clients.list()[0].revoked, expelled);
        }
    }

    #[test]
    fn a_beginning_of_several_serials_names_none() {
        let records = [record("ab01", "ann", false), record("ab02", "ann", false)];
        let check = |which: Which| {
            let named: Vec<Record> = records.iter().filter(|record| which.names(record)).cloned().collect();
            which.check(&named).map(|()| named.len())
        };
        assert_eq!(check(Which::serial("AB:01")), Ok(1));
        assert_eq!(check(Which::serial("0xab01")), Ok(1));
        assert_eq!(check(Which::User("ann".into())), Ok(2));
        assert!(check(Which::serial("ab")).unwrap_err().contains("2 serials"));
        assert!(check(Which::User("eve".into())).unwrap_err().contains("no client certificate"));
    }

    #[test]
    fn a_whole_serial_is_taken_back_though_it_is_not_on_record() {
        let serial = "4A:0B".to_owned() + &":00".repeat(14);
        let record = Which::serial(&serial).unrecorded().expect("a whole serial");
        assert!(record.revoked && record.serial.starts_with("4a0b") && record.serial.len() == SERIAL_DIGITS);
        let clients = Clients::default();
        put(&clients, &record);
        let bytes = [&[0x4a, 0x0b][..], &[0; 14]].concat();
        check(&clients, &shown(&bytes), Standing::Revoked);
        for text in ["4a0b", "not hexadecimal, but of 32 letters", &"g".repeat(32)] {
            assert_eq!(Which::serial(text).unrecorded(), None, "{text}");
        }
        assert!(Which::serial("4a").check(&[]).unwrap_err().contains("whole serial"));
    }
}
