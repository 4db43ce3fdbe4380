//! Pods' devices: whether the hooks can see what pods say, and who else judges there.
//!
//! Reads only. Called by `check`.

use super::rights::Rights;
use super::{Finding, Status};
use crate::clsact;
use crate::discover;
use crate::helper;
use crate::netlink::{Link, Netlink};
use crate::netns;
use crate::tc::Side;
use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};
use sluice_bpf_abi::program;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::AsFd;

/// Devices looked at; a kubelet runs some hundred pods.
const MAX_DEVICES: usize = 4_096;
/// Programs of Cilium's datapath. It brings packets to pods by `bpf_redirect_peer`, past hook B (Linux 5.10).
const CILIUM: &str = "cil_";
const ROOT: &str = "run it as the node's root: `sudo sluice-proxy check`";

/// Every finding.
pub(super) fn look(name: &str, rights: &Rights) -> Vec<Finding> {
    let links = match Netlink::open().and_then(|netlink| netlink.links()) {
        Ok(links) => links,
        Err(error) => return vec![Finding::unknown("pods.devices", error.to_string(), ROOT)],
    };
    let mut findings = vec![agent(name, &links)];
    findings.push(match rights.may_enter() {
        true => kinds(&links),
        false => rights.lacking("pods.devices", "look into the pods' namespaces"),
    });
    findings.push(match rights.may() {
        true => programs(&links),
        false => rights.lacking("pods.programs", "list the programs on devices"),
    });
    findings
}

/// Whether an agent runs here already.
fn agent(name: &str, links: &[Link]) -> Finding {
    const CHECK: &str = "node.agent";
    let (outer, _) = helper::names(name);
    match links.iter().find(|link| link.name == outer) {
        None => Finding::ok(CHECK, "none runs on this node"),
        Some(link) if link.alias == helper::ALIAS && link.kind == "veth" => Finding::ok(
            CHECK,
            format!("one runs here, or its proxy drains: {outer} is there. `run` takes over from it"),
        ),
        Some(_) => Finding::fail(
            CHECK,
            format!("a device of somebody else's is named {outer}"),
            "give check and run another --device",
        ),
    }
}

/// A device in a pod that no veth of the node is the other end of has no place for a hook.
fn kinds(links: &[Link]) -> Finding {
    const CHECK: &str = "pods.devices";
    let here = links.iter().filter(|link| link.is_pods()).count();
    let mut unseen: BTreeMap<String, usize> = BTreeMap::new();
    let looked = netns::current().and_then(|node| {
        for pod in discover::namespaces(node.as_fd())? {
            // One that goes away while we look is nobody's.
            let Ok(inside) = netns::within(pod.as_fd(), || Netlink::open()?.links()) else { continue };
            for link in inside.iter().filter(|link| link.up && hookless(link)) {
                *unseen
                    .entry(if link.kind.is_empty() { "physical" } else { &link.kind }.to_owned())
                    .or_default() += 1;
            }
        }
        Ok(())
    });
    if let Err(error) = looked {
        return Finding::unknown(CHECK, format!("cannot look into /run/netns: {error}"), ROOT);
    }
    if unseen.is_empty() {
        return Finding::ok(CHECK, format!("{here} veths to pods, each with a place for both hooks"));
    }
    let list: Vec<_> = unseen.iter().map(|(kind, count)| format!("{count} of {kind}")).collect();
    Finding::warn(
        CHECK,
        format!(
            "pods with devices that are no veths: {}. Nothing is enforced there, and the agent reports them as missing",
            list.join(", ")
        ),
        "let the CNI attach pods by veths (Cilium: --set bpf.datapathMode=veth); leave namespaces with others out of the \
         dataplane (sluice.dev/dataplane: disabled)",
    )
}

/// What a pod is given instead of a veth.
fn hookless(link: &Link) -> bool {
    link.name != "lo"
        && matches!(link.kind.as_str(), "" | "ipvlan" | "ipvtap" | "macvlan" | "macvtap" | "netkit")
}

/// Somebody else's programs, by name: how many, and a device for an example.
type Others = BTreeMap<String, (usize, String)>;

fn programs(links: &[Link]) -> Finding {
    let (mut pods, mut elsewhere) = (Others::new(), Others::new());
    for link in links.iter().filter(|link| link.name != "lo").take(MAX_DEVICES) {
        let others = if link.is_pods() { &mut pods } else { &mut elsewhere };
        // A device that goes away while we look has nobody's any more.
        for name in foreign(link).unwrap_or_default() {
            others.entry(name).or_insert((0, link.name.clone())).0 += 1;
        }
    }
    judge(&pods, &elsewhere)
}

fn judge(pods: &Others, elsewhere: &Others) -> Finding {
    const CHECK: &str = "pods.programs";
    let is_cilium = |name: &&String| name.rsplit(' ').next().is_some_and(|name| name.starts_with(CILIUM));
    if let Some(name) = pods.keys().chain(elsewhere.keys()).find(is_cilium) {
        return Finding::fail(
            CHECK,
            format!("Cilium's datapath is here ({name}): it brings packets to pods past our hook"),
            "run Cilium in its chained or generic-veth mode without BPF host routing \
             (--set bpf.hostLegacyRouting=true), or use its own policies on this node",
        );
    }
    if pods.is_empty() {
        return Finding::ok(CHECK, "no other program judges on a pod's veth");
    }
    let list: Vec<_> =
        pods.iter().map(|(name, (count, device))| format!("{name} on {count} (as {device})")).collect();
    let first = pods.keys().any(|name| name.starts_with("xdp"));
    let after = if first { "an XDP program sees packets before ours" } else { "ours are put before them" };
    Finding::bad(
        CHECK,
        Status::Warn,
        format!("other programs on pods' veths: {}; {after}", list.join(", ")),
        "find out whose they are (`bpftool net`); one that redirects packets brings them past our hooks",
    )
}

/// The programs on a device that are not ours: `kind name`.
fn foreign(link: &Link) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for (side, label) in [(TcAttachType::Ingress, "tcx"), (TcAttachType::Egress, "tcx")] {
        // A kernel without tcx has none.
        let there = SchedClassifier::query_tcx(&link.name, side).map(|(_, there)| there).unwrap_or_default();
        let there = there.iter().map(|program| program.name_as_str().unwrap_or("?").to_owned());
        names.extend(there.filter(|name| !is_ours(name)).map(|name| format!("{label} {name}")));
    }
    let netlink = Netlink::open()?;
    for side in [Side::Ingress, Side::Egress] {
        let filters = netlink.filters(link.index, side)?;
        let others = filters.iter().filter(|filter| !clsact::is_ours(filter) && filter.program != 0);
        names.extend(others.map(|filter| {
            format!("tc {}", by_number(filter.program).unwrap_or_else(|| filter.name.clone()))
        }));
    }
    if let Some(program) = link.xdp {
        names.push(format!("xdp {}", by_number(program).unwrap_or_else(|| program.to_string())));
    }
    Ok(names)
}

fn is_ours(name: &str) -> bool {
    program::ALL.contains(&name)
}

/// The name of a program.
fn by_number(number: u32) -> Option<String> {
    let named: HashMap<u32, String> = loaded_programs()
        .filter_map(Result::ok)
        .map(|program| (program.id(), program.name_as_str().unwrap_or("?").to_owned()))
        .collect();
    named.get(&number).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_of_another_with_the_helpers_name_is_refused() {
        let named = |kind: &str, alias: &str| Link {
            name: "sluiceo".to_owned(),
            kind: kind.to_owned(),
            alias: alias.to_owned(),
            ..Link::default()
        };
        assert_eq!(agent("sluice", &[named("veth", helper::ALIAS)]).status, Status::Ok);
        assert_eq!(agent("sluice", &[named("veth", "")]).status, Status::Fail);
        assert_eq!(agent("sluice", &[named("bridge", helper::ALIAS)]).status, Status::Fail);
        assert_eq!(agent("other", &[named("veth", "")]).status, Status::Ok);
    }

    #[test]
    fn ciliums_way_past_the_hook_is_refused_wherever_it_begins() {
        let one = |name: &str| Others::from([(name.to_owned(), (1, "veth7".to_owned()))]);
        let none = Others::new();
        assert_eq!(judge(&none, &none).status, Status::Ok);
        assert_eq!(judge(&one("tcx cil_from_container"), &none).status, Status::Fail);
        assert_eq!(judge(&none, &one("tc cil_from_netdev")).status, Status::Fail);
        // On other devices others' programs are their own business.
        assert_eq!(judge(&none, &one("xdp loadbalancer")).status, Status::Ok);
        let other = judge(&one("tcx shaper"), &none);
        assert!(
            other.status == Status::Warn && other.found.contains("tcx shaper on 1 (as veth7)"),
            "{other:?}"
        );
        assert!(judge(&one("xdp shaper"), &none).found.contains("before ours"));
    }

    #[test]
    fn kinds_without_a_place_for_a_hook_are_known() {
        let link = |kind: &str, name: &str| Link { kind: kind.into(), name: name.into(), ..Link::default() };
        assert!(
            hookless(&link("ipvlan", "eth0"))
                && hookless(&link("", "eth0"))
                && hookless(&link("netkit", "eth0"))
        );
        assert!(
            !hookless(&link("veth", "eth0")) && !hookless(&link("", "lo")) && !hookless(&link("sit", "sit0"))
        );
    }
}
