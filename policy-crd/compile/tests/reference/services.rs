//! What the kernel does with what a pod sends to a Service.
//!
//! Sources: DESIGN §5.15 ("traffic to a VIP is judged by its backends: all allowed → pass; mixed, with L7 or where the
//! kernel can → we choose among the allowed ones, honouring affinity and internalTrafficPolicy; else deny"); KEP-1672
//! for who takes traffic; KEP-2086 for `internalTrafficPolicy`.

use super::cluster::Cluster;
use super::kernel::{Row, row};
use super::selectors::{items, text};
use super::verdict::{Asked, Direction, View};
use serde_json::Value;
use std::net::IpAddr;

/// The addresses and ports behind a Service's port, for clients of a node.
pub(crate) fn backends(objects: &[Value], service: &Value, asked: &Asked, node: &str) -> Vec<(IpAddr, u16)> {
    let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
    let mut found = Vec::new();
    let wanted = items(&service["spec"]["ports"])
        .find(|port| port["port"] == asked.port && protocol(port) == asked.protocol);
    let Some(wanted) = wanted else { return found };
    let local = service["spec"]["internalTrafficPolicy"] == "Local";
    let own = of_kind("EndpointSlice").filter(|slice| {
        slice["metadata"]["namespace"] == service["metadata"]["namespace"]
            && slice["metadata"]["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"]
    });
    let slices: Vec<&Value> = own.collect();
    // The ready ones; only if there is none at all, those that serve while they terminate.
    for ready in [true, false] {
        for slice in &slices {
            let same = |port: &&Value| port["name"] == wanted["name"] && protocol(port) == asked.protocol;
            for port in items(&slice["ports"]).filter(same) {
                for endpoint in items(&slice["endpoints"]) {
                    let conditions = &endpoint["conditions"];
                    let is_ready = conditions["ready"].as_bool().unwrap_or(true);
                    let ends =
                        conditions["serving"].as_bool().unwrap_or(true) && conditions["terminating"] == true;
                    let counts = if ready { is_ready } else { !is_ready && ends };
                    if counts && (!local || text(&endpoint["nodeName"]) == node) {
                        let number = port["port"].as_u64().unwrap_or_default();
                        for address in items(&endpoint["addresses"]) {
                            let address = text(address).parse().ok();
                            found.extend(address.zip(u16::try_from(number).ok()));
                        }
                    }
                }
            }
        }
        if !found.is_empty() {
            break;
        }
    }
    found
}

/// The row of what a pod sends there. `None`: there is nobody to ask about.
pub(crate) fn vip_row(cluster: &Cluster, backends: &[(IpAddr, u16)], asked: &Asked) -> Option<Row> {
    let mut rows = Vec::new();
    for (address, port) in backends {
        let one = Asked { to: *address, port: *port, ..asked.clone() };
        rows.push(row(&View::of(cluster, &one, Direction::Egress)?));
    }
    if rows.is_empty() {
        return None;
    }
    if rows.iter().all(|row| matches!(row, Row::Allow { .. })) {
        return Some(Row::Allow { audit: rows.contains(&Row::Allow { audit: true }) });
    }
    if rows.iter().all(|row| *row == Row::Deny) || asked.protocol != "TCP" {
        return Some(Row::Deny);
    }
    let strict = |row: &Row| matches!(row, Row::Deny | Row::ToProxy { fail_open: false });
    Some(Row::ToProxy { fail_open: !rows.iter().any(strict) })
}
