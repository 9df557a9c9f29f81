//! A node is a key, not an address: the key, the id that follows from it, the number of its starts,
//! and the id of its data directory.
//!
//! Two files under the data directory:
//!
//! * `node.key`: the P-256 private key, PKCS#8 PEM, mode 0600. Whoever has it *is* the node.
//! * `node.json`: node id (a cross-check), store id, generation. Plain text for the operator's eye.
//!
//! Does not guard against two processes on one directory; the raft log's lock does.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SigningKey as _,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls_pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

pub use crate::ids::ParseIdError;
use crate::ids::hex_id;

const KEY_FILE: &str = "node.key";
const STATE_FILE: &str = "node.json";
const STATE_VERSION: u32 = 1;

/// Both files are under 1 KiB; whatever is larger was not written here.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// Why a node's identity could not be had. No variant leaves a changed file behind, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file or directory is as it was.
    #[error("cannot read {path}; check that the disk is mounted and that this user owns it")]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The old content, if any, is still in place; a file `*.tmp` may be left beside it.
    #[error("cannot write {path}; check that the disk is mounted, has space, and that this user owns it")]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file is untouched.
    #[error(
        "{path} is damaged ({reason}); restore it from a copy, or move the whole data directory away \
         and join again as a new node"
    )]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is untouched.
    #[error(
        "{path} has format {found}, this build reads up to {newest}; start the newer build that wrote it"
    )]
    NewerFormat {
        /// The file of a newer build.
        path: PathBuf,
        /// The format it has.
        found: u32,
        /// The newest format this build knows.
        newest: u32,
    },
    /// The file is untouched.
    #[error("the private key {path} may be read by others (mode {mode:o}); run: chmod 600 {path}")]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its mode bits.
        mode: u32,
    },
    /// The directory is untouched.
    #[error(
        "{state} says that this was a node, but its key {key} is missing; restore the key from a copy, \
         or move the whole data directory away and join again as a new node"
    )]
    KeyMissing {
        /// The file that remembers the node.
        state: PathBuf,
        /// The file that should be there.
        key: PathBuf,
    },
    /// The system has no randomness to give, or the key library refused.
    #[error("could not make a key: {0}; try again")]
    Key(String),
}

hex_id!(
    /// What a node is called everywhere: the first 16 bytes of SHA-256 of its public key (SPKI, DER).
    ///
    /// Nobody can take another node's id without its key, and a new key is a new node.
    NodeId,
    16
);

impl NodeId {
    /// The id that belongs to a public key, given as SubjectPublicKeyInfo in DER.
    pub fn of_public_key(spki: &[u8]) -> NodeId {
        let hash: [u8; 32] = Sha256::digest(spki).into();
        NodeId(hash[..16].try_into().expect("16 of 32 bytes"))
    }

    /// The first eight hex digits, for people: enough to tell the nodes of one cluster apart.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }
}

hex_id!(
    /// The id of a data directory, drawn when it is created. With the node id it names a voter, so that
    /// an emptied disk never votes under its old name.
    StoreId,
    8
);

/// This node: its key and what follows from it. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    key: Arc<KeyPair>,
    node: NodeId,
    store: StoreId,
    generation: u64,
}

impl Identity {
    /// Loads the identity kept in `dir`, or makes one there, and counts this start.
    ///
    /// The raised generation is on disk when this returns: a node that ran under a generation never
    /// runs under it again. A key without `node.json` (a crash between the two, or a lost file) gets a
    /// new store id: what was voted under the old one is not known here.
    pub fn load_or_create(dir: &Path) -> Result<Identity, Error> {
        create_directory(dir)?;
        let (key_path, state_path) = (dir.join(KEY_FILE), dir.join(STATE_FILE));
        let key = read(&key_path)?;
        let state = State::kept(&state_path)?;
        let key = match (key, &state) {
            (Some(pem), _) => parse_key(&key_path, &pem)?,
            (None, Some(_)) => return Err(Error::KeyMissing { state: state_path, key: key_path }),
            (None, None) => create_key(dir)?,
        };
        let node = NodeId::of_public_key(&key.subject_public_key_info());
        let state = match state {
            Some(state) if state.node != node => {
                let reason = format!("it belongs to node {}, the key to node {node}", state.node);
                return Err(Error::Damaged { path: state_path, reason });
            }
            Some(state) => state.next_generation(&state_path)?,
            None => State { version: STATE_VERSION, node, store: StoreId(random()?), generation: 1 },
        };
        write_durably(dir, STATE_FILE, state.to_text().as_bytes())?;
        Ok(Identity { key: Arc::new(key), node, store: state.store, generation: state.generation })
    }

    /// The identity kept in `dir`, as it was at its last start; `None` if there is none. Counts no start: nothing may
    /// run under it.
    pub fn kept(dir: &Path) -> Result<Option<Identity>, Error> {
        let (key_path, state_path) = (dir.join(KEY_FILE), dir.join(STATE_FILE));
        let (Some(pem), Some(state)) = (read(&key_path)?, State::kept(&state_path)?) else { return Ok(None) };
        let key = parse_key(&key_path, &pem)?;
        let node = NodeId::of_public_key(&key.subject_public_key_info());
        Ok(Some(Identity { key: Arc::new(key), node, store: state.store, generation: state.generation }))
    }

    /// The next start from `dir` comes after start `generation`, which others remember and this disk does not.
    pub fn outlive(dir: &Path, generation: u64) -> Result<(), Error> {
        let Some(state) = State::kept(&dir.join(STATE_FILE))? else { return Ok(()) };
        let generation = state.generation.max(generation);
        write_durably(dir, STATE_FILE, State { generation, ..state }.to_text().as_bytes())
    }

    /// Which node the identity kept in `dir` is; `None` if there is none. Counts no start.
    pub fn node_in(dir: &Path) -> Result<Option<NodeId>, Error> {
        Ok(State::kept(&dir.join(STATE_FILE))?.map(|state| state.node))
    }

    /// A new identity that lives in memory only.
    pub fn ephemeral() -> Result<Identity, Error> {
        let key = generate_key()?;
        let node = NodeId::of_public_key(&key.subject_public_key_info());
        Ok(Identity { key: Arc::new(key), node, store: StoreId(random()?), generation: 1 })
    }

    /// Who this node is.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Which data directory this is.
    pub fn store(&self) -> StoreId {
        self.store
    }

    /// How many times this data directory was started, this time included.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// A request for a certificate, signed by the node's key. It asks for nothing but the key: what the
    /// certificate says is the authority's template.
    ///
    /// Each call signs anew, so the bytes differ: keep them to repeat a join.
    pub fn csr(&self) -> Result<CertificateSigningRequestDer<'static>, Error> {
        request_for(&self.key, &self.node.to_string())
    }

    /// The public key as SubjectPublicKeyInfo in DER: what the node's id is the hash of.
    pub fn public_key(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    /// The private key as PKCS#8, for TLS.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    /// Signs `message` with the node's key (ECDSA P-256, SHA-256, DER).
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.key.sign(message).map_err(|e| Error::Key(e.to_string()))
    }

    /// 64 bytes that only this key gives for this purpose, the same after a restart.
    pub fn derive(&self, purpose: &str) -> [u8; 64] {
        let mut hash = Sha512::new();
        hash.update(b"skein derived key v1\0");
        hash.update(purpose.as_bytes());
        hash.update(b"\0");
        hash.update(self.key.serialized_der());
        hash.finalize().into()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("node", &self.node)
            .field("store", &self.store)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// A new P-256 key.
pub(crate) fn generate_key() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| Error::Key(e.to_string()))
}

/// A signing request for `key` that names `subject` and asks for nothing else.
pub(crate) fn request_for(
    key: &KeyPair,
    subject: &str,
) -> Result<CertificateSigningRequestDer<'static>, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    let request = params.serialize_request(key).map_err(|e| Error::Key(e.to_string()))?;
    Ok(request.into())
}

/// Random bytes of the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Key("no randomness".into()))?;
    Ok(bytes)
}

/// What `node.json` holds.
#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    node: NodeId,
    store: StoreId,
    generation: u64,
}

impl State {
    fn kept(path: &Path) -> Result<Option<State>, Error> {
        read(path)?.map(|text| State::parse(path, &text)).transpose()
    }

    fn parse(path: &Path, text: &str) -> Result<State, Error> {
        let damaged = |reason: String| Error::Damaged { path: path.to_owned(), reason };
        // The version first: a newer format may differ in everything else.
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| damaged(e.to_string()))?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(found) if found > u64::from(STATE_VERSION) => {
                let found = u32::try_from(found).unwrap_or(u32::MAX);
                Err(Error::NewerFormat { path: path.to_owned(), found, newest: STATE_VERSION })
            }
            Some(_) => serde_json::from_value(value).map_err(|e| damaged(e.to_string())),
            None => Err(damaged("no version".into())),
        }
    }

    fn next_generation(mut self, path: &Path) -> Result<State, Error> {
        self.generation = self.generation.checked_add(1).ok_or_else(|| Error::Damaged {
            path: path.to_owned(),
            reason: "the generation cannot be raised further".into(),
        })?;
        Ok(self)
    }

    fn to_text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("plain fields");
        text.push('\n');
        text
    }
}

fn create_directory(dir: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| Error::Write { path: dir.to_owned(), source })
}

fn create_key(dir: &Path) -> Result<KeyPair, Error> {
    let key = generate_key()?;
    write_durably(dir, KEY_FILE, key.serialize_pem().as_bytes())?;
    Ok(key)
}

fn parse_key(path: &Path, pem: &str) -> Result<KeyPair, Error> {
    let metadata = fs::metadata(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::Exposed { path: path.to_owned(), mode });
    }
    KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256).map_err(|_| Error::Damaged {
        path: path.to_owned(),
        reason: "not a P-256 private key in PKCS#8 PEM".into(),
    })
}

/// The text of the file, or `None` where there is no such file.
fn read(path: &Path) -> Result<Option<String>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    if length > FILE_BYTES_MAX {
        let reason = format!("{length} bytes, never more than {FILE_BYTES_MAX}");
        return Err(Error::Damaged { path: path.to_owned(), reason });
    }
    let bytes = fs::read(path).map_err(failed)?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(Error::Damaged { path: path.to_owned(), reason: "not text".into() }),
    }
}

/// Replaces `dir/name` so that after a power cut either the old or the new content is there, whole.
fn write_durably(dir: &Path, name: &str, content: &[u8]) -> Result<(), Error> {
    let (path, tmp) = (dir.join(name), dir.join(format!("{name}.tmp")));
    let write = || -> io::Result<()> {
        // A leftover of a crash might have another mode, which `open` would keep.
        match fs::remove_file(&tmp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&tmp, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| Error::Write { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn damage(dir: &Path, name: &str, content: &[u8]) -> Error {
        let path = dir.join(name);
        fs::write(&path, content).expect("the test's own file");
        let error = Identity::load_or_create(dir).expect_err("damaged");
        assert_eq!(fs::read(&path).expect("still there"), content, "the damaged file is untouched");
        assert!(error.to_string().contains(name), "{error} names the file");
        error
    }

    #[test]
    fn a_restarted_node_is_the_same_node_in_its_next_generation() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = Identity::load_or_create(dir.path()).expect("created");
        let second = Identity::load_or_create(dir.path()).expect("loaded");
        assert_eq!((first.node(), first.store()), (second.node(), second.store()));
        assert_eq!((first.generation(), second.generation()), (1, 2));
        assert_eq!(first.derive("x"), second.derive("x"));
        assert_ne!(first.derive("x"), first.derive("y"));
        assert_eq!(Identity::node_in(dir.path()).expect("readable"), Some(first.node()));
        let kept = Identity::kept(dir.path()).expect("readable").expect("it is there");
        assert_eq!((kept.node(), kept.generation()), (first.node(), 2));
        Identity::outlive(dir.path(), 1).expect("written");
        assert_eq!(
            Identity::load_or_create(dir.path()).expect("loaded").generation(),
            3,
            "looking is no start"
        );
        Identity::outlive(dir.path(), 7).expect("written");
        assert_eq!(Identity::load_or_create(dir.path()).expect("loaded").generation(), 8);
    }

    #[test]
    fn the_node_id_is_the_hash_of_the_public_key() {
        let identity = Identity::ephemeral().expect("a key");
        let spki = identity.key.subject_public_key_info();
        assert_eq!(identity.node().0, Sha256::digest(&spki)[..16]);
        assert_eq!(identity.node().to_string().parse(), Ok(identity.node()));
        assert!(identity.node().to_string().starts_with(&identity.node().short()));
    }

    #[test]
    fn the_key_file_is_for_its_owner_only() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Identity::load_or_create(dir.path()).expect("created");
        let path = dir.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&path).expect("written").mode() & 0o777, 0o600);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("own file");
        let error = Identity::load_or_create(dir.path()).expect_err("exposed");
        assert!(matches!(error, Error::Exposed { mode: 0o644, .. }), "{error}");
    }

    #[test]
    fn a_crash_between_the_two_files_leaves_a_node_that_starts() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = Identity::load_or_create(dir.path()).expect("created");
        fs::remove_file(dir.path().join(STATE_FILE)).expect("own file");
        fs::write(dir.path().join("node.json.tmp"), "half").expect("own file");
        let second = Identity::load_or_create(dir.path()).expect("the key is whole");
        assert_eq!(first.node(), second.node());
        assert_ne!(first.store(), second.store(), "what was voted under the old id is forgotten");
        assert!(!dir.path().join("node.json.tmp").exists());
    }

    #[test]
    fn damaged_files_are_named_and_left_as_they_are() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Identity::load_or_create(dir.path()).expect("created");
        let state = fs::read(dir.path().join(STATE_FILE)).expect("written");
        for content in [b"".as_slice(), b"{", b"[]", b"\xff\xfe", b"{\"version\":1}", &[b'x'; 20_000]] {
            assert!(matches!(damage(dir.path(), STATE_FILE, content), Error::Damaged { .. }));
        }
        let newer = b"{\"version\":2,\"node\":{}}";
        assert!(matches!(damage(dir.path(), STATE_FILE, newer), Error::NewerFormat { found: 2, .. }));
        let last = br#"{"version":1,"node":"00000000000000000000000000000000","store":"0000000000000000","generation":1}"#;
        assert!(matches!(damage(dir.path(), STATE_FILE, last), Error::Damaged { .. }), "of another node");

        fs::write(dir.path().join(STATE_FILE), state).expect("own file");
        assert!(matches!(damage(dir.path(), KEY_FILE, b"-----BEGIN"), Error::Damaged { .. }));
    }

    #[test]
    fn a_data_directory_without_its_key_is_not_given_a_new_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Identity::load_or_create(dir.path()).expect("created");
        fs::remove_file(dir.path().join(KEY_FILE)).expect("own file");
        let error = Identity::load_or_create(dir.path()).expect_err("no key");
        assert!(matches!(error, Error::KeyMissing { .. }), "{error}");
        assert!(!dir.path().join(KEY_FILE).exists());
    }

    #[test]
    fn ids_read_as_hex_in_json_and_as_plain_bytes_elsewhere() {
        let node = NodeId([0xab; 16]);
        let json = serde_json::to_string(&node).expect("plain");
        assert_eq!(json, format!("\"{}\"", "ab".repeat(16)));
        assert_eq!(serde_json::from_str::<NodeId>(&json).expect("hex"), node);
        let bytes = crate::encoding::encode(1, &node);
        assert_eq!(bytes[1..], node.0);
        for text in ["", "ab", "zz".repeat(16).as_str(), "ab".repeat(17).as_str(), "äb".repeat(8).as_str()] {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
    }
}
