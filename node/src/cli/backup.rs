//! `skein backup` and `skein ca recovery-key`: what the daemon gives, encrypted here into a file.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use age::secrecy::SecretString;
use http::Method;

use super::secret;
use super::talk::{talk, talk_in_pieces};
use super::verbs::{confirm, lines, text};
use crate::backup::{self, Header, Secret};
use crate::daemon::Failure;

/// A key or some words, and whatever somebody wrote beside them.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// What a backup is encrypted with instead of the recovery key.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Passphrase {
    /// Encrypt with a passphrase, which is asked for, instead of to the recovery key.
    #[arg(long)]
    passphrase: bool,
    /// The same with the passphrase in this file; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Passphrase {
    fn read(&self) -> Result<Option<SecretString>, Failure> {
        let words = match &self.passphrase_file {
            Some(file) => secret_in(file)?,
            None if self.passphrase => {
                let [words, again] = ["Passphrase: ", "The same again: "].map(ask);
                let words = words?;
                if words != again? {
                    return Err("the two are not the same; nothing was made".into());
                }
                words
            }
            None => return Ok(None),
        };
        Ok(Some(Secret::new_passphrase(&words)?))
    }
}

/// What opens a backup: from a file, or asked for.
pub(super) fn secret(file: Option<&Path>) -> Result<Secret, Failure> {
    let words = match file {
        Some(file) => secret_in(file)?,
        None => ask("Recovery key or passphrase: ")?,
    };
    Ok(Secret::parse(&words)?)
}

fn ask(what: &str) -> Result<String, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err("nobody can be asked for the key here; give it in a file: --key-file (to make a backup: --passphrase-file)".into());
    }
    Ok(rpassword::prompt_password(what)?)
}

fn secret_in(file: &Path) -> Result<String, Failure> {
    use std::io::Read;
    let unreadable = |error| format!("cannot read {}: {error}", file.display());
    let from: Box<dyn Read> = match file == Path::new("-") {
        true => Box::new(std::io::stdin()),
        false => Box::new(std::fs::File::open(file).map_err(unreadable)?),
    };
    let mut words = String::new();
    from.take(SECRET_BYTES_MAX).read_to_string(&mut words).map_err(unreadable)?;
    Ok(words)
}

/// Writes what the daemon of `dir` gives to `file`, whole or not at all.
pub(super) fn backup(dir: &Path, file: &Path, passphrase: &Passphrase) -> Result<(), Failure> {
    let passphrase = passphrase.read()?;
    let by_passphrase = passphrase.is_some();
    if file == Path::new("-") {
        if std::io::stdout().is_terminal() {
            return Err("a backup is no text; send it into a file or a pipe".into());
        }
        write(dir, passphrase, std::io::stdout().lock())?;
        return Ok(());
    }
    let header = secret::write_file(file, |unfinished| write(dir, passphrase, unfinished))?;
    let opens = match header.recipient.filter(|_| !by_passphrase) {
        Some(recipient) => format!("the recovery key of {}", recipient.recipient),
        None => "the passphrase".to_owned(),
    };
    lines([
        format!(
            "Backup of cluster {:?} at revision {}, {} objects, is in {}.",
            header.cluster,
            header.revision,
            header.objects,
            file.display()
        ),
        format!("It opens with {opens}. Images and what pods keep on disks are not in it."),
    ])
}

fn write(dir: &Path, mut passphrase: Option<SecretString>, to: impl Write) -> Result<Header, Failure> {
    let verb = if passphrase.is_some() { "backup?passphrase=true" } else { "backup" };
    let (mut to, mut begun, mut unread) = (Some(to), None, Vec::new());
    talk_in_pieces(dir, Method::POST, verb, |piece| {
        if let Some((_, writer)) = &mut begun {
            let writer: &mut age::stream::StreamWriter<_> = writer;
            return Ok(writer.write_all(piece)?);
        }
        // For whom it is encrypted stands in its beginning.
        unread.extend_from_slice(piece);
        if let Some(header) = backup::header_in(&unread)?
            && let Some(to) = to.take()
        {
            let mut writer = backup::encrypting(&header, passphrase.take(), to)?;
            writer.write_all(&unread)?;
            unread = Vec::new();
            begun = Some((header, writer));
        }
        Ok(())
    })?;
    let (header, writer) = begun.ok_or("the daemon gave no backup; it may be of another version")?;
    writer.finish()?.flush()?;
    Ok(header)
}

pub(super) fn recovery_key(dir: &Path, yes: bool) -> Result<(), Failure> {
    confirm(
        "Backups that are made from now on open with a new key only; those of before with the key of before.",
        yes,
    )?;
    let made = talk(dir, Method::POST, "ca/recovery-key", None)?;
    lines([text(&made["secret"])])?;
    eprintln!(
        "This key opens every backup that is made from now on. It is shown this once and kept nowhere: write it down."
    );
    Ok(())
}
