//! The file of `skein backup`: everything that the cluster knows, and its authorities, encrypted.
//!
//! It is a file of the age format (<https://age-encryption.org/v1>), so that any program for that opens it as well:
//! with the recovery key that the founding printed, or with a passphrase. Encrypted is a row of frames, each led by its
//! length (u32, little endian): the [`Header`] as JSON, then the state's records as a snapshot has them. The age format
//! itself notices every change and every cut.
//!
//! Only the public half of the recovery key is in the map. A node that holds the authorities seals them to that half
//! before it gives them to the node that makes the backup, which may be one that must not have them. With a passphrase
//! there is no such half: then only a node that holds them makes the backup.

pub(crate) mod restoration;

use std::io::{self, BufReader, Read, Write};
use std::path::PathBuf;

use age::secrecy::{ExposeSecret as _, SecretString};
use age::{DecryptError, Decryptor, Encryptor, x25519};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::Stream;
use serde::{Deserialize, Serialize};
use skein_net::ca::ClusterCa;
use skein_net::incarnation::Tag;
use skein_raft_store::{Change, Expect, Op, State};
use tokio::sync::mpsc;

use crate::admission::json;

/// Where the map has the public half of the recovery key.
const RECIPIENT: &str = "skein/backups//recipient";
/// What this build writes, and the newest it reads.
pub(crate) const FORMAT: u32 = 1;
/// The authorities and some words.
const HEADER_BYTES_MAX: u32 = 1 << 20;
/// A record of a state has 1 MiB and its last object.
const RECORD_BYTES_MAX: u32 = 4 << 20;
/// A passphrase costs whoever guesses 2^16 blocks of work, and everybody 64 MiB of memory: a small machine has them.
const WORK_FACTOR: u8 = 16;
/// Nobody waits for minutes, or for gigabytes of memory, because a file says so.
const WORK_FACTOR_MAX: u8 = 20;
/// What people remember can be guessed; twelve letters are a beginning.
const PASSPHRASE_MIN: usize = 12;

/// Of a cluster that was founded by a build without backups.
pub(crate) const NO_RECOVERY_KEY: &str = "this cluster has no recovery key yet; make one with: skein ca recovery-key (or give the backup a --passphrase)";

/// The public half of the recovery key, as the map has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recipient {
    /// As age writes it: `age1...`.
    pub(crate) recipient: String,
    /// Milliseconds since 1970.
    pub(crate) since_ms: u64,
}

impl Recipient {
    /// Draws a recovery key. The first of the two is the secret half, as age writes it: `AGE-SECRET-KEY-1...`.
    pub(crate) fn draw(now_ms: u64) -> (SecretString, Recipient) {
        let key = x25519::Identity::generate();
        (key.to_string(), Recipient { recipient: key.to_public().to_string(), since_ms: now_ms })
    }

    pub(crate) fn of(state: &State) -> Option<Recipient> {
        serde_json::from_slice(&state.get(RECIPIENT)?.value).ok()
    }

    /// Makes it the cluster's.
    pub(crate) fn to_op(&self) -> Op {
        Op { key: RECIPIENT.into(), expect: Expect::Any, change: Change::Put(json(self)) }
    }

    fn key(&self) -> Result<x25519::Recipient, String> {
        let wrong = |error: &str| {
            format!(
                "the recovery key on record is none ({error}); make another one with: skein ca recovery-key"
            )
        };
        self.recipient.parse().map_err(wrong)
    }

    /// What only the secret half opens.
    pub(crate) fn seal(&self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        age::encrypt(&self.key()?, bytes).map_err(|error| error.to_string())
    }
}

/// What a backup begins with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) format: u32,
    /// The cluster's name.
    pub(crate) cluster: String,
    /// Which life of which cluster.
    pub(crate) tag: Tag,
    pub(crate) revision: u64,
    /// How many objects follow.
    pub(crate) objects: usize,
    /// Milliseconds since 1970, by the node that made it.
    pub(crate) taken_ms: u64,
    /// Names of the node that made it, and of all members.
    pub(crate) node: String,
    pub(crate) members: Vec<String>,
    /// The build.
    pub(crate) version: String,
    pub(crate) authorities: Authorities,
    /// To whom the file is to be encrypted; `None`: by a passphrase.
    pub(crate) recipient: Option<Recipient>,
}

/// The cluster's authorities, base64.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Authorities {
    /// As [`ClusterCa::to_bytes`] has them.
    Plain(String),
    /// The same, sealed to the recovery key once more.
    Sealed(String),
}

impl Authorities {
    pub(crate) fn plain(bytes: &[u8]) -> Authorities {
        Authorities::Plain(STANDARD.encode(bytes))
    }

    pub(crate) fn sealed(bytes: &[u8]) -> Authorities {
        Authorities::Sealed(STANDARD.encode(bytes))
    }
}

/// All that is to be encrypted, frame by frame. Encoded beside the threads that carry everything else, and no faster than
/// it is taken.
pub(crate) fn frames(header: &Header, state: State) -> impl Stream<Item = Bytes> + Send + 'static + use<> {
    let header = serde_json::to_vec(header).expect("plain data has no key that is not a text");
    let (sender, mut receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        for frame in std::iter::once(header).chain(state.records()) {
            let length = u32::try_from(frame.len()).expect("a record is far below 4 GiB");
            let frame = Bytes::from([length.to_le_bytes().as_slice(), &frame].concat());
            if sender.blocking_send(frame).is_err() {
                return;
            }
        }
    });
    futures::stream::poll_fn(move |context| receiver.poll_recv(context))
}

/// What opens a backup.
pub(crate) enum Secret {
    Key(x25519::Identity),
    Passphrase(SecretString),
}

impl Secret {
    /// By what somebody typed or keeps in a file: as the founding printed it, or a passphrase.
    pub(crate) fn parse(text: &str) -> Result<Secret, String> {
        let word = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
        let word = word.ok_or("there is neither a recovery key nor a passphrase in it")?;
        if word.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
            let key = word.parse().map_err(|_| "this recovery key has a typing error, or is not whole")?;
            return Ok(Secret::Key(key));
        }
        Ok(Secret::Passphrase(word.to_owned().into()))
    }

    /// A passphrase for a backup that is made now.
    pub(crate) fn new_passphrase(text: &str) -> Result<SecretString, String> {
        match Secret::parse(text)? {
            Secret::Passphrase(word) if word.expose_secret().chars().count() >= PASSPHRASE_MIN => Ok(word),
            Secret::Passphrase(_) => Err(format!(
                "a passphrase of a backup has {PASSPHRASE_MIN} characters or more; take four words, say"
            )),
            Secret::Key(_) => {
                Err("that is a recovery key and no passphrase; keep it where it is safe".into())
            }
        }
    }
}

/// The header, once all of it has come.
pub(crate) fn header_in(mut bytes: &[u8]) -> Result<Option<Header>, String> {
    match frame(&mut bytes, HEADER_BYTES_MAX) {
        Ok(Some(header)) => serde_json::from_slice(&header)
            .map(Some)
            .map_err(|_| "the daemon gave no backup; it may be of another version".to_owned()),
        Ok(None) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// What encrypts everything that is written to it, into `file`. It has to be finished.
pub(crate) fn encrypting<W: Write>(
    header: &Header,
    passphrase: Option<SecretString>,
    file: W,
) -> Result<age::stream::StreamWriter<W>, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("could not encrypt: {error}");
    let encryptor = match (passphrase, &header.recipient) {
        (Some(passphrase), _) => {
            let mut recipient = age::scrypt::Recipient::new(passphrase);
            recipient.set_work_factor(WORK_FACTOR);
            Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient))
        }
        (None, Some(recipient)) => {
            Encryptor::with_recipients(std::iter::once(&recipient.key()? as &dyn age::Recipient))
        }
        (None, None) => return Err("the daemon named no recovery key".into()),
    };
    encryptor.map_err(|error| wrong(&error))?.wrap_output(file).map_err(|error| wrong(&error))
}

/// A backup, read to its end.
pub(crate) struct Backup {
    pub(crate) header: Header,
    pub(crate) authority: ClusterCa,
    pub(crate) state: State,
}

/// Why a file is not restored. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not read {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is no backup of skein; give the file that `skein backup` wrote")]
    NoBackup { path: PathBuf },
    #[error("{path} is encrypted with a passphrase, and this is a recovery key; give the passphrase")]
    WantsPassphrase { path: PathBuf },
    #[error(
        "{path} is encrypted to a recovery key, and this is none; it begins with AGE-SECRET-KEY-1 and was printed when the cluster was founded, or by: skein ca recovery-key"
    )]
    WantsKey { path: PathBuf },
    #[error("{path} does not open with this {what}; check that it belongs to this backup")]
    Closed { path: PathBuf, what: &'static str },
    #[error("{path} is damaged or not whole ({reason}); take another copy, or an older backup")]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "{path} has format {found}, this build reads up to {FORMAT}; restore it with the build that wrote it ({version})"
    )]
    Newer { path: PathBuf, found: u64, version: String },
}

/// Opens a backup and reads it to its end.
pub(crate) fn read(path: &std::path::Path, secret: &Secret) -> Result<Backup, Error> {
    let unreadable = |source| Error::Io { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(Error::NoBackup { path: path.to_owned() });
    }
    read_from(BufReader::new(file), path, secret)
}

fn read_from(file: impl io::BufRead, path: &std::path::Path, secret: &Secret) -> Result<Backup, Error> {
    let path = || path.to_owned();
    let damaged =
        |reason: &dyn std::fmt::Display| Error::Damaged { path: path(), reason: reason.to_string() };
    let decryptor = Decryptor::new_buffered(file).map_err(|error| match error {
        DecryptError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            Error::Io { path: path(), source: error }
        }
        _ => Error::NoBackup { path: path() },
    })?;
    let opened = match (secret, decryptor.is_scrypt()) {
        (Secret::Key(_), true) => return Err(Error::WantsPassphrase { path: path() }),
        (Secret::Passphrase(_), false) => return Err(Error::WantsKey { path: path() }),
        (Secret::Key(key), false) => decryptor.decrypt(std::iter::once(key as &dyn age::Identity)),
        (Secret::Passphrase(word), true) => {
            let mut identity = age::scrypt::Identity::new(word.clone());
            identity.set_max_work_factor(WORK_FACTOR_MAX);
            decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity))
        }
    };
    let mut plain = opened.map_err(|error| match error {
        DecryptError::NoMatchingKeys | DecryptError::DecryptionFailed | DecryptError::KeyDecryptionFailed => {
            let what = if matches!(secret, Secret::Key(_)) { "recovery key" } else { "passphrase" };
            Error::Closed { path: path(), what }
        }
        error => damaged(&error),
    })?;

    let first = frame(&mut plain, HEADER_BYTES_MAX).map_err(|error| damaged(&error))?;
    let first = first.ok_or_else(|| Error::NoBackup { path: path() })?;
    // What the rest means is up to the format.
    let value: serde_json::Value =
        serde_json::from_slice(&first).map_err(|_| Error::NoBackup { path: path() })?;
    match value["format"].as_u64() {
        Some(found) if found > u64::from(FORMAT) => {
            let version = value["version"].as_str().unwrap_or("unknown").to_owned();
            return Err(Error::Newer { path: path(), found, version });
        }
        Some(_) => {}
        None => return Err(Error::NoBackup { path: path() }),
    }
    let header: Header = serde_json::from_value(value).map_err(|error| damaged(&error))?;
    let mut failed = None;
    let records = std::iter::from_fn(|| match frame(&mut plain, RECORD_BYTES_MAX) {
        Ok(record) => record,
        Err(error) => {
            failed = Some(error);
            None
        }
    });
    let state = State::from_records(records);
    if let Some(error) = failed {
        return Err(damaged(&error));
    }
    let state = state.map_err(|error| damaged(&error))?;
    if (state.len(), state.revision()) != (header.objects, header.revision) {
        return Err(damaged(&"objects are missing"));
    }
    let authority = authorities(&header.authorities, secret).map_err(|reason| damaged(&reason))?;
    if authority.cluster().id != header.tag.cluster {
        return Err(damaged(&"the authorities in it are another cluster's"));
    }
    Ok(Backup { header, authority, state })
}

fn authorities(kept: &Authorities, secret: &Secret) -> Result<ClusterCa, String> {
    let (Authorities::Plain(text) | Authorities::Sealed(text)) = kept;
    let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
    let bytes = match (kept, secret) {
        (Authorities::Plain(_), _) => bytes,
        (Authorities::Sealed(_), Secret::Key(key)) => {
            age::decrypt(key, &bytes).map_err(|error| error.to_string())?
        }
        (Authorities::Sealed(_), Secret::Passphrase(_)) => {
            return Err("the authorities in it are sealed".into());
        }
    };
    ClusterCa::from_bytes(&bytes).map_err(|error| error.to_string())
}

/// One frame; `None` at the end.
fn frame(from: &mut impl Read, bytes_max: u32) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read(&mut length[..1])? {
        0 => return Ok(None),
        _ => from.read_exact(&mut length[1..])?,
    }
    let length = u32::from_le_bytes(length);
    if length > bytes_max {
        return Err(io::Error::other(format!("a part of {length} bytes")));
    }
    let mut frame = vec![0; length as usize];
    from.read_exact(&mut frame)?;
    Ok(Some(frame))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::SystemTime;

    use futures::StreamExt as _;
    use skein_net::incarnation::Incarnation;

    use super::*;

    const WORDS: &str = "correct horse battery staple";

    fn authority() -> ClusterCa {
        ClusterCa::create("home", SystemTime::now()).unwrap()
    }

    /// Some objects, larger than one record together.
    fn state() -> State {
        let value = Bytes::from(vec![7; 400 << 10]);
        let ops = (0..5).map(|n| Op {
            key: format!("core/configmaps/default/{n}").into(),
            expect: Expect::Any,
            change: Change::Put(value.clone()),
        });
        State::default().next_life(1, ops.collect())
    }

    fn header(authority: &ClusterCa, state: &State, recipient: Option<Recipient>) -> Header {
        let bytes = authority.to_bytes();
        let cluster = authority.cluster();
        Header {
            format: FORMAT,
            cluster: cluster.name.clone(),
            tag: Tag { cluster: cluster.id, incarnation: Incarnation::unnamed(cluster.id) },
            revision: state.revision(),
            objects: state.len(),
            taken_ms: 1,
            node: "one".into(),
            members: vec!["one".into()],
            version: "0".into(),
            authorities: match &recipient {
                Some(recipient) => Authorities::sealed(&recipient.seal(&bytes).unwrap()),
                None => Authorities::plain(&bytes),
            },
            recipient,
        }
    }

    async fn made(header: &Header, state: State) -> Vec<u8> {
        let passphrase = header.recipient.is_none().then(|| Secret::new_passphrase(WORDS).unwrap());
        let mut writer = encrypting(header, passphrase, Vec::new()).unwrap();
        let mut frames = std::pin::pin!(frames(header, state));
        while let Some(frame) = frames.next().await {
            writer.write_all(&frame).unwrap();
        }
        writer.finish().unwrap()
    }

    fn opened(file: &[u8], secret: &str) -> Result<Backup, String> {
        read_from(file, Path::new("b"), &Secret::parse(secret).unwrap()).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(file: &[u8], secret: &str, word: &str) {
        let error = opened(file, secret).err().expect("it is refused");
        assert!(error.contains(word), "{error}");
    }

    #[tokio::test]
    async fn a_backup_comes_back_by_the_key_it_was_made_for_and_by_no_other() {
        let (authority, state) = (authority(), state());
        let (secret, recipient) = Recipient::draw(1);
        let file = made(&header(&authority, &state, Some(recipient)), state.clone()).await;
        let backup = opened(&file, secret.expose_secret()).unwrap();
        assert_eq!(backup.state, state);
        assert_eq!(backup.authority.fingerprint(), authority.fingerprint());
        refused(&file, Recipient::draw(1).0.expose_secret(), "does not open with this recovery key");
        refused(&file, WORDS, "encrypted to a recovery key");
    }

    #[tokio::test]
    async fn a_backup_comes_back_by_its_passphrase() {
        let (authority, state) = (authority(), state());
        let file = made(&header(&authority, &state, None), state.clone()).await;
        assert_eq!(opened(&file, WORDS).unwrap().state, state);
        refused(&file, "correct horse battery", "does not open with this passphrase");
        refused(&file, Recipient::draw(1).0.expose_secret(), "give the passphrase");
    }

    #[tokio::test]
    async fn neither_a_secret_nor_the_authorities_can_be_read_in_a_backup() {
        let authority = authority();
        let op = Op { key: "a".into(), expect: Expect::Any, change: Change::Put("hunter2".into()) };
        let state = State::default().next_life(1, vec![op]);
        let (_, recipient) = Recipient::draw(1);
        let file = made(&header(&authority, &state, Some(recipient)), state).await;
        let holds = |words: &[u8]| file.windows(words.len()).any(|window| window == words);
        assert!(!holds(b"hunter2") && !holds(b"home") && !holds(&authority.to_bytes()[..32]));
    }

    #[tokio::test]
    async fn one_that_is_cut_or_changed_anywhere_restores_nothing() {
        let (authority, state) = (authority(), state());
        let (secret, recipient) = Recipient::draw(1);
        let file = made(&header(&authority, &state, Some(recipient)), state.clone()).await;
        let secret = secret.expose_secret();
        // The age format's own pieces have 64 KiB.
        for length in (0..file.len()).step_by(10_007).chain([file.len() - 1]) {
            assert!(opened(&file[..length], secret).is_err(), "cut at {length}");
        }
        for at in (0..file.len()).step_by(50_021).chain([file.len() - 1]) {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert!(opened(&changed, secret).is_err(), "changed at {at}");
        }
        // Whole by itself, and not what its beginning says.
        let (_, recipient) = Recipient::draw(1);
        let short = Header { objects: 6, recipient: None, ..header(&authority, &state, Some(recipient)) };
        let short = Header { authorities: Authorities::plain(&authority.to_bytes()), ..short };
        refused(&made(&short, state).await, WORDS, "objects are missing");
    }

    #[tokio::test]
    async fn what_is_no_backup_or_of_a_newer_build_is_called_that() {
        refused(b"", WORDS, "no backup of skein");
        refused(b"PK\x03\x04 some archive", WORDS, "no backup of skein");
        let (authority, state) = (authority(), state());
        let newer = Header { format: FORMAT + 1, version: "9.1".into(), ..header(&authority, &state, None) };
        refused(&made(&newer, state).await, WORDS, "9.1");
        let mut writer =
            encrypting(&newer, Some(Secret::new_passphrase(WORDS).unwrap()), Vec::new()).unwrap();
        writer.write_all(b"somebody's letter").unwrap();
        assert!(opened(&writer.finish().unwrap(), WORDS).is_err());
    }

    #[test]
    fn keys_and_passphrases_are_told_apart_and_typing_errors_are_found() {
        let (secret, _) = Recipient::draw(1);
        let secret = secret.expose_secret();
        let file = format!("# kept since the founding\n\n  {secret}\n");
        assert!(matches!(Secret::parse(&file), Ok(Secret::Key(_))));
        // Behind the words that every key begins with.
        let mut typed = secret.to_owned();
        typed.replace_range(20..21, "!");
        assert!(Secret::parse(&typed).err().unwrap().contains("typing error"));
        assert!(matches!(Secret::parse(WORDS), Ok(Secret::Passphrase(_))));
        assert!(Secret::parse("\n# nothing\n").is_err());
        assert!(Secret::new_passphrase("hunter2").is_err() && Secret::new_passphrase(secret).is_err());
    }
}
