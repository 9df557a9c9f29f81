//! The machine's list of name servers, as pods can use it.

use std::fs;
use std::net::IpAddr;

/// Where the list lies that programs read, and the one behind it where that names a server on the loopback only:
/// systemd-resolved's own.
const LISTS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// A list for pods that have a network of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolver {
    /// As in a `resolv.conf`: without servers on the loopback, where a pod finds itself only.
    pub text: String,
    /// Whether no server is left: programs of pods find nobody by name.
    pub is_empty: bool,
}

/// What the machine says now.
pub fn resolver() -> Resolver {
    usable(LISTS.iter().map(|path| fs::read_to_string(path).unwrap_or_default()))
}

/// The first list that names a server elsewhere; else what else the first one says.
fn usable(lists: impl IntoIterator<Item = String>) -> Resolver {
    let mut lists = lists.into_iter().map(|list| reachable(&list)).peekable();
    let first = lists.peek().cloned();
    let found = lists.find(|list| !list.is_empty).or(first);
    found.unwrap_or(Resolver { text: String::new(), is_empty: true })
}

/// The list without servers on the loopback.
fn reachable(list: &str) -> Resolver {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next().unwrap_or_default().to_owned())
    };
    // With a zone behind it, as `fe80::1%eth0`, it is no loopback.
    let is_loopback = |server: &str| server.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let kept = |line: &&str| server(line).is_none_or(|server| !is_loopback(&server));
    let lines: Vec<&str> = list.lines().filter(kept).collect();
    let is_empty = !lines.iter().any(|line| server(line).is_some());
    let text = lines.iter().map(|line| format!("{line}\n")).collect();
    Resolver { text, is_empty }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lists: [&str; 2], text: &str, is_empty: bool) {
        let found = usable(lists.map(str::to_owned));
        assert_eq!(found, Resolver { text: text.to_owned(), is_empty }, "{lists:?}");
    }

    #[test]
    fn servers_on_the_loopback_are_not_given_to_pods() {
        let stub = "# by systemd\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n";
        let behind = "nameserver 192.0.2.1\nsearch lan\n";
        check([behind, ""], behind, false);
        check([stub, behind], behind, false);
        check(["nameserver ::1\n", behind], behind, false);
        check(["nameserver 127.0.0.1\nnameserver 192.0.2.7\n", behind], "nameserver 192.0.2.7\n", false);
        check(["nameserver fe80::1%eth0\n", behind], "nameserver fe80::1%eth0\n", false);
        // Nobody is left: what else the machine says stays.
        check([stub, ""], "# by systemd\noptions edns0 trust-ad\nsearch lan\n", true);
        check([stub, "nameserver 127.0.0.1\n"], "# by systemd\noptions edns0 trust-ad\nsearch lan\n", true);
        // Programs take the loopback for their server where none is named.
        check(["search lan\n", behind], behind, false);
        check(["", ""], "", true);
    }
}
