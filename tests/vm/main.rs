//! The runtime and a node on a kernel of their own: Debian's, with cgroup version 2 and nothing else, which
//! is what most users have and developers' machines often have not.
//!
//! QEMU emulates the machine, so no right to virtual machines is needed; it takes a minute and a half at
//! most. This executable plays two parts: on the outside it builds the machine's first disk (of itself, the
//! runtime's own tests and the program), starts it and reads its console; inside it is the first process.
//! Skipped, by name, where QEMU or the kernel that `tests/install` unpacks is missing.

mod disk;
mod guest;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::{Arguments, Failed, Trial};

/// A quiet machine needs a tenth of it. An emulator that has come to nothing by then is stuck.
const LIMIT: Duration = Duration::from_secs(400);
/// What else the kernel is told. A panic ends the machine at once; a processor that does nothing but run in the
/// kernel, or never comes to rest, is one, so that the kernel says where that is.
const KERNEL: &str = "loglevel=3 panic=-1 softlockup_panic=1 sysctl.kernel.panic_on_rcu_stall=1";
/// Memory of the machine: its files lie there too.
const MEMORY: &str = "1536";

fn main() -> ExitCode {
    if let Some(code) = guest::main_if_inside() {
        return code;
    }
    let arguments = Arguments::from_args();
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("bin/linux");
    let missing = missing(&here);
    let name = "containers_and_a_node_run_on_debians_kernel_with_cgroup_2";
    if let Some(reason) = missing.as_ref().filter(|_| !arguments.list) {
        eprintln!("skipped {name}: {reason}");
    }
    let trial = Trial::test(name, move || run(&here).map_err(Failed::from));
    libtest_mimic::run(&arguments, vec![trial.with_ignored_flag(missing.is_some())]).exit_code()
}

/// Why there can be no machine.
fn missing(kernel: &Path) -> Option<String> {
    let works = |program: &str| {
        let tried = Command::new(program).arg("--version").stdout(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    if std::env::consts::ARCH != "x86_64" {
        return Some("the emulated machine is of another architecture than this one".to_owned());
    }
    for (program, package) in [("qemu-system-x86_64", "qemu-system-x86"), ("strip", "binutils")] {
        if !works(program) {
            return Some(format!("{program} is not there (Debian: {package}); run tests/install"));
        }
    }
    let here = kernel.join("vmlinuz").is_file() && busybox().is_some();
    (!here).then(|| "Debian's kernel or busybox is not there; run tests/install".to_owned())
}

fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.is_file())
}

fn run(kernel: &Path) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let disk = dir.path().join("disk");
    write_disk(kernel, dir.path(), &disk)?;
    let monitor = dir.path().join("monitor");
    let machine = Command::new("qemu-system-x86_64")
        // One thread for both processors: with one each, the emulator at times goes on with code it translated
        // while the other processor was changing it (a kernel's `int3` under a jump label), for ever.
        .args(["-machine", "pc", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", MEMORY])
        .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
        .arg("-monitor")
        .arg(format!("unix:{},server=on,wait=off", monitor.display()))
        .arg("-kernel")
        .arg(kernel.join("vmlinuz"))
        .arg("-initrd")
        .arg(&disk)
        .args(["-append", &format!("console=ttyS0 {KERNEL}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("no emulator: {error}"))?;
    let mut machine = Machine(machine);
    let console = BufReader::new(machine.0.stdout.take().expect("piped above"));
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        let lines = console.split(b'\n').map_while(Result::ok);
        lines.map(|line| plain(&line)).all(|line| sender.send(line).is_ok())
    });
    let deadline = Instant::now() + LIMIT;
    let (mut verdict, mut left_out) = (None, Vec::new());
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("  guest | {line}");
                if line.contains("left out") || line.contains("skipped") {
                    left_out.push(line.clone());
                }
                verdict = line.strip_prefix(guest::VERDICT).map(str::to_owned).or(verdict);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let processors = processors(&monitor).unwrap_or_else(|error| error.to_string());
                return Err(format!("the machine does not end within {LIMIT:?}\n{processors}"));
            }
        }
    }
    match verdict.as_deref() {
        // Everything there is to test is there: what was left out was not tested.
        Some(guest::WELL) if left_out.is_empty() => Ok(()),
        Some(guest::WELL) => Err(format!("left out: {left_out:#?}")),
        Some(verdict) => Err(verdict.to_owned()),
        None => Err("the machine ended before its tests did".to_owned()),
    }
}

/// What the processors of a machine that stands still are at, twice: whether they move, and in whose code.
fn processors(monitor: &Path) -> std::io::Result<String> {
    let mut monitor = UnixStream::connect(monitor)?;
    monitor.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut told = Vec::new();
    for _ in 0..2 {
        monitor.write_all(b"info registers -a\n")?;
        // There is no end of an answer but that nothing more comes.
        let _ = Read::by_ref(&mut monitor).take(1 << 16).read_to_end(&mut told);
    }
    let lines: Vec<String> = told.split(|byte| *byte == b'\n').map(plain).collect();
    let telling = |line: &&String| ["CPU#", "RIP=", "RSP=", "CR3="].iter().any(|word| line.contains(word));
    Ok(lines.iter().filter(telling).map(|line| format!("{line}\n")).collect())
}

/// The emulator; killed when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write_disk(kernel: &Path, work: &Path, disk: &Path) -> Result<(), String> {
    let told = |error: std::io::Error| format!("cannot write the machine's disk: {error}");
    let own = std::env::current_exe().map_err(told)?;
    let deps = own.parent().expect("an executable lies in a directory");
    let program = deps.parent().expect("cargo's directory lies in another").join("skein");
    let mut file = disk::Writer::create(disk).map_err(told)?;
    for dir in ["bin", "dev", "modules", "proc", "sys"] {
        file.directory(dir).map_err(told)?;
    }
    file.console().map_err(told)?;
    for (name, path) in [("init", own.clone()), ("engine", engine_tests(deps)?), ("skein", program)] {
        // Their debug information is several times larger than they are.
        let stripped = work.join(name);
        let status = Command::new("strip").arg("-o").arg(&stripped).arg(&path).status().map_err(told)?;
        if !status.success() {
            return Err(format!("cannot strip {}; is it built?", path.display()));
        }
        file.program(name, &fs::read(&stripped).map_err(told)?).map_err(told)?;
    }
    let busybox = busybox().expect("looked for before");
    file.program("bin/busybox", &fs::read(busybox).map_err(told)?).map_err(told)?;
    for module in guest::MODULES {
        let bytes = fs::read(kernel.join(format!("{module}.ko"))).map_err(told)?;
        file.program(&format!("modules/{module}.ko"), &bytes).map_err(told)?;
    }
    file.finish().map_err(told)
}

/// The newest build of the runtime's own tests: cargo has put it beside this one.
fn engine_tests(deps: &Path) -> Result<PathBuf, String> {
    let entries = fs::read_dir(deps).map_err(|error| format!("cannot list {}: {error}", deps.display()))?;
    let built = entries.flatten().filter(|entry| {
        let name = entry.file_name().into_string().unwrap_or_default();
        name.starts_with("engine-") && !name.contains('.')
    });
    let made = |entry: &fs::DirEntry| {
        entry.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
    };
    let newest = built.max_by_key(made).map(|entry| entry.path());
    newest.ok_or_else(|| {
        "the runtime's tests are not built; run: cargo test -p skein-runtime --test engine --no-run"
            .to_owned()
    })
}

/// A line of the console without the signs that move a terminal's cursor.
fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut plain = String::new();
    let mut rest = text.trim_end_matches('\r');
    while let Some((before, after)) = rest.split_once('\x1b') {
        plain.push_str(before);
        let sequence = after.strip_prefix('[').unwrap_or(after);
        let end = sequence.find(|c: char| c.is_ascii_alphabetic()).map_or(sequence.len(), |end| end + 1);
        rest = &sequence[end..];
    }
    plain.push_str(rest);
    plain
}
