//! A name to look for members at: what `--peer` takes.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use crate::endpoint::PORT;

/// Longest name of a host (RFC 1035).
const HOST_BYTES_MAX: usize = 253;

/// A host, by name or address, and a port. Who answers there proves itself, so the name needs no node id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerName {
    host: String,
    port: u16,
}

/// The text is no host with or without a port.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no HOST or HOST:PORT; write it like kitchen.lan, 192.0.2.7:{PORT} or [2001:db8::7]:{PORT}")]
pub struct ParsePeerNameError(String);

impl PeerName {
    /// Asks the system where that is now; at most eight addresses.
    pub(super) async fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
        Ok(found.take(8).collect())
    }
}

impl FromStr for PeerName {
    type Err = ParsePeerNameError;

    fn from_str(text: &str) -> Result<PeerName, ParsePeerNameError> {
        let wrong = || ParsePeerNameError(text.to_owned());
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(PeerName { host: address.ip().to_string(), port: address.port() });
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(PeerName { host: ip.to_string(), port: PORT });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
            None => (text, PORT),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let is_host = !host.is_empty() && host.len() <= HOST_BYTES_MAX && host.chars().all(plain);
        match is_host && !host.starts_with('-') && port != 0 {
            true => Ok(PeerName { host: host.to_owned(), port }),
            false => Err(wrong()),
        }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_or_an_address_with_or_without_a_port() {
        for (text, shown) in [
            ("kitchen.lan", "kitchen.lan:7946"),
            ("kitchen_pi:99", "kitchen_pi:99"),
            ("192.0.2.7", "192.0.2.7:7946"),
            ("192.0.2.7:1", "192.0.2.7:1"),
            ("2001:db8::7", "[2001:db8::7]:7946"),
            ("[2001:db8::7]:8", "[2001:db8::7]:8"),
        ] {
            assert_eq!(text.parse::<PeerName>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_host_is_refused_by_name() {
        for text in ["", ":1", "a:b", "a:0", "a b", "-a", "a:1:2", "https://a", &"x".repeat(254)] {
            let error = text.parse::<PeerName>().unwrap_err().to_string();
            assert!(error.contains("no HOST or HOST:PORT"), "{error}");
        }
    }

    #[tokio::test]
    async fn an_address_is_where_it_says() {
        let name: PeerName = "[::1]:7".parse().unwrap();
        assert_eq!(name.resolve().await.unwrap(), ["[::1]:7".parse::<SocketAddr>().unwrap()]);
    }
}
