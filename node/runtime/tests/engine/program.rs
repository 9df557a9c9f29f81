//! The program inside of the containers: a few verbs, one after the other, separated by `;`.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

/// Where the executable lies in the test image.
pub(crate) const PATH: &str = "/program";

/// Acts as the program if this process was started as it.
pub(crate) fn main_if_program() -> Option<ExitCode> {
    let mut arguments = std::env::args();
    if arguments.next()? != PATH {
        return None;
    }
    let arguments: Vec<_> = arguments.collect();
    for words in arguments.split(|word| word == ";") {
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        if let Err(error) = act(&words) {
            eprintln!("{words:?}: {error}");
            return Some(ExitCode::from(99));
        }
    }
    Some(ExitCode::SUCCESS)
}

fn act(words: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
    match words {
        ["exit", code] => std::process::exit(code.parse()?),
        ["abort"] => std::process::abort(),
        ["print", text] => println!("{text}"),
        ["complain", text] => eprintln!("{text}"),
        ["print-many", count] => {
            (0..count.parse::<u64>()?).for_each(|n| println!("line {n:06} {}", "x".repeat(80)))
        }
        // The first process of a pid namespace only gets signals it waits for.
        ["wait"] => drop(wait_for(Signal::SIGTERM)?),
        ["wait-deaf"] => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        ["child", rest @ ..] => drop(Command::new(PATH).args(rest).spawn()?),
        ["write", path, text] => fs::write(path, text)?,
        ["cat", path] => println!("{}", fs::read_to_string(path)?.trim_end()),
        ["list", path] => {
            let mut names =
                fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
            let mut names = names.by_ref().collect::<Result<Vec<_>, std::io::Error>>()?;
            names.sort();
            println!("{}", names.join(" "));
        }
        ["refuses-write", path] => match fs::write(path, "x") {
            Ok(()) => return Err("it was written".into()),
            Err(error) => println!("{}", error.kind()),
        },
        ["chmod", path, mode] => {
            let mode = fs::Permissions::from_mode(u32::from_str_radix(mode, 8)?);
            let changed = fs::set_permissions(path, mode);
            println!("{}", changed.map_or_else(|error| error.kind().to_string(), |()| "done".to_owned()));
        }
        ["is-proc", path] => {
            let kind = nix::sys::statfs::statfs(*path)?.filesystem_type();
            if kind != nix::sys::statfs::PROC_SUPER_MAGIC {
                return Err("it is not".into());
            }
        }
        ["look-at-helpers", mode] => look_at_helpers(mode)?,
        // Until it is killed.
        ["swap", one, other] => {
            println!("swapping");
            loop {
                let exchange = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, *one, nix::fcntl::AT_FDCWD, *other, exchange)?;
            }
        }
        ["mknod-and-read", major, minor] => {
            let device = nix::sys::stat::makedev(major.parse()?, minor.parse()?);
            let mode = nix::sys::stat::Mode::S_IRWXU;
            nix::sys::stat::mknod("/dev/made", nix::sys::stat::SFlag::S_IFCHR, mode, device)?;
            let opened = fs::File::open("/dev/made").and_then(|mut file| file.read(&mut [0; 1]));
            println!(
                "{}",
                opened.map_or_else(|error| error.kind().to_string(), |read| format!("read {read}"))
            );
        }
        ["open", path] => {
            let opened = fs::File::open(path);
            println!("{}", opened.map_or_else(|error| error.kind().to_string(), |_| "opened".to_owned()))
        }
        ["unshare"] => {
            println!("{}", nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).unwrap_err())
        }
        ["owner", path] => println!("{}", fs::metadata(path)?.uid()),
        ["env", name] => println!("{}", std::env::var(name)?),
        ["cwd"] => println!("{}", std::env::current_dir()?.display()),
        ["hostname"] => println!("{}", nix::unistd::gethostname()?.to_string_lossy()),
        ["status", field] => {
            let status = fs::read_to_string("/proc/self/status")?;
            let value = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
            println!("{}", value.ok_or("no such field")?.trim());
        }
        ["serve", port] => {
            let (mut stream, _) = TcpListener::bind(("127.0.0.1", port.parse()?))?.accept()?;
            stream.write_all(b"hello from the neighbour")?;
        }
        ["fetch", port] => {
            let mut text = String::new();
            connect(port.parse()?)?.read_to_string(&mut text)?;
            println!("{text}");
        }
        ["eat", megabytes] => {
            let mut eaten: Vec<Vec<u8>> = Vec::new();
            for _ in 0..megabytes.parse::<usize>()? {
                eaten.push(vec![1; 1 << 20]);
            }
            println!("ate {}", eaten.len());
        }
        _ => return Err("no such verb".into()),
    }
    Ok(())
}

/// Looks at the next processes of this pid namespace before they have become our own program, and tries to
/// change the program that they are until then.
fn look_at_helpers(mode: &str) -> Result<(), Box<dyn std::error::Error>> {
    let own = fs::metadata("/proc/self/exe")?;
    println!("my rights: {}\nlooking", rights("self")?);
    let mut seen = 1;
    loop {
        // The last field is the newest process of this pid namespace.
        let load = fs::read_to_string("/proc/loadavg")?;
        let newest: u32 = load.trim().rsplit(' ').next().ok_or("no processes")?.parse()?;
        for pid in newest.max(seen + 1)..newest + 2 {
            let Ok(rights) = rights(&pid.to_string()) else { continue };
            // Opened once, so that what is looked at is also what is changed.
            let program = fs::File::open(format!("/proc/{pid}/exe"));
            let is_own = |found: fs::Metadata| (found.dev(), found.ino()) == (own.dev(), own.ino());
            match &program {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => seen = pid,
                Ok(program) if is_own(program.metadata()?) => seen = pid,
                _ => {
                    let mode = fs::Permissions::from_mode(u32::from_str_radix(mode, 8)?);
                    let changed = program.as_ref().map(|program| program.set_permissions(mode));
                    println!("its rights: {rights}, its program: {changed:?}");
                }
            }
        }
    }
}

fn rights(pid: &str) -> Result<String, Box<dyn std::error::Error>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    Ok(value.ok_or("no such field")?.trim().to_owned())
}

fn wait_for(signal: Signal) -> nix::Result<Signal> {
    let mut set = SigSet::empty();
    set.add(signal);
    set.thread_block()?;
    println!("waiting");
    set.wait()
}

/// The other container may not listen yet.
fn connect(port: u16) -> std::io::Result<TcpStream> {
    let mut tries = 0;
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Err(_) if tries < 600 => thread::sleep(Duration::from_millis(50)),
            other => return other,
        }
        tries += 1;
    }
}
