//! `--advertise`: where others are told that this node is, kept for later starts.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use skein_net::gossip::metadata::ADDRESSES_MAX;

use crate::daemon::Failure;
use crate::home::Home;

/// One word after `--advertise`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advertise {
    /// What the node finds out itself.
    Auto,
    /// An address, with the port that it listens on unless another one is given.
    At(IpAddr, Option<u16>),
}

impl FromStr for Advertise {
    type Err = String;

    fn from_str(text: &str) -> Result<Advertise, String> {
        if text == "auto" {
            return Ok(Advertise::Auto);
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse() {
            return Ok(Advertise::At(ip, None));
        }
        let wrong = || {
            format!(
                "cannot read {text:?} as an address; write it like 192.0.2.7, 192.0.2.7:7946, 2001:db8::7 or [2001:db8::7]:7946, or auto"
            )
        };
        let at: SocketAddr = text.parse().map_err(|_| wrong())?;
        Ok(Advertise::At(at.ip(), Some(at.port())))
    }
}

impl fmt::Display for Advertise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Advertise::Auto => f.write_str("auto"),
            Advertise::At(ip, None) => write!(f, "{ip}"),
            Advertise::At(ip, Some(port)) => write!(f, "{}", SocketAddr::new(*ip, *port)),
        }
    }
}

/// What is to be told, of what was given now and what was kept from an earlier start; empty for what is found out.
/// Nothing is written.
pub(super) fn chosen(
    home: &Home,
    given: &[Advertise],
    listen: SocketAddr,
) -> Result<Vec<SocketAddr>, Failure> {
    let kept;
    let words = match given {
        [] => {
            kept = read(home)?;
            &kept
        }
        given => given,
    };
    Ok(check(words, listen)?)
}

/// Keeps what was given for later starts.
pub(super) fn keep(home: &Home, given: &[Advertise]) -> Result<(), Failure> {
    match given {
        [] => Ok(()),
        given => Ok(home.set_advertise(&given.iter().map(ToString::to_string).collect::<Vec<_>>())?),
    }
}

fn read(home: &Home) -> Result<Vec<Advertise>, Failure> {
    let words = home.advertise()?;
    words.iter().map(|word| word.parse().map_err(Failure::from)).collect()
}

fn check(words: &[Advertise], listen: SocketAddr) -> Result<Vec<SocketAddr>, String> {
    if words.contains(&Advertise::Auto) {
        return match words {
            [_] => Ok(Vec::new()),
            _ => Err("--advertise auto stands alone: it means no address given by hand".into()),
        };
    }
    if words.len() > ADDRESSES_MAX {
        return Err(format!(
            "{} addresses are given with --advertise, the limit is {ADDRESSES_MAX}",
            words.len()
        ));
    }
    let mut told = Vec::new();
    for word in words {
        let Advertise::At(ip, port) = word else { unreachable!("only addresses are left") };
        if let Some(reason) = unfit(*ip, *port, listen) {
            return Err(format!("cannot advertise {word}: {reason}"));
        }
        let at = SocketAddr::new(*ip, port.unwrap_or(listen.port()));
        if !told.contains(&at) {
            told.push(at);
        }
    }
    Ok(told)
}

/// Why nobody could reach a node that listens at `listen` there.
fn unfit(ip: IpAddr, port: Option<u16>, listen: SocketAddr) -> Option<String> {
    let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let speaks = listen.ip().is_unspecified() && listen.is_ipv6();
    match () {
        () if ip.is_unspecified() || ip.is_multicast() => Some("it is the address of no single machine".into()),
        () if port == Some(0) => Some("a port is a number from 1 to 65535".into()),
        () if is_link_local => {
            Some("without its link it means nothing elsewhere; give an IPv4 address, or a unique local or global one".into())
        }
        () if ip.is_loopback() && !listen.ip().is_loopback() => Some("it leads every other machine to itself".into()),
        () if ip.is_ipv4() != listen.is_ipv4() && !speaks => {
            let family = if listen.is_ipv4() { "IPv4" } else { "IPv6" };
            Some(format!("this node listens for {family} only (--listen {listen}); give --listen [::]:{}", listen.port()))
        }
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(words: &[&str], listen: &str) -> Result<Vec<String>, String> {
        let words: Vec<Advertise> = words.iter().map(|word| word.parse()).collect::<Result<_, _>>()?;
        let told = check(&words, listen.parse().unwrap())?;
        Ok(told.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn an_address_has_the_port_that_is_listened_on_unless_it_says_another() {
        let words = ["203.0.113.7", "192.0.2.7:17946", "2001:db8::7", "[2001:db8::8]:1"];
        let expected = ["203.0.113.7:7000", "192.0.2.7:17946", "[2001:db8::7]:7000", "[2001:db8::8]:1"];
        assert_eq!(told(&words, "[::]:7000").unwrap(), expected);
        assert_eq!(told(&["auto"], "[::]:7000").unwrap(), Vec::<String>::new());
        for word in words {
            assert_eq!(word.parse::<Advertise>().unwrap().to_string(), word);
        }
    }

    #[test]
    fn what_leads_nobody_here_is_refused_with_the_reason() {
        for (words, listen, reason) in [
            (&["kitchen.lan"][..], "[::]:7946", "cannot read"),
            (&["0.0.0.0"], "[::]:7946", "no single machine"),
            (&["239.1.2.3"], "[::]:7946", "no single machine"),
            (&["192.0.2.7:0"], "[::]:7946", "1 to 65535"),
            (&["fe80::1"], "[::]:7946", "without its link"),
            (&["127.0.0.1"], "[::]:7946", "to itself"),
            (&["2001:db8::7"], "0.0.0.0:7946", "IPv4 only"),
            (&["192.0.2.7"], "[2001:db8::7]:7946", "IPv6 only"),
            (&["auto", "192.0.2.7"], "[::]:7946", "stands alone"),
            (&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"], "[::]:7946", "limit is 4"),
        ] {
            let error = told(words, listen).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        assert!(told(&["127.0.0.1"], "127.0.0.1:7946").is_ok(), "nodes of one machine");
    }

    #[test]
    fn what_was_given_once_is_kept_until_something_else_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        let listen: SocketAddr = "[::]:7946".parse().unwrap();
        let at = Advertise::At([203, 0, 113, 7].into(), None);
        assert!(chosen(&home, &[], listen).unwrap().is_empty());
        assert_eq!(chosen(&home, &[at], listen).unwrap().len(), 1);
        assert!(chosen(&home, &[], listen).unwrap().is_empty(), "not kept by being looked at");
        keep(&home, &[at]).unwrap();
        keep(&home, &[]).unwrap();
        assert_eq!(chosen(&home, &[], listen).unwrap(), ["203.0.113.7:7946".parse().unwrap()]);
        keep(&home, &[Advertise::Auto]).unwrap();
        assert!(chosen(&home, &[], listen).unwrap().is_empty());
    }
}
