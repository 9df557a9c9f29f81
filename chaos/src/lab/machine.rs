//! One machine: its power, its disk and the processes started on it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::hub::Hub;
use super::{Error, cgroup, inside};

/// The namespaces of a machine that a process started on it enters, the mounts last.
const NAMESPACES: [&str; 5] = ["pid", "net", "uts", "ipc", "mnt"];
/// Far longer than a fork takes on a starved machine.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A machine of a [`super::Lab`].
pub struct Machine {
    program: PathBuf,
    dir: PathBuf,
    cgroup: String,
    name: String,
    number: u8,
    address: Ipv4Addr,
    disk_bytes: Option<u64>,
    power: Option<Power>,
    daemon: Option<Process>,
}

struct Power {
    holder: Child,
    init: i32,
}

impl Machine {
    pub(super) fn new(
        program: PathBuf,
        dir: PathBuf,
        cgroup: String,
        name: &str,
        number: u8,
        address: Ipv4Addr,
    ) -> Machine {
        Machine {
            program,
            dir,
            cgroup,
            name: name.to_owned(),
            number,
            address,
            disk_bytes: None,
            power: None,
            daemon: None,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the lab's network.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Gives it another address: now if it is on.
    pub(super) fn readdress(&mut self, hub: &Hub, address: Ipv4Addr) -> Result<(), Error> {
        self.address = address;
        match &self.power {
            Some(power) => hub.readdress(power.init, address),
            None => Ok(()),
        }
    }

    pub(super) fn add_card(
        &self,
        hub: &Hub,
        card: &str,
        address: Ipv4Addr,
        gateway: Option<Ipv4Addr>,
    ) -> Result<(), Error> {
        hub.add_card(format!("{}{card}", self.number), self.init(), card, address, gateway)
    }

    /// Its disk: the data directory of the node it runs, by the name that its own processes use.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// The same disk by a name that works from outside of the machine.
    pub fn disk_from_outside(&self) -> PathBuf {
        match (&self.power, self.disk_bytes) {
            // A disk of limited size is mounted where only the machine sees it.
            (Some(power), Some(_)) => {
                let disk = self.disk();
                let inside = disk.strip_prefix("/").unwrap_or(&disk);
                PathBuf::from(format!("/proc/{}/root", power.init)).join(inside)
            }
            _ => self.disk(),
        }
    }

    /// Gives it a disk of that size from the next power-on: an empty one each time, in memory.
    pub fn limit_disk(&mut self, bytes: u64) {
        self.disk_bytes = Some(bytes);
    }

    /// What its daemon wrote to standard error, over all its lives.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The cgroup, below each hierarchy's root, that its containers belong in.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Whether it is switched on.
    pub fn is_on(&self) -> bool {
        self.power.is_some()
    }

    /// Its port on the lab's switch.
    pub(super) fn port(&self) -> String {
        format!("port{}", self.number)
    }

    pub(super) fn power_on(&mut self, hub: &Hub) -> Result<(), Error> {
        if self.is_on() {
            return Ok(());
        }
        fs::create_dir_all(self.disk()).map_err(Error::kernel("make a machine's disk"))?;
        let mut holder = inside::start_machine(&self.program, &self.name)
            .spawn()
            .map_err(Error::kernel("start a machine"))?;
        // The two say their line when they get there: in either order.
        let output = BufReader::new(holder.stdout.take().expect("piped by start_machine"));
        let said: Vec<String> = output.lines().map_while(Result::ok).take(2).collect();
        let init = said.iter().find_map(|line| line.strip_prefix("init ")?.parse().ok());
        let ready = said.iter().any(|line| line == "ready");
        let Some(init) = init.filter(|_| ready) else {
            let _ = holder.kill();
            let _ = holder.wait();
            let reason = "it may not make pid, network and mount namespaces here".to_owned();
            return Err(Error::Machine { machine: self.name.clone(), reason });
        };
        self.power = Some(Power { holder, init });
        if let Some(bytes) = self.disk_bytes {
            self.mount_disk(bytes)?;
        }
        hub.connect(self.port(), init, self.address)
    }

    fn mount_disk(&self, bytes: u64) -> Result<(), Error> {
        let options = format!("size={bytes},mode=0700");
        let mounted = self
            .command("mount")
            .args(["-t", "tmpfs", "-o", &options, "disk"])
            .arg(self.disk())
            .status()
            .map_err(Error::kernel("mount a machine's disk"))?;
        if mounted.success() {
            return Ok(());
        }
        let reason = format!("its disk of {bytes} bytes was not mounted: {mounted}");
        Err(Error::Machine { machine: self.name.clone(), reason })
    }

    pub(super) fn power_off(&mut self, hub: &Hub) -> Result<(), Error> {
        let Some(mut power) = self.power.take() else { return Ok(()) };
        let unplugged = hub.plug(&self.port(), false);
        let _ = kill(Pid::from_raw(power.init), Signal::SIGKILL);
        let _ = power.holder.wait();
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.enter.wait();
        }
        // The kernel removes a dead namespace's links in its own time; the next power-on needs the name.
        let gone = Instant::now() + START_LIMIT;
        while hub.plug(&self.port(), false).is_ok() && Instant::now() < gone {
            std::thread::sleep(Duration::from_millis(2));
        }
        unplugged
    }

    /// A command that runs on this machine. Panics if it is switched off.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        inside::enter(&self.program, self.init(), &NAMESPACES, None, program.as_ref())
    }

    /// Starts `skein` with `args` as this machine's daemon; its standard error goes to [`Machine::log`].
    pub fn start(&mut self, args: &[&str]) -> Result<(), Error> {
        let pid_file = self.dir.join("pid");
        let _ = fs::remove_file(&pid_file);
        let start = Error::kernel("start the daemon of a machine");
        let log = File::options().create(true).append(true).open(self.log());
        let log = match log {
            Ok(log) => log,
            Err(error) => return Err(start(error)),
        };
        let output = log.try_clone().map_err(Error::kernel("open a log"))?;
        let mut enter =
            inside::enter(&self.program, self.init(), &NAMESPACES, Some(&pid_file), &self.program)
                .args(args)
                .stdin(Stdio::null())
                .stdout(output)
                .stderr(log)
                .spawn()
                .map_err(start)?;
        let limit = Instant::now() + START_LIMIT;
        let pid = loop {
            match fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok()) {
                Some(pid) => break Pid::from_raw(pid),
                None if Instant::now() > limit || enter.try_wait().is_ok_and(|status| status.is_some()) => {
                    let _ = enter.kill();
                    let _ = enter.wait();
                    let reason = "its daemon did not start; see its log".to_owned();
                    return Err(Error::Machine { machine: self.name.clone(), reason });
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        self.daemon = Some(Process { enter, pid });
        Ok(())
    }

    /// The running daemon, if [`Machine::start`] started one since the last power-on.
    pub fn daemon(&mut self) -> Option<&mut Process> {
        self.daemon.as_mut()
    }

    /// Kills the daemon alone, with SIGKILL: its shims and containers go on.
    pub fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.signal(Signal::SIGKILL);
            let _ = daemon.wait();
        }
    }

    /// Lets the daemon have `percent` of one core, or as much as it wants.
    pub fn throttle(&mut self, percent: Option<u32>) -> Result<(), Error> {
        let group = format!("{}-daemon", self.cgroup);
        let Some(daemon) = &self.daemon else { return Ok(()) };
        cgroup::throttle(&group, daemon.pid, percent)
            .map_err(Error::kernel("limit a daemon's processor time"))
    }

    fn init(&self) -> i32 {
        self.power.as_ref().unwrap_or_else(|| panic!("machine {} is switched off", self.name)).init
    }
}

/// A process on a machine, seen from the lab.
pub struct Process {
    enter: Child,
    pid: Pid,
}

impl Process {
    /// Its pid in the lab's pid namespace.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Sends it a signal; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(self.pid, signal);
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.enter.wait()
    }
}
