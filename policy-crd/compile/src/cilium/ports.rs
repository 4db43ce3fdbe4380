//! `ports` of an item of `toPorts`.
//!
//! Knows nothing of pods: names are resolved where the rules are.

use super::{http, tls};
use crate::peers::{PortItem, Ports};
use crate::report::Report;
use sluice_crd::{CiliumPort, CiliumPortRule, Part};
use sluice_policy::{PortRange, Protocol};

/// Most ports of one item, as Cilium has it.
const MAX_PORTS: usize = 40;

/// What `ANY` stands for where a port is named.
const ANY: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Lowers `ports`. `None`: in doubt, and told.
pub(super) fn lower(item: &CiliumPortRule, deny: bool, report: &mut Report<'_>) -> Option<Ports> {
    let path = format!("{}.ports", item.path);
    let given = match &item.ports {
        Part::Bad | Part::Flawed(_) => return None,
        Part::Whole(given) if !given.is_empty() => given,
        Part::Absent | Part::Whole(_) => {
            report.error(&path, "no port is named", "name one; \"0\" is every port");
            return None;
        }
    };
    if given.len() > MAX_PORTS {
        let reason = format!("{} ports, at most {MAX_PORTS} are taken", given.len());
        report.error(&path, reason, "write several items of toPorts");
        return None;
    }
    let conditional = http::is_given(item);
    let mut out = Some(Vec::new());
    for (index, port) in given.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let lowered = match port {
            Part::Whole(port) => one(port, conditional, &path, report),
            Part::Absent | Part::Bad | Part::Flawed(_) => None,
        };
        match (lowered, &mut out) {
            (Some(items), Some(out)) => out.extend(items),
            _ => out = None,
        }
    }
    if tls::is_given(item) && given.iter().any(|port| !port.value().is_some_and(is_tcp)) {
        let reason = "server names are of TLS over TCP: another protocol is not allowed by this item";
        report.warn(&path, reason, "write protocol: TCP");
    }
    // Port 0 of every protocol denies those without ports, too.
    let everything = |port: &Part<CiliumPort>| {
        port.value().is_some_and(|port| {
            port.port.as_deref() == Some("0") && protocols(port).is_some_and(|all| all.len() > 1)
        })
    };
    match out {
        Some(_) if deny && given.iter().any(everything) => Some(Ports::All),
        out => out.map(Ports::Some),
    }
}

fn is_tcp(port: &CiliumPort) -> bool {
    protocols(port).is_some_and(|all| all == [Protocol::Tcp])
}

fn protocols(port: &CiliumPort) -> Option<Vec<Protocol>> {
    match port.protocol.as_deref().unwrap_or_default().to_ascii_uppercase().as_str() {
        "" | "ANY" => Some(ANY.to_vec()),
        other => Protocol::parse(other).filter(|protocol| protocol.has_ports()).map(|one| vec![one]),
    }
}

fn one(port: &CiliumPort, conditional: bool, path: &str, report: &mut Report<'_>) -> Option<Vec<PortItem>> {
    let Some(protocols) = protocols(port) else {
        let reason = format!("\"{}\" is no protocol with ports", port.protocol.as_deref()?.escape_debug());
        report.error(&format!("{path}.protocol"), reason, "write TCP, UDP, SCTP or ANY; ICMP under icmps");
        return None;
    };
    if conditional && protocols != [Protocol::Tcp] {
        let reason = "rules for requests are for TCP alone";
        report.error(&format!("{path}.protocol"), reason, "write TCP");
        return None;
    }
    let at = format!("{path}.port");
    let given = port.port.as_deref().unwrap_or_default();
    if given.bytes().any(|b| b.is_ascii_alphabetic()) {
        return named(given, port, protocols, path, report);
    }
    // Cilium reads a leading 0 as octal; a number that two readers take for two is none.
    let plain = given == "0" || !given.starts_with('0');
    let Some(first) = given.parse::<u16>().ok().filter(|_| plain && !given.starts_with('+')) else {
        let reason = format!("\"{}\" is no port", given.escape_debug());
        report.error(&at, reason, "write a number from 1 to 65535 in quotes, \"0\" for all, or a name");
        return None;
    };
    if first == 0 {
        if conditional {
            report.error(&at, "rules for requests need a port", "name one");
            return None;
        }
        return Some(protocols.into_iter().map(|one| PortItem::Range(PortRange::all(one))).collect());
    }
    let last = match port.end_port {
        None | Some(0) => first,
        Some(end) => match u16::try_from(end).ok().filter(|end| *end >= first) {
            Some(end) => end,
            None => {
                let reason = format!("{end} is no port from {first} on");
                report.error(&format!("{path}.endPort"), reason, "write the greater number as endPort");
                return None;
            }
        },
    };
    Some(protocols.into_iter().map(|protocol| PortItem::Range(PortRange { protocol, first, last })).collect())
}

/// A name of a container's port, in lower case as Cilium compares it.
fn named(
    given: &str,
    port: &CiliumPort,
    protocols: Vec<Protocol>,
    path: &str,
    report: &mut Report<'_>,
) -> Option<Vec<PortItem>> {
    let plain = given.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !plain || given.len() > 63 {
        let reason = format!("\"{}\" is no port name", given.escape_debug());
        report.error(&format!("{path}.port"), reason, "write letters, digits and `-`");
        return None;
    }
    if port.end_port.is_some_and(|end| end != 0) {
        report.error(&format!("{path}.endPort"), "a range from a named port", "write numbers");
        return None;
    }
    let name: std::sync::Arc<str> = given.to_ascii_lowercase().into();
    Some(protocols.into_iter().map(|protocol| PortItem::Named { name: name.clone(), protocol }).collect())
}
