//! The cluster's addresses and ports that Services get.
//!
//! No index is kept: what is taken is what the Services say, so nothing leaks however a Service goes.
//! That two nodes do not give out the same address at the same time is the work of one small key,
//! which every giving out changes on the condition that nobody has changed it since the Services were
//! read.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};
use skein_api::field::{Errors, Path};
use skein_api::kinds::{self, Kind};
use skein_api::object;
use skein_api::status::Status;
use skein_api::write::{Change, Expect, Write};

use crate::cluster::Snapshot;

/// Changed whenever an address or port is given out; its value is the last one of each.
const LAST_GIVEN: &str = "skein/addresses//last";

/// Upstream's default.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Addresses at the range's beginning that are not given out by chance: the network's own and that of
/// the Service `default/kubernetes`.
const RESERVED: u32 = 2;

/// Services in the map at most that are looked at in one go.
const CHUNK: usize = 1_000;

/// The addresses of Services: an IPv4 network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ServiceRange {
    first: Ipv4Addr,
    bits: u8,
}

/// The text is no network that Services can live in.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "cannot use {text:?} for Services; it must be an IPv4 network of at least 4 addresses, such as 10.43.0.0/16"
)]
pub struct RangeError {
    text: String,
}

impl Default for ServiceRange {
    fn default() -> Self {
        ServiceRange { first: Ipv4Addr::new(10, 43, 0, 0), bits: 16 }
    }
}

impl std::str::FromStr for ServiceRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let parse = || {
            let (first, bits) = text.split_once('/')?;
            let range = ServiceRange { first: first.parse().ok()?, bits: bits.parse().ok()? };
            let fits = (8..=30).contains(&range.bits) && u32::from(range.first) % range.size() == 0;
            fits.then_some(range)
        };
        parse().ok_or_else(|| RangeError { text: text.into() })
    }
}

impl ServiceRange {
    /// The address of the Service `default/kubernetes`.
    pub fn of_kubernetes(self) -> Ipv4Addr {
        self.nth(1)
    }

    fn size(self) -> u32 {
        1 << (32 - self.bits)
    }

    fn nth(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.first) + index)
    }

    fn index_of(self, address: Ipv4Addr) -> Option<u32> {
        u32::from(address).checked_sub(u32::from(self.first)).filter(|index| *index < self.size())
    }
}

/// Gives out addresses and ports.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Addresses {
    pub(crate) range: ServiceRange,
}

/// What the other Services have.
#[derive(Default)]
struct Taken {
    addresses: BTreeSet<Ipv4Addr>,
    /// By protocol and number.
    ports: BTreeSet<(String, u16)>,
}

impl Addresses {
    /// A client that replaces a Service need not repeat what it was given.
    pub(crate) fn keep(&self, kind: &Kind, old: &Value, new: &mut Value) {
        if !is_service(kind) || !wants_address(old) || !wants_address(new) {
            return;
        }
        for field in ["clusterIP", "clusterIPs"] {
            let given = &old["spec"][field];
            if !given.is_null() && is_empty(&new["spec"][field]) {
                new["spec"][field] = given.clone();
            }
        }
        if !wants_ports(old) || !wants_ports(new) {
            return;
        }
        let before = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
        for port in ports_mut(new) {
            let same = |known: &&Value| ["port", "protocol"].iter().all(|field| known[field] == port[field]);
            if is_empty(&port["nodePort"])
                && let Some(given) = before.iter().find(same).map(|known| known["nodePort"].clone())
                && !given.is_null()
            {
                port["nodePort"] = given;
            }
        }
    }

    /// Gives `new` the addresses and ports it lacks and checks those it names itself. The write that
    /// comes back must be made together with that of the Service.
    pub(crate) fn settle(
        &self,
        kind: &Kind,
        old: Option<&Value>,
        new: &mut Value,
        snapshot: &dyn Snapshot,
        uid: &str,
    ) -> Result<Option<Write>, Status> {
        if !is_service(kind) || old.is_some_and(|old| given(old) == given(new) && is_settled(new)) {
            return Ok(None);
        }
        if !wants_address(new) {
            release(new);
            return Ok(None);
        }
        let taken = taken(snapshot, object::namespace(new), object::name(new))?;
        let last = snapshot.get(LAST_GIVEN);
        let last_given: Value =
            last.as_ref().and_then(|(bytes, _)| serde_json::from_slice(bytes).ok()).unwrap_or_default();
        let mut errors = Errors::default();
        self.settle_address(new, &taken, &last_given, &mut errors);
        settle_ports(new, &taken, &mut errors);
        let errors = errors.into_inner();
        if !errors.is_empty() {
            return Err(Status::invalid(kind, object::name(new), &errors));
        }
        // The uid makes each value another one: a write of the same value would not count as a change.
        let value = json!({ "address": new["spec"]["clusterIP"], "for": uid });
        let expect = last.map_or(Expect::Absent, |(_, revision)| Expect::Revision(revision));
        Ok(Some(Write { key: LAST_GIVEN.into(), expect, change: Change::Put(object::encode(&value)) }))
    }

    fn settle_address(&self, new: &mut Value, taken: &Taken, last_given: &Value, errors: &mut Errors) {
        let path = Path::new("spec").child("clusterIPs").index(0);
        let asked = new["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
        let address = match asked.as_str() {
            "None" => "None".to_owned(),
            "" => match self.free(taken, last_given) {
                Some(address) => address.to_string(),
                None => {
                    return errors.invalid(&path, "", "failed to allocate IP: the range of Services is full");
                }
            },
            text => match text.parse().ok().filter(|address| self.range.index_of(*address).is_some()) {
                None => {
                    let why = format!(
                        "failed to allocate IP {text}: the provided IP is not in the valid range. The range of valid IPs is {}/{}",
                        self.range.first, self.range.bits
                    );
                    return errors.invalid(&path, text, &why);
                }
                Some(address) if taken.addresses.contains(&address) => {
                    let why = format!("failed to allocate IP {text}: provided IP is already allocated");
                    return errors.invalid(&path, text, &why);
                }
                Some(address) => address.to_string(),
            },
        };
        let spec = &mut new["spec"];
        spec["clusterIPs"] = json!([address]);
        spec["clusterIP"] = address.into();
        for (field, default) in [("ipFamilies", json!(["IPv4"])), ("ipFamilyPolicy", json!("SingleStack"))] {
            if is_empty(&spec[field]) {
                spec[field] = default;
            }
        }
    }

    /// The next free address after the last one given, so that one just freed is not used again at
    /// once by somebody whom old connections then reach.
    fn free(&self, taken: &Taken, last_given: &Value) -> Option<Ipv4Addr> {
        let last = last_given["address"].as_str().and_then(|text| text.parse().ok());
        let last = last.and_then(|last| self.range.index_of(last)).unwrap_or(RESERVED - 1);
        // The range's last address is left out: it would be the broadcast address of a plain network.
        let (low, count) = (RESERVED, self.range.size() - RESERVED - 1);
        (0..count)
            .map(|step| low + (last.max(low - 1) - (low - 1) + step) % count)
            .map(|index| self.range.nth(index))
            .find(|address| !taken.addresses.contains(address))
    }
}

fn settle_ports(new: &mut Value, taken: &Taken, errors: &mut Errors) {
    if !wants_ports(new) {
        return;
    }
    let mut mine: BTreeSet<(String, u16)> = BTreeSet::new();
    for (index, port) in ports_mut(new).iter_mut().enumerate() {
        let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
        let path = Path::new("spec").child("ports").index(index).child("nodePort");
        let asked = port["nodePort"].as_u64().unwrap_or(0);
        let free = |port: u16| {
            let key = (protocol.clone(), port);
            !taken.ports.contains(&key) && !mine.contains(&key)
        };
        let number = if asked == 0 {
            NODE_PORTS.into_iter().find(|port| free(*port))
        } else {
            u16::try_from(asked).ok().filter(|asked| NODE_PORTS.contains(asked) && free(*asked))
        };
        match number {
            Some(number) => {
                port["nodePort"] = number.into();
                mine.insert((protocol, number));
            }
            None if asked == 0 => errors.invalid(&path, "0", "all node ports are taken"),
            None => errors.invalid(
                &path,
                asked,
                "provided port is already allocated, or not in the range of valid ports 30000-32767",
            ),
        }
    }
}

/// What all Services but this one have.
fn taken(snapshot: &dyn Snapshot, namespace: &str, name: &str) -> Result<Taken, Status> {
    let services = kinds::by_kind("", "Service").expect("services are served");
    let (prefix, own) = (services.prefix(None), services.key(namespace, name).to_string());
    let (mut taken, mut after) = (Taken::default(), None::<String>);
    loop {
        let chunk = snapshot.range(&prefix, after.as_deref(), CHUNK);
        for (key, bytes, _) in &chunk {
            if **key == *own {
                continue;
            }
            let service = object::read(bytes)?;
            let address =
                service["spec"]["clusterIP"].as_str().and_then(|text| text.parse::<Ipv4Addr>().ok());
            taken.addresses.extend(address);
            for port in service["spec"]["ports"].as_array().into_iter().flatten() {
                let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
                let number = port["nodePort"].as_u64().and_then(|number| u16::try_from(number).ok());
                taken.ports.extend(number.map(|number| (protocol, number)));
            }
        }
        match chunk.last() {
            Some((key, ..)) if chunk.len() == CHUNK => after = Some(key.to_string()),
            _ => return Ok(taken),
        }
    }
}

fn is_service(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.kind == "Service"
}

fn wants_address(service: &Value) -> bool {
    service["spec"]["type"] != "ExternalName"
}

fn wants_ports(service: &Value) -> bool {
    matches!(service["spec"]["type"].as_str(), Some("NodePort" | "LoadBalancer"))
}

/// What was given out to this Service, or asked for.
fn given(service: &Value) -> (Option<&str>, Vec<(&str, u64)>) {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let ports = ports
        .filter_map(|port| Some((port["protocol"].as_str().unwrap_or("TCP"), port["nodePort"].as_u64()?)))
        .collect();
    (service["spec"]["clusterIP"].as_str(), ports)
}

/// Whether nothing is left to be given out.
fn is_settled(service: &Value) -> bool {
    let address = !wants_address(service) || !is_empty(&service["spec"]["clusterIP"]);
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    address && (!wants_ports(service) || ports.all(|port| !is_empty(&port["nodePort"])))
}

/// A name for something outside has no address of ours.
fn release(service: &mut Value) {
    if let Some(spec) = service["spec"].as_object_mut() {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
    }
}

fn ports_mut(service: &mut Value) -> &mut [Value] {
    service["spec"]["ports"].as_array_mut().map(Vec::as_mut_slice).unwrap_or_default()
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Number(number) => number.as_u64() == Some(0),
        _ => false,
    }
}
