//! Guards that are taken out on purpose: an escape test is believed after it has failed without its guard.

use std::process::Command;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// Names the guard that this process goes without; shims are told by it too.
pub const VARIABLE: &str = "SKEIN_RUNTIME_MUTATION";

/// A guard between containers and the machine that is missing while this is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mutation {
    /// `/proc`, `/sys` and `/dev` are mounted where links of the image lead, and hidden paths that are
    /// absent there count as hidden.
    LinksToKernelFiles,
    /// A link may lead a volume into `/proc`, `/sys` or `/dev`.
    VolumesOverKernelFiles,
    /// A manifest may mount a volume at or below `/proc`.
    VolumesAtProc,
    /// Files are hidden behind the machine's own null device.
    MasksOfTheMachine,
    /// Standard input is the machine's own null device.
    InputOfTheMachine,
    /// Nothing of `/proc` and `/sys` is hidden.
    NothingHidden,
    /// The settings of the kernel can be written.
    SettingsWritable,
    /// `/sys` can be written.
    SysWritable,
    /// Shims and helpers execute the machine's own file.
    ProgramOfTheMachine,
    /// The program of shims and helpers can be executed by whoever finds it.
    ProgramExecutable,
    /// Everybody with the same user may look into shims and helpers.
    Dumpable,
    /// Helpers are seen in the container before they have given up the machine's rights.
    HelpersSeenEarly,
    /// The daemon opens whatever an image has in the place of a file.
    DevicesOfImages,
    /// Device nodes of an image are devices.
    DevicesInImages,
    /// Users and groups may have any number.
    IdsOutOfRange,
    /// Containers start where nothing can keep devices from them.
    NoDeviceFilter,
    /// Containers may open all devices.
    AllDevices,
    /// A link in the image leads a mount to wherever it leads on the machine.
    LinksOutOfImages,
    /// A link in a volume leads a part of it to wherever it leads on the machine.
    LinksOutOfVolumes,
    /// A mount forgets what was forbidden where it comes from.
    MountFlagsLost,
    /// What a container mounts is mounted on the machine, too.
    MountsShared,
    /// The machine's files stay mounted beneath the container's.
    OldRootKept,
    /// A program may start in any directory that a descriptor is open on.
    DirectoryAnywhere,
    /// A program gets the descriptors that its daemon happened to have.
    DescriptorsKept,
    /// A program keeps the groups of its daemon.
    GroupsKept,
    /// A program may get back all capabilities.
    BoundingSetKept,
    /// What becomes a program keeps all capabilities until then.
    CapabilitiesKept,
    /// Programs gain by set-uid bits although the manifest forbids it.
    NewPrivileges,
    /// All system calls are let through.
    AllSystemCalls,
    /// What unpacks images sees all files of the machine.
    UnpackerSeesMachine,
    /// What unpacks images is on the machine's network.
    UnpackerOnTheNetwork,
    /// What unpacks images keeps its daemon's capabilities.
    UnpackerKeepsCapabilities,
    /// What unpacks images may make every system call.
    UnpackerMakesAnyCall,
    /// What unpacks images may take all memory.
    UnpackerUnlimited,
}

impl Mutation {
    /// As the environment variable has it.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    pub(crate) fn is_set(self) -> bool {
        static SET: OnceLock<Option<Mutation>> = OnceLock::new();
        let read = || {
            let name = std::env::var(VARIABLE).ok()?;
            Some(serde_json::from_value(name.into()).expect("the name of a mutation"))
        };
        *SET.get_or_init(read) == Some(self)
    }
}

/// Makes a shim or helper go without the same guard.
pub(crate) fn tell(command: &mut Command) {
    command.envs(std::env::var(VARIABLE).map(|name| (VARIABLE, name)));
}
