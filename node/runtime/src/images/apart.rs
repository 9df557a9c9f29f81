//! Reading archives and layers in a process of its own, which has nothing but its place in the store.
//!
//! Decompressors and readers of archives work on whatever somebody packed. So they run in this program started
//! again, once per archive and once per layer: in namespaces of its own (no network), with a root that shows the
//! directory it fills and nothing else, without capabilities beyond those that owners and modes take, with the
//! system calls that files take, and with limits on memory, files and time. It has one socket: the bytes of an
//! archive come in by it, one bounded answer goes out. Everything that needs rights, such as the mount of the
//! layers below, is done before the first byte is read.
//!
//! What it leaves is not believed: the daemon takes the digest of each blob again ([`Images::load`]), and of a layer
//! nothing but its own directory. Its memory goes back to the machine when it ends, and it ends with the daemon.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{ExitStatusExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::room::Room;
use super::{Config, Digest, Error, Images, Limits, Loaded, archive, unpack};
use crate::record::Durability;
use crate::rootfs::{Step, open_root, overlay, pivot};
use crate::seccomp::Filters;
use crate::sys::mount::{Attributes, NewFileSystem, add_attributes, attach, clone_tree};
use crate::sys::{self, process};
use crate::{broken, capability};

/// The first argument of such a process; its [`Task`] follows.
pub(crate) const ARGUMENT: &str = "image-unpacker";

/// What it may say in the end: a thousand names.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// One word of an error.
const TEXT_CHARS_MAX: usize = 1024;
const PIECE_BYTES: usize = 64 << 10;
/// How long an archive may make no progress: a slow disk that is busy with something else.
const STUCK: Duration = Duration::from_secs(600);
/// The largest layer on a slow disk.
const LAYER_TIME_MAX: Duration = Duration::from_secs(2 * 3600);
/// The largest window of zstd (128 MiB) or xz (80 MiB), what is kept in mind of a layer, and the program itself.
const MEMORY_BYTES_MAX: u64 = 512 << 20;
/// A path of the deepest kind, twice.
const DESCRIPTORS_MAX: u64 = 1024;
/// It goes before anything else does when the machine runs out of memory: it can be had again.
const OOM_SCORE_ADJ: &str = "500";

/// What files of any owner, mode and attributes take.
const CAPABILITIES: [&str; 5] = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP"];

/// Where the root of such a process shows the directory that it fills, and the layer's own part of it.
const PLACE: &str = "place";
const OWN: &str = "own";

/// What the process is started for.
#[derive(Serialize, Deserialize)]
struct Task {
    /// Who waits for it.
    daemon: u32,
    limits: Limits,
    work: Work,
}

#[derive(Serialize, Deserialize)]
enum Work {
    /// Reads an archive from the socket into a store.
    Archive { store: PathBuf },
    /// Unpacks a blob on top of other layers, if there are any.
    Layer { blob: PathBuf, diff_id: Digest, target: PathBuf, stack: Option<Stack> },
    /// Tries what such a process must not be able to do.
    #[cfg(feature = "mutations")]
    Probe { store: PathBuf },
}

/// The layers below, and where they are mounted.
#[derive(Serialize, Deserialize)]
pub(super) struct Stack {
    pub(super) layers: overlay::Layers,
    pub(super) merged: PathBuf,
}

type Answer = Result<Vec<Loaded>, Refusal>;

/// An [`Error`] on its way to the daemon.
#[derive(Serialize, Deserialize)]
enum Refusal {
    Name { reference: String, reason: String },
    Absent(String),
    Digest { what: String, wanted: Digest, found: Digest },
    Invalid { what: String, reason: String },
    TooLarge { what: String, limit: u64 },
    Io { doing: String, reason: String, code: Option<i32> },
}

/// Reads `content` into the empty store at `store`.
pub(super) fn read_archive(
    store: &Path,
    limits: Limits,
    content: &mut dyn Read,
) -> Result<Vec<Loaded>, Error> {
    let what = "read the image archive";
    let mut process = Process::start(what, limits, Work::Archive { store: store.to_owned() })?;
    let fed = process.feed(content);
    // What it says counts for more than that it did not want the rest.
    let answer = process.answer(STUCK);
    match fed {
        Err(Fed::NotRead(error)) => Err(Error::invalid("the image archive", error)),
        Err(Fed::Stuck) => Err(ended(what, "it made no progress for ten minutes")),
        Ok(()) => answer,
    }
}

/// Unpacks the blob in the file `blob` into the directory `target`.
pub(super) fn layer(
    blob: &Path,
    diff_id: &Digest,
    target: &Path,
    stack: Option<Stack>,
    limits: Limits,
) -> Result<(), Error> {
    let (blob, target) = (blob.to_owned(), target.to_owned());
    let work = Work::Layer { blob, diff_id: *diff_id, target, stack };
    Process::start(&format!("unpack layer {diff_id}"), limits, work)?.answer(LAYER_TIME_MAX).map(drop)
}

/// What a process with a place in `store` and nothing else could reach all the same, in words.
#[cfg(feature = "mutations")]
pub fn reached_by_an_unpacker(store: &Path) -> Result<Vec<String>, Error> {
    let work = Work::Probe { store: store.to_owned() };
    let reached = Process::start("probe an unpacker", Limits::default(), work)?.answer(STUCK)?;
    Ok(reached.into_iter().map(|reached| reached.name).collect())
}

/// The daemon's end. It is killed when nobody waits for it any more.
struct Process {
    what: String,
    child: Child,
    socket: UnixStream,
}

/// Why not all of an archive was handed on.
enum Fed {
    NotRead(io::Error),
    Stuck,
}

impl Process {
    fn start(what: &str, limits: Limits, work: Work) -> Result<Process, Error> {
        let start = || Error::io(format!("start a process to {what}"));
        let task = Task { daemon: std::process::id(), limits, work };
        let task = serde_json::to_string(&task).map_err(|error| Error::invalid(what, error))?;
        let (socket, other) = UnixStream::pair().map_err(start())?;
        let mut command = crate::own_program::command().map_err(start())?;
        command.arg(ARGUMENT).arg(task).stdout(Stdio::from(OwnedFd::from(other))).stderr(Stdio::null());
        let child = command.spawn().map_err(start())?;
        Ok(Process { what: what.to_owned(), child, socket })
    }

    /// Hands on an archive, until its end or until the process wants no more of it.
    fn feed(&mut self, content: &mut dyn Read) -> Result<(), Fed> {
        let _ = self.socket.set_write_timeout(Some(STUCK));
        let mut piece = vec![0; PIECE_BYTES];
        let fed = loop {
            match content.read(&mut piece) {
                Ok(0) => break Ok(()),
                Ok(count) => match self.socket.write_all(&piece[..count]) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Err(Fed::Stuck),
                    // It has its answer.
                    Err(_) => break Ok(()),
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(Fed::NotRead(error)),
            }
        };
        if fed.is_err() {
            let _ = self.child.kill();
        }
        let _ = self.socket.shutdown(Shutdown::Write);
        fed
    }

    /// What it found, or why it did not get there.
    fn answer(&mut self, limit: Duration) -> Result<Vec<Loaded>, Error> {
        let until = Instant::now() + limit;
        let mut said = Vec::new();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ended(&self.what, &format!("it took longer than {} s", limit.as_secs())));
            }
            let read = self.socket.set_read_timeout(Some(left)).and_then(|()| self.socket.read(&mut piece));
            match read {
                Ok(0) => break,
                Ok(count) => said.extend_from_slice(&piece[..count]),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                    // It left bytes of the archive behind.
                    _ => break,
                },
            }
            if said.len() as u64 > ANSWER_BYTES_MAX {
                return Err(ended(&self.what, "it said more than any archive has to say"));
            }
        }
        // Its end of the socket goes with it, so this does not wait for long; it may not do anything either.
        let _ = self.child.kill();
        let status = self.child.wait().map_err(Error::io(format!("wait for a process to {}", self.what)))?;
        match serde_json::from_slice::<Answer>(&said) {
            Ok(answer) => answer.map_err(Refusal::into_error),
            Err(_) => {
                let how = match (status.signal(), status.code()) {
                    (Some(signal), _) => format!("it was killed by signal {signal}"),
                    (None, code) => format!("it ended with status {}", code.unwrap_or_default()),
                };
                Err(ended(&self.what, &format!("{how} and gave no answer; is there enough memory?")))
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ended(what: &str, how: &str) -> Error {
    let source = io::Error::other(format!("its process did not get there: {how}"));
    Error::Io { doing: what.to_owned(), source }
}

/// The work of such a process.
pub(crate) fn main(task: &str) -> ExitCode {
    let Ok(socket) = std::io::stdout().as_fd().try_clone_to_owned().map(File::from) else {
        return ExitCode::FAILURE;
    };
    let answer = run(task, &socket).map_err(Refusal::of);
    match serde_json::to_vec(&answer).map_err(io::Error::from).and_then(|bytes| (&socket).write_all(&bytes)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(task: &str, socket: &File) -> Result<Vec<Loaded>, Error> {
    let task: Task = serde_json::from_str(task).map_err(|error| Error::invalid("a task", error))?;
    let Task { daemon, limits, work } = task;
    let tie = Error::io("tie the unpacker to its daemon");
    process::set_parent_death_signal(libc::SIGKILL).map_err(tie)?;
    if parent_id() != daemon {
        return Err(ended("begin", "its daemon has ended"));
    }
    let place = Path::new("/").join(PLACE);
    match work {
        Work::Archive { store } => {
            leave_machine()?;
            confine(&store, None, &[], &limits)?;
            let config = Config { limits, in_place: true, ..Config::default() };
            archive::read(&Images::open(&place, config)?, socket)
        }
        Work::Layer { blob, diff_id, target, stack } => {
            let blob = File::open(blob).map_err(Error::io(format!("open the blob of layer {diff_id}")))?;
            leave_machine()?;
            let filled = match &stack {
                None => &target,
                Some(stack) => {
                    let attributes = Attributes::NO_SUID;
                    overlay::mount_at(&stack.layers, &stack.merged, attributes, Durability::Durable)
                        .map_err(|failure| io::Error::other(failure.0))
                        .map_err(Error::io("stack the layers below"))?;
                    &stack.merged
                }
            };
            confine(filled, stack.is_some().then_some(&target), &CAPABILITIES, &limits)?;
            let own = stack.is_some().then(|| Path::new("/").join(OWN));
            let room = Room::new(&place, limits.free_bytes_min);
            unpack::apply(blob, &diff_id, &place, own.as_deref(), &limits, &room).map(|()| Vec::new())
        }
        #[cfg(feature = "mutations")]
        Work::Probe { store } => {
            leave_machine()?;
            confine(&store, None, &CAPABILITIES, &limits)?;
            let reached = probe::reached(daemon).into_iter();
            let digest = Digest::of(b"");
            Ok(reached.map(|name| Loaded { name, digest }).collect())
        }
    }
}

/// Namespaces of its own: no network but an unconnected one, and mounts that nobody else sees.
fn leave_machine() -> Result<(), Error> {
    let leave = || Error::io("leave the machine's namespaces for unpacking");
    if !broken!(UnpackerOnTheNetwork) {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
            .map_err(io::Error::from)
            .map_err(leave())?;
    }
    overlay::unshare_mounts().map_err(leave())
}

/// Gives up all but `filled`, which becomes `/place`, and `own`, which can be looked at only.
fn confine(filled: &Path, own: Option<&PathBuf>, keep: &[&str], limits: &Limits) -> Result<(), Error> {
    let doing = |error: crate::rootfs::Failure| Error::Io {
        doing: "shut in the unpacker".into(),
        source: io::Error::other(error.0),
    };
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    if !broken!(UnpackerUnlimited) {
        set_limits(limits).step(|| "set limits".to_owned()).map_err(doing)?;
    }
    let root = small_root(filled, own).step(|| "make a small root".to_owned()).map_err(doing)?;
    if broken!(UnpackerSeesMachine) {
        // The same paths, with the machine's root above them.
        nix::unistd::fchdir(&root).map_err(io::Error::from).map_err(Error::io("change directory"))?;
    } else {
        pivot(&root).step(|| "step into it".to_owned()).map_err(doing)?;
    }
    give_up_rights(keep).step(|| "give up rights".to_owned()).map_err(doing)
}

fn set_limits(limits: &Limits) -> io::Result<()> {
    let file = limits.blob_bytes_max.max(limits.layer_bytes_max);
    process::set_rlimit(libc::RLIMIT_AS as _, MEMORY_BYTES_MAX, MEMORY_BYTES_MAX)?;
    process::set_rlimit(libc::RLIMIT_FSIZE as _, file, file)?;
    process::set_rlimit(libc::RLIMIT_CORE as _, 0, 0)?;
    process::set_rlimit(libc::RLIMIT_CPU as _, LAYER_TIME_MAX.as_secs(), LAYER_TIME_MAX.as_secs())?;
    process::set_rlimit(libc::RLIMIT_NOFILE as _, DESCRIPTORS_MAX, DESCRIPTORS_MAX)
}

/// A file system of directories that hold the mounts of what is filled, and of this process's own part of `/proc`,
/// by which open files have a name.
fn small_root(filled: &Path, own: Option<&PathBuf>) -> io::Result<OwnedFd> {
    let place = clone_tree(filled, false)?;
    let own_place = own.map(|own| clone_tree(own, false)).transpose()?;
    if let Some(own) = &own_place {
        add_attributes(own.as_fd(), Attributes::READ_ONLY, false)?;
    }
    let processes = clone_tree(Path::new("/proc/self"), false)?;
    let safe = Attributes::NO_SUID.with(Attributes::NO_DEV).with(Attributes::NO_EXEC);
    for mount in [Some(&place), own_place.as_ref(), Some(&processes)].into_iter().flatten() {
        add_attributes(mount.as_fd(), safe, false)?;
    }
    let small = NewFileSystem::open("tmpfs")?.mount(safe)?;
    attach(small.as_fd(), open_root(filled)?.as_fd())?;
    let root = open_root(filled)?;
    let mut mounts = vec![(PLACE, place), ("proc/self", processes)];
    mounts.extend(own_place.map(|own| (OWN, own)));
    for (name, mount) in mounts {
        fs::create_dir_all(filled.join(name))?;
        attach(mount.as_fd(), open_root(&filled.join(name))?.as_fd())?;
    }
    add_attributes(root.as_fd(), Attributes::READ_ONLY, false)?;
    Ok(root)
}

fn give_up_rights(keep: &[&str]) -> io::Result<()> {
    if !broken!(DescriptorsKept) {
        process::close_on_exec_from(3)?;
    }
    if !broken!(UnpackerKeepsCapabilities) {
        let mask = capability::mask(keep.iter().copied()) & sys::capability::permitted()?;
        sys::capability::limit_bounding(mask)?;
        sys::capability::set(mask)?;
    }
    process::set_no_new_privileges()?;
    if !broken!(UnpackerMakesAnyCall) {
        Filters::for_files().load()?;
    }
    Ok(())
}

impl Refusal {
    fn of(error: Error) -> Refusal {
        match error {
            Error::Name { reference, reason } => Refusal::Name { reference, reason },
            Error::Absent(name) => Refusal::Absent(name),
            Error::Digest { what, wanted, found } => Refusal::Digest { what, wanted, found },
            Error::Invalid { what, reason } => Refusal::Invalid { what, reason },
            Error::TooLarge { what, limit } => Refusal::TooLarge { what, limit },
            Error::Io { doing, source } => {
                Refusal::Io { doing, reason: source.to_string(), code: source.raw_os_error() }
            }
            // Nothing here speaks to a registry.
            Error::Pull { reference, reason } | Error::Unreachable { reference, reason } => {
                Refusal::Invalid { what: reference, reason }
            }
        }
    }

    fn into_error(self) -> Error {
        let short = |text: String| text.chars().take(TEXT_CHARS_MAX).collect::<String>();
        match self {
            Refusal::Name { reference, reason } => {
                Error::Name { reference: short(reference), reason: short(reason) }
            }
            Refusal::Absent(name) => Error::Absent(short(name)),
            Refusal::Digest { what, wanted, found } => Error::Digest { what: short(what), wanted, found },
            Refusal::Invalid { what, reason } => Error::Invalid { what: short(what), reason: short(reason) },
            Refusal::TooLarge { what, limit } => Error::TooLarge { what: short(what), limit },
            Refusal::Io { doing, reason, code } => {
                let source =
                    code.map_or_else(|| io::Error::other(short(reason)), io::Error::from_raw_os_error);
                Error::Io { doing: short(doing), source }
            }
        }
    }
}

/// What an unpacker that somebody has taken over would try.
#[cfg(feature = "mutations")]
mod probe {
    use std::fs;

    use nix::sys::stat::{Mode, SFlag, makedev, mknod};

    /// More than it may have, and than any machine for tests lacks.
    const MUCH_MEMORY: usize = 600 << 20;

    pub(super) fn reached(daemon: u32) -> Vec<String> {
        let mut reached = Vec::new();
        let mut note = |is_reached: bool, what: &str| {
            if is_reached {
                reached.push(what.to_owned());
            }
        };
        note(fs::metadata("/etc").is_ok(), "the machine's files");
        note(fs::metadata(format!("/proc/{daemon}")).is_ok(), "other processes");
        let interfaces = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
        let others = interfaces.lines().skip(2).any(|line| !line.trim_start().starts_with("lo:"));
        note(others, "the machine's network");
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let held = held.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        let most = crate::capability::mask(super::CAPABILITIES);
        note(held.is_none_or(|held| held & !most != 0), "capabilities that files do not take");
        let node = std::path::Path::new("place/node");
        let (kind, null) = (SFlag::S_IFCHR, makedev(1, 3));
        note(mknod(node, kind, Mode::S_IRWXU, null).is_ok(), "device nodes");
        let _ = fs::remove_file(node);
        note(
            std::net::UdpSocket::bind("127.0.0.1:0").is_ok() || signals(daemon),
            "calls that files do not take",
        );
        note(Vec::<u8>::new().try_reserve_exact(MUCH_MEMORY).is_ok(), "memory without a limit");
        reached
    }

    fn signals(daemon: u32) -> bool {
        let daemon = i32::try_from(daemon).map(nix::unistd::Pid::from_raw);
        daemon.is_ok_and(|daemon| nix::sys::signal::kill(daemon, None).is_ok())
    }
}
