//! A Service's cluster address: who needs one, and which to try.
//!
//! Uniqueness is a matter of the store: whoever writes the Service also writes the key
//! [`address_key`] with `Expect::Absent` in the same command, and deletes it with the Service.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use serde_json::{Value, json};

/// What `clusterIP` says of a Service that has none on purpose.
pub const HEADLESS: &str = "None";

/// Ports that a Service may take on every node.
pub const NODE_PORTS: RangeInclusive<i32> = 30_000..=32_767;

/// Whether the Service is to get a cluster address and has none yet.
pub fn wants_address(service: &Value) -> bool {
    let spec = &service["spec"];
    spec["type"] != "ExternalName" && spec["clusterIP"].as_str().is_none_or(str::is_empty)
}

/// The address it has, if any.
pub fn address(service: &Value) -> Option<Ipv4Addr> {
    service["spec"]["clusterIP"].as_str()?.parse().ok()
}

/// Gives it the address.
pub fn set_address(service: &mut Value, address: Ipv4Addr) {
    if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("clusterIP".into(), json!(address.to_string()));
        spec.insert("clusterIPs".into(), json!([address.to_string()]));
    }
}

/// The address to try at the `attempt`th time, out of `network/prefix`: spread by the Service's uid, so
/// that Services made at once rarely try the same one. Network and broadcast address and the first host,
/// which is the API's own, are left out. A network without any other address has no candidates.
pub fn candidate(network: Ipv4Addr, prefix: u8, uid: &str, attempt: u32) -> Option<Ipv4Addr> {
    let host_bits = 32_u32.checked_sub(prefix.into())?;
    let size = 1_u64 << host_bits;
    let hosts = size.checked_sub(3).filter(|hosts| *hosts > 0)?;
    // FNV-1a, then one step per attempt: every address is tried once before any is tried again.
    let seed = uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let offset = 2 + (seed % hosts + u64::from(attempt) % hosts) % hosts;
    let base = u64::from(u32::from(network)) & !(size - 1);
    u32::try_from(base + offset).ok().map(Ipv4Addr::from)
}

/// The key that holds an address for one Service; its value is the Service's key.
pub fn address_key(address: Ipv4Addr) -> String {
    format!("skein/addresses//{address}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_free_address_is_a_candidate_once() {
        let network = Ipv4Addr::new(10, 96, 0, 0);
        let all: std::collections::BTreeSet<_> =
            (0..253).filter_map(|attempt| candidate(network, 24, "u-1", attempt)).collect();
        assert_eq!(all.len(), 253);
        assert_eq!(all.first(), Some(&Ipv4Addr::new(10, 96, 0, 2)));
        assert_eq!(all.last(), Some(&Ipv4Addr::new(10, 96, 0, 254)));
        assert_eq!(candidate(network, 31, "u-1", 0), None);
        assert_eq!(candidate(network, 33, "u-1", 0), None);
        assert!(candidate(Ipv4Addr::new(255, 255, 255, 0), 0, "u", u32::MAX).is_some());
    }

    #[test]
    fn only_a_service_without_address_wants_one() {
        assert!(wants_address(&json!({ "spec": { "type": "ClusterIP" } })));
        assert!(!wants_address(&json!({ "spec": { "clusterIP": "None" } })));
        assert!(!wants_address(&json!({ "spec": { "type": "ExternalName" } })));
        let mut service = json!({ "spec": {} });
        set_address(&mut service, Ipv4Addr::new(10, 96, 0, 7));
        assert_eq!(address(&service), Some(Ipv4Addr::new(10, 96, 0, 7)));
    }
}
