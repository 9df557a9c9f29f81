//! Machines on one machine: each a pid, network, mount, UTS and IPC namespace with its own address,
//! joined by a bridge in a namespace of the lab.
//!
//! Power-off kills a machine's init, and with it, at once, every process of the machine: the daemon,
//! its shims and its containers. The machine's directory survives, as a disk does. What no namespace
//! gives: the page cache survives as well, so a lost *unsynced write* is the simulator's subject.
//!
//! The lab needs a program that calls [`main_if_inside`] first thing in its `main`: it runs it again,
//! under two hidden verbs, as the machines' init and to start processes inside.

mod cgroup;
mod faults;
mod hub;
mod inside;
mod machine;

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use inside::main_if_inside;
pub use machine::{Machine, Process};

use faults::Faults;
use hub::Hub;

/// What [`Lab::new`] needs.
#[derive(Debug, Clone)]
pub struct Config {
    /// The `skein` program: it calls [`main_if_inside`].
    pub program: PathBuf,
    /// Where the machines' disks and logs lie. A short path: unix sockets below it have 108 bytes.
    pub dir: PathBuf,
    /// The machines' network, of 24 bits; the lab itself has the address that ends in 254.
    pub network: Ipv4Addr,
}

/// Why the lab could not do something. Machines that run go on running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel or this user's rights do not allow it.
    #[error("could not {action}; run as root, or as a user who may make user namespaces")]
    Kernel {
        /// What was tried.
        action: String,
        /// The kernel's words.
        #[source]
        source: io::Error,
    },
    /// The program given as [`Config::program`] did not do its part.
    #[error("machine {machine} did not start: {reason}")]
    Machine {
        /// The machine's name.
        machine: String,
        /// What it said, or that it ended.
        reason: String,
    },
    /// A cut or a loss was asked for, and the program `nft` did not set it.
    #[error("could not set the network's faults; they need the program nft (Debian: nftables)")]
    Faults(#[source] io::Error),
}

impl Error {
    fn kernel(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let action = action.into();
        move |source| Error::Kernel { action, source }
    }
}

/// A set of machines on one network. Dropping it switches them off and removes what they left in the
/// kernel; their directories stay.
pub struct Lab {
    config: Config,
    machines: BTreeMap<String, Machine>,
    faults: Faults,
    cgroup: String,
    hub: Hub,
}

impl Lab {
    /// An empty network.
    pub fn new(config: Config) -> Result<Lab, Error> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static LABS: AtomicU32 = AtomicU32::new(0);
        std::fs::create_dir_all(&config.dir).map_err(Error::kernel("make the lab's directory"))?;
        let hub = Hub::new(&config.program, address(config.network, 254))?;
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("skein-lab-{}-{number}", std::process::id());
        Ok(Lab { config, machines: BTreeMap::new(), faults: Faults::default(), cgroup, hub })
    }

    /// Adds a machine, switched off, and returns it.
    pub fn add(&mut self, name: &str) -> &mut Machine {
        let number = self.machines.len() as u8 + 1;
        let machine = Machine::new(
            self.config.program.clone(),
            self.config.dir.join(name),
            format!("{}/{name}", self.cgroup),
            name,
            number,
            address(self.config.network, number),
        );
        self.machines.entry(name.to_owned()).or_insert(machine)
    }

    /// The machine of that name; panics if there is none, which is a mistake in the scenario.
    pub fn machine(&self, name: &str) -> &Machine {
        self.machines.get(name).unwrap_or_else(|| panic!("the lab has no machine {name}"))
    }

    /// Like [`Lab::machine`], to start and stop its processes.
    pub fn machine_mut(&mut self, name: &str) -> &mut Machine {
        self.machines.get_mut(name).unwrap_or_else(|| panic!("the lab has no machine {name}"))
    }

    /// The machines' names, in order.
    pub fn names(&self) -> Vec<String> {
        self.machines.keys().cloned().collect()
    }

    /// Switches the machine on and plugs its cable in.
    pub fn power_on(&mut self, name: &str) -> Result<(), Error> {
        let machine = self.machines.get_mut(name).unwrap_or_else(|| panic!("the lab has no machine {name}"));
        machine.power_on(&self.hub)
    }

    /// Cuts the machine's power: its link goes down, then every process of it dies at once.
    pub fn power_off(&mut self, name: &str) -> Result<(), Error> {
        let machine = self.machines.get_mut(name).unwrap_or_else(|| panic!("the lab has no machine {name}"));
        machine.power_off(&self.hub)
    }

    /// Pulls (`false`) or plugs (`true`) the machine's network cable; its processes go on.
    pub fn plug(&self, name: &str, plugged: bool) -> Result<(), Error> {
        self.hub.plug(&self.machine(name).port(), plugged)
    }

    /// Gives the machine another address: at once if it is on, and its old one is gone then.
    pub fn readdress(&mut self, name: &str, address: Ipv4Addr) -> Result<(), Error> {
        let machine = self.machines.get_mut(name).unwrap_or_else(|| panic!("the lab has no machine {name}"));
        machine.readdress(&self.hub, address)
    }

    /// Gives the running machine one more network card, until it is switched off: with an address, and a cable on
    /// which nobody is, not even the gateway that its default route names.
    pub fn add_card(
        &self,
        name: &str,
        card: &str,
        address: Ipv4Addr,
        gateway: Option<Ipv4Addr>,
    ) -> Result<(), Error> {
        self.machine(name).add_card(&self.hub, card, address, gateway)
    }

    /// Machines switched on from now on have a default gateway, as at home: the lab itself. It answers, but
    /// leads nowhere.
    pub fn add_gateway(&mut self) {
        self.hub.become_gateway();
    }

    /// Drops what goes to groups or to all of the link, as some switches and access points do; only who
    /// knows an address is reached.
    pub fn filter_multicast(&mut self) -> Result<(), Error> {
        self.faults.filter_multicast();
        self.faults.set(&self.hub)
    }

    /// Drops every frame from one machine to another, silently.
    pub fn cut_one_way(&mut self, from: &str, to: &str) -> Result<(), Error> {
        let (from, to) = (self.machine(from).port(), self.machine(to).port());
        self.faults.cut(from, to);
        self.faults.set(&self.hub)
    }

    /// Drops every frame between two machines, silently.
    pub fn cut(&mut self, a: &str, b: &str) -> Result<(), Error> {
        self.cut_one_way(a, b)?;
        self.cut_one_way(b, a)
    }

    /// Loses `percent` of the frames to and from the machine, by chance.
    pub fn lose(&mut self, name: &str, percent: u8) -> Result<(), Error> {
        let port = self.machine(name).port();
        self.faults.lose(port, percent);
        self.faults.set(&self.hub)
    }

    /// Ends all cuts and losses; cables and power stay as they are.
    pub fn mend(&mut self) -> Result<(), Error> {
        self.faults = Faults::default();
        self.faults.set(&self.hub)
    }

    /// A program in the lab's own network, from where every machine is reached: where a user's kubectl runs.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        inside::enter(&self.config.program, self.hub.pid(), &["net"], None, program.as_ref())
    }

    /// What to write before a command to run it in the lab's network from another terminal.
    pub fn entrance(&self) -> String {
        let pid = self.hub.pid();
        if nix::unistd::geteuid().is_root() && !in_user_namespace() {
            format!("nsenter --target {pid} --net")
        } else {
            format!("nsenter --target {pid} --user --net --mount --preserve-credentials")
        }
    }

    /// The lab's directory.
    pub fn dir(&self) -> &Path {
        &self.config.dir
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for machine in self.machines.values_mut() {
            let _ = machine.power_off(&self.hub);
        }
        cgroup::remove(&self.cgroup);
    }
}

fn address(network: Ipv4Addr, last: u8) -> Ipv4Addr {
    let [a, b, c, _] = network.octets();
    Ipv4Addr::new(a, b, c, last)
}

/// Whether this process is root only of a user namespace.
pub fn in_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"])
}

/// Makes this process root of a user namespace of its own, where the kernel lets an ordinary user do so.
/// Only in a process of one thread.
///
/// Errors: the kernel or its settings forbid it; the text names what to change.
pub fn become_root_of_a_user_namespace() -> Result<(), Error> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let enter = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER | nix::sched::CloneFlags::CLONE_NEWNS)?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
    };
    enter().map_err(Error::kernel("make a user namespace (kernel.unprivileged_userns_clone, user.max_user_namespaces, or AppArmor may forbid it)"))
}
