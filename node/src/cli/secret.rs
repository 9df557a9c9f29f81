//! The word that lets a machine in, kept from whoever can list processes; and files that only their owner may read.

use std::fs;
use std::io::{self, BufRead as _, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::daemon::Failure;

/// Longer than any token, with whatever blanks are around it.
const WORD_BYTES_MAX: u64 = 4096;

/// Where a token is read from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// The command line.
    Argument(&'a str),
    StandardInput,
    File(&'a Path),
}

impl<'a> Source<'a> {
    /// By what the command line says: an argument, which may be `-`, or a file.
    pub(super) fn of(argument: Option<&'a str>, file: Option<&'a Path>) -> Option<Source<'a>> {
        match (argument, file) {
            (_, Some(path)) => Some(Source::File(path)),
            (Some("-"), None) => Some(Source::StandardInput),
            (Some(word), None) => Some(Source::Argument(word)),
            (None, None) => None,
        }
    }

    /// The word, without blanks around it. One of the command line is overwritten there.
    pub(super) fn read(self) -> Result<String, Failure> {
        let mut text = String::new();
        let read = match self {
            Source::Argument(word) => {
                if let Err(error) = overwrite_argument(word) {
                    eprintln!("skein: the token stays visible to whoever lists processes: {error}");
                }
                return Ok(word.trim().to_owned());
            }
            Source::StandardInput => io::stdin().lock().take(WORD_BYTES_MAX).read_line(&mut text).map(drop),
            Source::File(path) => fs::File::open(path)
                .and_then(|file| file.take(WORD_BYTES_MAX).read_to_string(&mut text))
                .map(drop),
        };
        let what = match self {
            Source::File(path) => path.display().to_string(),
            Source::Argument(_) | Source::StandardInput => "standard input".to_owned(),
        };
        read.map_err(|error| format!("cannot read a token from {what}: {error}"))?;
        match text.trim() {
            "" => Err(format!("no token in {what}; it is the word that `skein token create` prints").into()),
            word => Ok(word.to_owned()),
        }
    }
}

/// Writes a file that only its owner may read, whole or not at all, in the place of one that is there.
pub(super) fn write_file<T>(
    path: &Path,
    write: impl FnOnce(&mut NamedTempFile) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let unwritable = |error: io::Error| {
        format!("cannot write {}: {error}; check that the directory is there and has room", path.display())
    };
    let within = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut unfinished = NamedTempFile::new_in(within).map_err(unwritable)?;
    let written = write(&mut unfinished)?;
    unfinished.as_file().sync_all().map_err(unwritable)?;
    unfinished.persist(path).map_err(|error| unwritable(error.error))?;
    fs::File::open(within).and_then(|within| within.sync_all()).map_err(unwritable)?;
    Ok(written)
}

/// Writes over an argument of this process where the kernel shows it to others.
///
/// By the file of the process's own memory: the arguments lie where the kernel put them, and nothing else says where.
fn overwrite_argument(word: &str) -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (begin, end) = arguments(&stat).ok_or(io::ErrorKind::InvalidData)?;
    let memory = fs::File::options().read(true).write(true).open("/proc/self/mem")?;
    let mut bytes = vec![0; usize::try_from(end - begin).map_err(io::Error::other)?];
    memory.read_exact_at(&mut bytes, begin)?;
    let mut at = begin;
    for argument in bytes.split_inclusive(|byte| *byte == 0) {
        let text = argument.strip_suffix(&[0]).unwrap_or(argument);
        if text == word.as_bytes() {
            memory.write_all_at(&vec![b'x'; text.len()], at)?;
        }
        at += argument.len() as u64;
    }
    Ok(())
}

/// Where the arguments begin and end: fields 48 and 49 of proc_pid_stat(5). The second one is the program's name, which
/// may hold anything, blanks and brackets too.
fn arguments(stat: &str) -> Option<(u64, u64)> {
    const FIRST: usize = 48;
    let (_, after_name) = stat.rsplit_once(')')?;
    // The first one after the name is the third.
    let mut fields = after_name.split_whitespace().skip(FIRST - 3);
    let begin = fields.next()?.parse().ok()?;
    let end = fields.next()?.parse().ok()?;
    (begin <= end).then_some((begin, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORD: &str = "skein1-a-secret-of-somebody";
    const CHILD: &str = "SKEIN_TEST_OVERWRITES_ITS_ARGUMENT";

    /// The test runs once more as a process of its own, with the word among its arguments: it is a filter that finds no
    /// test.
    #[test]
    fn an_argument_is_overwritten_where_others_see_it() {
        if std::env::var_os(CHILD).is_some() {
            let seen = || fs::read_to_string("/proc/self/cmdline").unwrap();
            assert!(seen().contains(WORD));
            assert_eq!(Source::Argument(WORD).read().unwrap(), WORD);
            let others: Vec<String> = seen().split('\0').map(str::to_owned).collect();
            assert!(
                others.contains(&"x".repeat(WORD.len())) && !others.contains(&WORD.to_owned()),
                "{others:?}"
            );
            assert!(others.contains(&"--exact".to_owned()), "the others stay: {others:?}");
            return;
        }
        let own = "cli::secret::tests::an_argument_is_overwritten_where_others_see_it";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", own, WORD])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    fn a_token_comes_from_a_file_without_the_blanks_around_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, format!(" {WORD}\n")).unwrap();
        assert_eq!(Source::File(&path).read().unwrap(), WORD);
        fs::write(&path, "\n").unwrap();
        assert!(Source::File(&path).read().unwrap_err().to_string().contains("skein token create"));
        assert!(Source::File(&dir.path().join("none")).read().is_err());
    }

    #[test]
    fn a_name_with_blanks_and_brackets_hides_no_field() {
        let fields: Vec<String> = (3..=52).map(|field: u64| field.to_string()).collect();
        assert_eq!(arguments(&format!("7 (a) b (c) {}", fields.join(" "))), Some((48, 49)));
        assert_eq!(arguments("7 (a) 1 2"), None);
    }
}
