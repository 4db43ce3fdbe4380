//! `icmps` of a rule: types of ICMP and of `ICMPv6`, by number or by name.
//!
//! Names are those of IANA's registries in Cilium's spelling; the numbers are IANA's. Knows nothing of peers.

use crate::peers::{PortItem, Ports};
use crate::report::Report;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sluice_crd::{CiliumIcmpField, CiliumIcmpRule, Part};
use sluice_policy::port::icmp_port;
use sluice_policy::{PortRange, Protocol};

/// Most types of one item, as Cilium has it.
const MAX_FIELDS: usize = 40;
/// Most items of `icmps`: with all their types more than both families have.
const MAX_ITEMS: usize = 64;

/// Types of ICMP (IANA, "ICMP Type Numbers").
const V4: &[(&str, u8)] = &[
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
];

/// Types of `ICMPv6` (IANA, "ICMPv6 type Numbers").
const V6: &[(&str, u8)] = &[
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
    ("RouterRenumbering", 138),
    ("ICMPNodeInformationQuery", 139),
    ("ICMPNodeInformationResponse", 140),
    ("InverseNeighborDiscoverySolicitation", 141),
    ("InverseNeighborDiscoveryAdvertisement", 142),
    ("HomeAgentAddressDiscoveryRequest", 144),
    ("HomeAgentAddressDiscoveryReply", 145),
    ("MobilePrefixSolicitation", 146),
    ("MobilePrefixAdvertisement", 147),
    ("DuplicateAddressRequestCodeSuffix", 157),
    ("DuplicateAddressConfirmationCodeSuffix", 158),
    ("ExtendedEchoRequest", 160),
    ("ExtendedEchoReply", 161),
];

/// Lowers `icmps`: each item with its place. `None`: in doubt, and told.
pub(super) fn lower(
    items: &[Part<CiliumIcmpRule>],
    path: &str,
    report: &mut Report<'_>,
) -> Option<Vec<(String, Ports)>> {
    if items.len() > MAX_ITEMS {
        let reason = format!("{} items, at most {MAX_ITEMS} are taken", items.len());
        report.error(path, reason, "write several rules");
        return None;
    }
    let mut out = Some(Vec::with_capacity(items.len()));
    for (index, item) in items.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let lowered = match item {
            Part::Whole(item) => types(item, &path, report),
            Part::Absent | Part::Bad | Part::Flawed(_) => None,
        };
        match (lowered, &mut out) {
            (Some(ports), Some(out)) => out.push((path, ports)),
            _ => out = None,
        }
    }
    out
}

fn types(item: &CiliumIcmpRule, path: &str, report: &mut Report<'_>) -> Option<Ports> {
    let path = format!("{path}.fields");
    let fields = item.fields.as_deref().unwrap_or_default();
    if fields.is_empty() || fields.len() > MAX_FIELDS {
        let reason = format!("{} types, from 1 to {MAX_FIELDS} are taken", fields.len());
        report.error(&path, reason, "write each as `type: 8`, and several items for more");
        return None;
    }
    let mut out = Some(Vec::with_capacity(fields.len()));
    for (index, field) in fields.iter().enumerate() {
        match (one(field, &format!("{path}[{index}]"), report), &mut out) {
            (Some(port), Some(out)) => out.push(PortItem::Range(port)),
            _ => out = None,
        }
    }
    out.map(Ports::Some)
}

fn one(field: &CiliumIcmpField, path: &str, report: &mut Report<'_>) -> Option<PortRange> {
    let v6 = match field.family.as_deref().unwrap_or_default() {
        "" | "IPv4" => false,
        "IPv6" => true,
        other => {
            let reason = format!("\"{}\" is no family", other.escape_debug());
            report.error(&format!("{path}.family"), reason, "write IPv4 or IPv6");
            return None;
        }
    };
    let number = match &field.kind {
        IntOrString::Int(number) => u8::try_from(*number).ok(),
        IntOrString::String(text) => {
            let names = if v6 { V6 } else { V4 };
            let named = names.iter().find(|(name, _)| name == text).map(|(_, number)| *number);
            named.or_else(|| text.parse().ok().filter(|number: &u8| number.to_string() == *text))
        }
    };
    let Some(number) = number else {
        let shown = match &field.kind {
            IntOrString::Int(number) => number.to_string(),
            IntOrString::String(text) => text.escape_debug().to_string(),
        };
        let family = if v6 { "ICMPv6" } else { "ICMP" };
        let reason = format!("\"{shown}\" is no type of {family}");
        report.error(
            &format!("{path}.type"),
            reason,
            "write a number from 0 to 255, or a name as EchoRequest",
        );
        return None;
    };
    let port = icmp_port(v6, number);
    Some(PortRange { protocol: Protocol::Icmp, first: port, last: port })
}
