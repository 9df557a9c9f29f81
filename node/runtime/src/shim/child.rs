//! From a copy of the shim to the first process of a container.
//!
//! The order of the steps is the point: what needs the machine's rights and files comes first, then the
//! root changes, then rights are given up, and nothing of ours happens after the last of them but `execve`.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::{Config, READY};
use crate::broken;
use crate::capability;
use crate::cgroup;
use crate::oci;
use crate::rootfs::passwd::ID_MAX;
use crate::rootfs::{self, Failure, Step};
use crate::seccomp::Filters;
use crate::sys::{self, process};

/// The child's ends of the pipes to the shim.
pub(super) struct Ends {
    pub(super) stdout: File,
    pub(super) stderr: File,
    pub(super) status: File,
    pub(super) go: File,
}

/// Namespaces to step into: what they are, and a descriptor of each.
pub(super) fn open_namespaces(namespaces: &[oci::Namespace]) -> Result<Vec<(CloneFlags, OwnedFd)>, Failure> {
    let mut open = Vec::new();
    for namespace in namespaces {
        let Some(path) = &namespace.path else { continue };
        let kind = match namespace.kind.as_str() {
            "network" => CloneFlags::CLONE_NEWNET,
            "ipc" => CloneFlags::CLONE_NEWIPC,
            "uts" => CloneFlags::CLONE_NEWUTS,
            other => return Err(Failure(format!("cannot step into a namespace of kind {other:?}"))),
        };
        let file = File::open(path).step(|| format!("open {}", path.display()))?;
        open.push((kind, file.into()));
    }
    Ok(open)
}

/// Becomes the program, or says on the status pipe why not. Does not return.
pub(super) fn become_program(
    spec: &oci::Spec,
    config: &Config,
    filters: &[u8],
    namespaces: &[(CloneFlags, OwnedFd)],
    mut ends: Ends,
) -> ! {
    let Err(Failure(reason)) = steps(spec, config, filters, namespaces, &mut ends);
    let _ = ends.status.write_all(reason.as_bytes());
    std::process::exit(1)
}

fn steps(
    spec: &oci::Spec,
    config: &Config,
    filters: &[u8],
    namespaces: &[(CloneFlags, OwnedFd)],
    ends: &mut Ends,
) -> Result<Infallible, Failure> {
    let process = &spec.process;
    if let Some(score) = process.oom_score_adj {
        // Lowering it needs a right that even root may lack.
        let _ = fs::write("/proc/self/oom_score_adj", score.to_string());
    }
    cgroup::join(&config.cgroups).step(|| "join the container's cgroup".to_owned())?;
    for (kind, fd) in namespaces {
        setns(fd, *kind).step(|| format!("step into the sandbox ({kind:?})"))?;
    }
    unshare(CloneFlags::CLONE_NEWNS).step(|| "make a mount namespace".to_owned())?;
    if has_new(spec, "cgroup") {
        unshare(CloneFlags::CLONE_NEWCGROUP).step(|| "make a cgroup namespace".to_owned())?;
    }
    let null = rootfs::enter(spec, &config.layers)?;

    if let Some(null) = null {
        nix::unistd::dup2_stdin(&null).step(|| "set standard input".to_owned())?;
    }
    nix::unistd::dup2_stdout(&ends.stdout).step(|| "set standard output".to_owned())?;
    nix::unistd::dup2_stderr(&ends.stderr).step(|| "set standard error".to_owned())?;
    let program = settle(process, filters)?;
    stand_alone()?;
    ends.status.write_all(&[READY]).step(|| "say ready".to_owned())?;
    // A shim that died before the program was tied to it closes this pipe, and nothing is executed.
    ends.go.read_exact(&mut [0]).step(|| "wait for the shim".to_owned())?;
    execute(&program, process)
}

/// Gives up all that the program will not have; the container's root and namespaces are entered already. Says
/// where the program lies.
pub(super) fn settle(process: &oci::Process, filters: &[u8]) -> Result<CString, Failure> {
    set_limits(&process.rlimits);
    // `/dev/stdout` opens the pipe anew, for which a program that is not root must own it.
    let (uid, gid) = (Uid::from_raw(process.user.uid), Gid::from_raw(process.user.gid));
    for output in [io::stdout().as_fd(), io::stderr().as_fd()] {
        // Of a user that the user namespace does not know; changing to that one fails with better words.
        let _ = nix::unistd::fchown(output, Some(uid), Some(gid));
    }
    umask(Mode::from_bits_truncate(0o022));
    // Before rights are given up, for root may have kept it to itself; but where root has no say, the user may have.
    let entered = match enter_directory(&process.cwd) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => false,
        other => other.step(|| format!("change to directory {}", process.cwd)).map(|()| true)?,
    };
    if !broken!(DescriptorsKept) {
        process::close_on_exec_from(3).step(|| "close the shim's files".to_owned())?;
    }
    process::reset_signals().step(|| "reset signals".to_owned())?;
    give_up_rights(process, filters)?;
    if !entered {
        enter_directory(&process.cwd).step(|| format!("change to directory {}", process.cwd))?;
    }
    find_program(process)
}

/// A session of its own, and an end with whoever waits for it. After the change of user, which clears the latter.
pub(super) fn stand_alone() -> Result<(), Failure> {
    nix::unistd::setsid().step(|| "make a session".to_owned())?;
    process::set_parent_death_signal(libc::SIGKILL).step(|| "tie the program to its shim".to_owned())
}

pub(super) fn has_new(spec: &oci::Spec, kind: &str) -> bool {
    spec.linux.namespaces.iter().any(|namespace| namespace.kind == kind && namespace.path.is_none())
}

/// Raising a hard limit needs a right that even root may lack: then the limit stays as it is.
fn set_limits(limits: &[oci::Rlimit]) {
    for limit in limits {
        if limit.kind == "RLIMIT_NOFILE" {
            let _ = process::set_rlimit(libc::RLIMIT_NOFILE as _, limit.soft, limit.hard);
        }
    }
}

/// Steps into the program's directory, making it where it is absent.
fn enter_directory(path: &str) -> io::Result<()> {
    if broken!(DirectoryAnywhere) {
        return std::env::set_current_dir(path);
    }
    let directory = rootfs::directory(Path::new(path)).map_err(|error| match rootfs::is_loop(&error) {
        true => io::Error::other("a link leads out of the image"),
        false => error,
    });
    Ok(nix::unistd::fchdir(directory?)?)
}

fn give_up_rights(process: &oci::Process, filters: &[u8]) -> Result<(), Failure> {
    let mask = |names: &[String]| capability::mask(names.iter().map(String::as_str));
    if !process.no_new_privileges {
        // Loading a filter then takes CAP_SYS_ADMIN, which is about to go.
        load_filters(filters)?;
    }
    if !broken!(BoundingSetKept) {
        sys::capability::limit_bounding(mask(&process.capabilities.bounding))
            .step(|| "limit capabilities".to_owned())?;
    }
    process::set_keep_capabilities(true).step(|| "keep capabilities".to_owned())?;
    set_user(&process.user)?;
    let allowed = sys::capability::permitted().step(|| "read capabilities".to_owned())?;
    let permitted = mask(&process.capabilities.permitted) & allowed;
    if !broken!(CapabilitiesKept) {
        sys::capability::set(permitted).step(|| "set capabilities".to_owned())?;
    }
    process::set_keep_capabilities(false).step(|| "keep capabilities".to_owned())?;
    if process.no_new_privileges {
        if !broken!(NewPrivileges) {
            process::set_no_new_privileges().step(|| "set no_new_privs".to_owned())?;
        }
        load_filters(filters)?;
    }
    Ok(())
}

fn load_filters(filters: &[u8]) -> Result<(), Failure> {
    let filters =
        Filters::split(filters).ok_or_else(|| Failure("the system call filter is damaged".to_owned()))?;
    let filters = if broken!(AllSystemCalls) { &[] } else { &filters[..] };
    filters
        .iter()
        .try_for_each(|filter| sys::seccomp::load(filter))
        .step(|| "load the system call filter".to_owned())
}

fn set_user(user: &oci::User) -> Result<(), Failure> {
    let ids = [user.uid, user.gid].into_iter().chain(user.additional_gids.iter().copied());
    if let Some(id) = ids.into_iter().find(|id| *id > ID_MAX && !broken!(IdsOutOfRange)) {
        return Err(Failure(format!("set user or group {id}: there is none beyond {ID_MAX}")));
    }
    let groups: Vec<_> = user.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match if broken!(GroupsKept) { Ok(()) } else { setgroups(&groups) } {
        // A user namespace made by an ordinary user has no say over groups; then there are none to give up.
        Err(nix::Error::EPERM) if groups.is_empty() => {}
        other => other.step(|| format!("set groups {:?}", user.additional_gids))?,
    }
    let (gid, uid) = (Gid::from_raw(user.gid), Uid::from_raw(user.uid));
    setresgid(gid, gid, gid).step(|| format!("set group {gid}; does the user namespace know it?"))?;
    setresuid(uid, uid, uid).step(|| format!("set user {uid}; does the user namespace know it?"))
}

/// The program as a path, looked up as a shell would.
fn find_program(process: &oci::Process) -> Result<CString, Failure> {
    let name = process.args.first().ok_or_else(|| Failure("there is no program to execute".to_owned()))?;
    let search = process.env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let places: Vec<PathBuf> = if name.contains('/') {
        vec![PathBuf::from(name)]
    } else {
        search.split(':').map(|dir| Path::new(dir).join(name)).collect()
    };
    let mut refused = io::Error::from(io::ErrorKind::NotFound);
    for place in places {
        match check_program(&place) {
            Ok(()) => return CString::new(place.as_os_str().as_bytes()).step(|| format!("execute {name:?}")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => refused = error,
        }
    }
    let where_to_look = match (refused.kind(), name.contains('/')) {
        (io::ErrorKind::NotFound, true) => "the image has no such program".to_owned(),
        (io::ErrorKind::NotFound, false) => format!("the image has no such program in {search:?}"),
        _ => format!("user {} may not execute it, or not reach it", process.user.uid),
    };
    Err(Failure(format!("execute {name:?}: {refused}; {where_to_look}")))
}

/// Whether it is a file that may be executed. Not one behind a link of `/proc`: that could be ourselves.
fn check_program(path: &Path) -> io::Result<()> {
    let fd = sys::mount::open_at(AT_FDCWD, path, libc::O_PATH, libc::RESOLVE_NO_MAGICLINKS)?;
    let metadata = File::from(fd).metadata()?;
    let executable = metadata.is_file() && metadata.permissions().mode() & 0o111 != 0;
    if executable { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

pub(super) fn execute(program: &CString, process: &oci::Process) -> Result<Infallible, Failure> {
    let what = || format!("execute {program:?}");
    let c_strings = |texts: &[String]| {
        texts.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>()
    };
    let args = c_strings(&process.args).step(what)?;
    let env = c_strings(&process.env).step(what)?;
    nix::unistd::execve(program, &args, &env).step(what)
}
