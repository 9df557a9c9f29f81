//! What pods ask for and nodes offer, in plain numbers.

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use skein_api::pod::qos_class;
use skein_api::quantity;
use std::collections::BTreeMap;

/// An amount of each resource that the scheduler counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a core.
    pub cpu_millis: i64,
    /// Bytes of memory.
    pub memory_bytes: i64,
    /// Bytes of local disk.
    pub storage_bytes: i64,
    /// Pods.
    pub pods: i64,
}

impl Amounts {
    /// The sum of both.
    pub fn plus(self, other: Amounts) -> Amounts {
        self.each(other, i64::saturating_add)
    }

    /// What is left without `other`.
    pub fn minus(self, other: Amounts) -> Amounts {
        self.each(other, i64::saturating_sub)
    }

    fn most(self, other: Amounts) -> Amounts {
        self.each(other, i64::max)
    }

    fn each(self, other: Amounts, by: fn(i64, i64) -> i64) -> Amounts {
        Amounts {
            cpu_millis: by(self.cpu_millis, other.cpu_millis),
            memory_bytes: by(self.memory_bytes, other.memory_bytes),
            storage_bytes: by(self.storage_bytes, other.storage_bytes),
            pods: by(self.pods, other.pods),
        }
    }
}

/// What a pod asks for: all its containers together, or its hungriest init container if that is more.
/// Init containers that keep running count beside both.
pub fn asked_by(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts { pods: 1, ..Amounts::default() } };
    let (mut sidecars, mut peak) = (Amounts::default(), Amounts::default());
    for init in spec.init_containers.iter().flatten() {
        if keeps_running(init) {
            sidecars = sidecars.plus(requests(init));
            peak = peak.most(sidecars);
        } else {
            peak = peak.most(sidecars.plus(requests(init)));
        }
    }
    let running = spec.containers.iter().map(requests).fold(sidecars, Amounts::plus);
    let overhead = amounts(spec.overhead.as_ref());
    Amounts { pods: 1, ..running.most(peak).plus(overhead) }
}

/// What a node has for pods.
pub fn offered_by(node: &Node) -> Amounts {
    let status = node.status.as_ref();
    amounts(status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref())))
}

/// Resources that are asked for by name and that [`Amounts`] does not count, such as devices.
pub(crate) fn devices_asked_by(spec: &PodSpec) -> BTreeMap<&str, i64> {
    let mut sums = BTreeMap::new();
    for container in &spec.containers {
        let resources = container.resources.as_ref();
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        for (name, quantity) in limits.into_iter().flatten().filter(|(name, _)| !is_counted(name)) {
            *sums.entry(name.as_str()).or_insert(0_i64) += units(quantity);
        }
    }
    sums
}

/// How much of a device a node offers.
pub(crate) fn device_offered(node: &Node, name: &str) -> i64 {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    allocatable.and_then(|amounts| amounts.get(name)).map_or(0, units)
}

/// True for an init container that is to run as long as the pod.
pub(crate) fn keeps_running(init: &Container) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

/// The class by which the kernel chooses whom to starve first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    /// Every container has limits for cpu and memory, and asks for just that.
    Guaranteed,
    /// Some container asks for something.
    Burstable,
    /// Nothing is asked for.
    BestEffort,
}

impl QosClass {
    /// The class's name in the API.
    pub fn name(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }

    /// The class of a pod.
    pub fn of(spec: &PodSpec) -> QosClass {
        match qos_class(spec) {
            "Guaranteed" => QosClass::Guaranteed,
            "BestEffort" => QosClass::BestEffort,
            _ => QosClass::Burstable,
        }
    }
}

/// What one container asks for; a limit without a request is a request of the same.
fn requests(container: &Container) -> Amounts {
    let Some(resources) = &container.resources else { return Amounts::default() };
    let amount = |name| request(resources, name).unwrap_or(0);
    Amounts {
        cpu_millis: amount("cpu"),
        memory_bytes: amount("memory"),
        storage_bytes: amount("ephemeral-storage"),
        pods: 0,
    }
}

/// The request for a resource, or the limit where only that is given; cpu in thousandths.
pub(crate) fn request(resources: &ResourceRequirements, name: &str) -> Option<i64> {
    named(resources.requests.as_ref(), name).or_else(|| limit(resources, name))
}

/// The limit for a resource; cpu in thousandths.
pub(crate) fn limit(resources: &ResourceRequirements, name: &str) -> Option<i64> {
    named(resources.limits.as_ref(), name)
}

fn amounts(held: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    let amount = |name| named(held, name).unwrap_or(0);
    Amounts {
        cpu_millis: amount("cpu"),
        memory_bytes: amount("memory"),
        storage_bytes: amount("ephemeral-storage"),
        pods: amount("pods"),
    }
}

fn named(held: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    let quantity = held?.get(name)?;
    Some(if name == "cpu" { thousandths(quantity) } else { units(quantity) })
}

fn is_counted(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage")
}

/// A quantity in whole units, rounded up; what cannot be read (the API refuses it) counts as nothing.
pub(crate) fn units(quantity: &Quantity) -> i64 {
    read(quantity).units()
}

/// A quantity in thousandths, rounded up.
pub(crate) fn thousandths(quantity: &Quantity) -> i64 {
    read(quantity).millis()
}

fn read(quantity: &Quantity) -> quantity::Quantity {
    quantity::Quantity::try_from(quantity).unwrap_or(quantity::Quantity::ZERO)
}
