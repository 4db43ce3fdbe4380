//! `ports` of a rule into values that can be resolved against a cluster.
//!
//! Knows nothing of pods or addresses. `None` means that something in it is in doubt; the problem is reported.

use crate::peers::{PortItem, Ports};
use crate::report::Report;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sluice_crd::{Part, Port, RuleObject};
use sluice_policy::{PortRange, Protocol};

/// Lowers `ports`. Absent or empty means every port of every protocol, as in `NetworkPolicy`.
pub(crate) fn ports(rule: &RuleObject, report: &mut Report<'_>) -> Option<Ports> {
    let items = match &rule.ports {
        Part::Absent => return Some(Ports::All),
        Part::Bad | Part::Flawed(_) => return None,
        Part::Whole(items) if items.is_empty() => return Some(Ports::All),
        Part::Whole(items) => items,
    };
    let mut out = Some(Vec::with_capacity(items.len()));
    for (index, item) in items.iter().enumerate() {
        let path = format!("{}.ports[{index}]", rule.path);
        let lowered = match item {
            Part::Whole(port) => port_item(port, &path, report),
            Part::Absent | Part::Bad | Part::Flawed(_) => None,
        };
        match (lowered, &mut out) {
            (Some(item), Some(out)) => out.push(item),
            _ => out = None,
        }
    }
    out.map(Ports::Some)
}

fn port_item(port: &Port, path: &str, report: &mut Report<'_>) -> Option<PortItem> {
    let word = port.protocol.as_deref().unwrap_or("TCP");
    let Some(protocol) = Protocol::parse(word).filter(|protocol| protocol.has_ports()) else {
        let reason = format!("\"{word}\" is no protocol with ports");
        report.error(&format!("{path}.protocol"), reason, "write TCP, UDP or SCTP");
        return None;
    };
    let end = port.end_port;
    match &port.port {
        None if end.is_some() => {
            report.error(&format!("{path}.endPort"), "a range without its first port", "write `port`");
            None
        }
        None => Some(PortItem::Range(PortRange::all(protocol))),
        Some(IntOrString::Int(first)) => {
            let number = |number: i32| u16::try_from(number).ok().filter(|number| *number > 0);
            let (Some(first), Some(last)) = (number(*first), number(end.unwrap_or(*first))) else {
                report.error(&format!("{path}.port"), "no port number", "write a number from 1 to 65535");
                return None;
            };
            if last < first {
                let reason = format!("{last} is before {first}");
                report.error(&format!("{path}.endPort"), reason, "write the greater number as endPort");
                return None;
            }
            Some(PortItem::Range(PortRange { protocol, first, last }))
        }
        Some(IntOrString::String(_)) if end.is_some() => {
            report.error(&format!("{path}.endPort"), "a range from a named port", "write numbers");
            None
        }
        Some(IntOrString::String(name)) => {
            if !name.chars().any(|c| c.is_ascii_alphabetic()) {
                let reason = format!("\"{}\" is no port name", name.escape_debug());
                report.error(&format!("{path}.port"), reason, "write a number without quotes, or a name");
                return None;
            }
            Some(PortItem::Named { name: name.as_str().into(), protocol })
        }
    }
}
