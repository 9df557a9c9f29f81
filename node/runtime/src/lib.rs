//! Containers on this machine.
//!
//! Owns everything between "start this container" and the Linux kernel: sandboxes (pinned namespaces),
//! root file systems, cgroups, seccomp, one small shim process per container, logs, exit records, and
//! finding all of it again after the daemon died. It imports no other crate of the house and does not
//! know what a cluster is. All `unsafe` of the project is in `sys`, in small modules of one family of
//! system calls each.
//!
//! The shape: [`Machine`] (or [`Fake`]) implements [`Engine`]. [`Machine`] writes an OCI `config.json`
//! into a directory per container and starts this same executable again as a shim
//! ([`main_if_shim`]), which makes the container, copies its output into log files, and leaves an exit
//! record behind. The daemon is disposable: what is on disk and in the kernel is the whole truth, and
//! [`Machine::open`] reads it back.

mod engine;
pub mod images;
mod machine;
#[cfg(feature = "mutations")]
pub mod mutation;

mod capability;
mod cgroup;
mod opening;
mod rootfs;
mod sandbox;
mod seccomp;

mod logs;
mod oci;
mod own_program;
mod record;
mod resolver;
mod shim;

mod fake;
mod sys;

pub use engine::{
    Capabilities, Container, ContainerId, ContainerSpec, ContainerState, End, Engine, Error, Exit, Exits,
    ImageConfig, InvalidName, Mount, MountSource, Network, NetworkFiles, PodUid, Ran, Resources,
    RootfsSource, Running, Sandbox, SandboxSpec, Seccomp, Security, Stats, Usage, User, Volume, VolumeFile,
};
pub use fake::{Behaviour, Fake};
pub use logs::{LogOptions, LogStream};
pub use machine::{
    CGROUP_MOUNT, Config, Machine, Probe, Remains, in_user_namespace, main_if_shim, missing, try_directory,
    unmount_below,
};
pub use resolver::{Resolver, resolver};

/// Whether a guard was taken out on purpose; never without the feature of the escape tests.
macro_rules! broken {
    ($mutation:ident) => {{
        #[cfg(feature = "mutations")]
        let broken = crate::mutation::Mutation::$mutation.is_set();
        #[cfg(not(feature = "mutations"))]
        let broken = false;
        broken
    }};
}
pub(crate) use broken;
