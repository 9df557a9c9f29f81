//! Cuts and losses, as one nftables ruleset on the lab's bridge.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::Stdio;

use super::hub::Hub;
use super::{Error, inside};

/// What is wrong with the network now; ports are named, so a machine's faults outlive its address.
#[derive(Debug, Default)]
pub(super) struct Faults {
    cut: BTreeSet<(String, String)>,
    lossy: BTreeMap<String, u8>,
    filters_multicast: bool,
}

impl Faults {
    pub(super) fn cut(&mut self, from: String, to: String) {
        self.cut.insert((from, to));
    }

    pub(super) fn lose(&mut self, port: String, percent: u8) {
        self.lossy.insert(port, percent.min(100));
    }

    pub(super) fn filter_multicast(&mut self) {
        self.filters_multicast = true;
    }

    /// Replaces the bridge's ruleset in one transaction.
    pub(super) fn set(&self, hub: &Hub) -> Result<(), Error> {
        let mut nft = inside::enter(hub.program(), hub.pid(), &["net"], None, "nft".as_ref())
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .map_err(Error::Faults)?;
        let mut input = nft.stdin.take().expect("piped above");
        input.write_all(self.ruleset().as_bytes()).map_err(Error::Faults)?;
        drop(input);
        let status = nft.wait().map_err(Error::Faults)?;
        if status.success() { Ok(()) } else { Err(Error::Faults(io::Error::other(status.to_string()))) }
    }

    fn ruleset(&self) -> String {
        let mut rules = String::from(
            "table bridge lab\ndelete table bridge lab\ntable bridge lab {\n chain forward {\n  \
             type filter hook forward priority 0;\n",
        );
        if self.filters_multicast {
            // Of IP only: without the broadcasts of ARP nobody would reach anybody.
            rules.push_str("  meta protocol { ip, ip6 } meta pkttype { multicast, broadcast } drop\n");
        }
        for (from, to) in &self.cut {
            let _ = writeln!(rules, "  iifname {from} oifname {to} drop");
        }
        for (port, percent) in &self.lossy {
            for direction in ["iifname", "oifname"] {
                let _ = writeln!(rules, "  {direction} {port} numgen random mod 100 < {percent} drop");
            }
        }
        rules.push_str(" }\n}\n");
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_names_one_direction_and_a_loss_both() {
        let mut faults = Faults::default();
        faults.cut("port1".into(), "port2".into());
        faults.lose("port3".into(), 20);
        let rules = faults.ruleset();
        assert!(rules.contains("iifname port1 oifname port2 drop"));
        assert!(!rules.contains("iifname port2"));
        assert!(rules.contains("iifname port3 numgen random mod 100 < 20 drop"));
        assert!(rules.contains("oifname port3 numgen random mod 100 < 20 drop"));
    }
}
