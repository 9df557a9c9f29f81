//! Requests and limits as cgroup numbers.

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec};

use crate::resources::{self, QosClass, keeps_running, limit, request};

/// What the kernel is told. Both cgroup versions find their numbers here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// v1 `cpu.shares`.
    pub cpu_shares: u64,
    /// v2 `cpu.weight`: the same share on the scale 1 to 10,000.
    pub cpu_weight: u64,
    /// Microseconds of cpu in each period; `None`: no limit.
    pub cpu_quota_us: Option<u64>,
    /// Length of that period.
    pub cpu_period_us: u64,
    /// Bytes of memory, swap included; `None`: no limit.
    pub memory_bytes_max: Option<u64>,
    /// Who dies first when the machine runs out of memory.
    pub oom_score_adj: i32,
}

/// Kubernetes' period.
const PERIOD_US: u64 = 100_000;
/// The kernel takes no shorter quota.
const QUOTA_US_MIN: u64 = 1_000;
/// The kernel takes no smaller share.
const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;

/// The numbers of the cgroup around all containers of a pod. A limit holds for the pod only if every one of
/// its containers has one.
pub fn limits(pod: &Pod) -> Limits {
    let none = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&none);
    let asked = resources::asked_by(pod);
    let running = || {
        let init = spec.init_containers.iter().flatten();
        spec.containers.iter().chain(init.filter(|init| keeps_running(init)))
    };
    let ones = || spec.init_containers.iter().flatten().filter(|init| !keeps_running(init));
    let of =
        |container: &Container, name: &str| limit(container.resources.as_ref()?, name).filter(|it| *it > 0);
    let whole = |name: &str| {
        let sum = running().map(|container| of(container, name)).sum::<Option<i64>>()?;
        let peaks: Option<Vec<i64>> = ones().map(|container| of(container, name)).collect();
        Some(peaks?.into_iter().fold(sum, i64::max))
    };
    from(asked.cpu_millis, whole("cpu"), whole("memory"), 0)
}

/// The numbers of one container's cgroup.
pub(super) fn of_container(spec: &PodSpec, container: &Container, node: Option<&Node>) -> Limits {
    let held = container.resources.as_ref();
    let memory = held.and_then(|held| request(held, "memory")).unwrap_or(0);
    let capacity = node.map(|node| resources::offered_by(node).memory_bytes).unwrap_or(0);
    from(
        held.and_then(|held| request(held, "cpu")).unwrap_or(0),
        held.and_then(|held| limit(held, "cpu")).filter(|it| *it > 0),
        held.and_then(|held| limit(held, "memory")).filter(|it| *it > 0),
        oom_score_adj(QosClass::of(spec), memory, capacity),
    )
}

fn from(cpu_request: i64, cpu_limit: Option<i64>, memory_limit: Option<i64>, oom_score_adj: i32) -> Limits {
    let millis = |amount: i64| u64::try_from(amount).unwrap_or(0);
    let shares = (millis(cpu_request) * 1024 / 1000).clamp(SHARES_MIN, SHARES_MAX);
    Limits {
        cpu_shares: shares,
        // 2..262144 onto 1..10000, as the OCI runtimes do.
        cpu_weight: 1 + (shares - SHARES_MIN) * 9_999 / (SHARES_MAX - SHARES_MIN),
        cpu_quota_us: cpu_limit.map(|limit| (millis(limit) * PERIOD_US / 1000).max(QUOTA_US_MIN)),
        cpu_period_us: PERIOD_US,
        memory_bytes_max: memory_limit.and_then(|bytes| u64::try_from(bytes).ok()),
        oom_score_adj,
    }
}

/// The less of its request a container uses of the machine, the sooner it dies (kubelet's rule).
fn oom_score_adj(class: QosClass, memory_request: i64, capacity: i64) -> i32 {
    match class {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable if capacity <= 0 => 999,
        QosClass::Burstable => {
            let share = i128::from(memory_request) * 1000 / i128::from(capacity);
            (1000 - share).clamp(3, 999) as i32
        }
    }
}
