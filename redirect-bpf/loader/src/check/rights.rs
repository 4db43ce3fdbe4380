//! What this process may do: capabilities, and descriptors for connections.
//!
//! Knows nothing of what they are for but their names. Called by `check`.

use super::{Finding, line};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// What bpf(2), netlink and namespaces want. `CAP_SYS_ADMIN` stands for `CAP_BPF` and `CAP_PERFMON` in the kernel.
const WANTED: [(CapabilitySet, &str); 4] = [
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    (CapabilitySet::BPF, "CAP_BPF"),
    (CapabilitySet::PERFMON, "CAP_PERFMON"),
];
/// Below this a busy node's proxy refuses connections: each has two descriptors.
const DESCRIPTORS: u64 = 65_536;
const CHECK: &str = "rights.capabilities";
const REMEDY: &str = "run it as the node's root: `sudo sluice-proxy check`; in a pod give the container \
    `securityContext.capabilities.add: [SYS_ADMIN, NET_ADMIN, BPF, PERFMON]`";

/// What this thread, and those that it starts, may do.
#[derive(Clone, Debug)]
pub(super) struct Rights {
    missing: Vec<&'static str>,
}

impl Rights {
    /// Asks the kernel.
    pub(super) fn look(findings: &mut Vec<Finding>) -> Self {
        // What cannot be asked is not had.
        let had = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        let all = had.contains(CapabilitySet::SYS_ADMIN);
        let stands = |wanted: CapabilitySet| {
            had.contains(wanted) || (all && wanted.intersects(CapabilitySet::BPF | CapabilitySet::PERFMON))
        };
        let missing: Vec<_> =
            WANTED.into_iter().filter(|(wanted, _)| !stands(*wanted)).map(|(_, name)| name).collect();
        let none = WANTED.iter().all(|(wanted, _)| !had.contains(*wanted));
        findings.push(finding(&missing, none));
        findings.push(descriptors());
        Self { missing }
    }

    /// Whether everything can be tried.
    pub(super) fn may(&self) -> bool {
        self.missing.is_empty()
    }

    /// Whether other namespaces can be looked into.
    pub(super) fn may_enter(&self) -> bool {
        !self.missing.contains(&"CAP_SYS_ADMIN")
    }

    /// That something could not be tried.
    pub(super) fn lacking(&self, check: &str, what: &str) -> Finding {
        let list = self.missing.join(", ");
        Finding::unknown(check, format!("cannot {what} without {list}"), "as for rights.capabilities")
    }
}

/// Where nothing is had, somebody forgot to be root, and nothing is known; where some are, somebody chose them for the
/// agent, and it cannot run with them.
fn finding(missing: &[&str], none: bool) -> Finding {
    let list = missing.join(", ");
    if none {
        return Finding::unknown(CHECK, format!("none of {list}: most could not be looked at"), REMEDY);
    }
    if !missing.is_empty() {
        return Finding::fail(CHECK, format!("{list} is missing"), REMEDY);
    }
    // `0 0 4294967295` is the first namespace's, and of no other.
    let first = line("/proc/self/uid_map");
    if first.is_some_and(|map| map.split_whitespace().ne(["0", "0", "4294967295"])) {
        let found = "capabilities of a user namespace, which count for nothing with bpf(2)";
        return Finding::fail(CHECK, found, "run it as the node's root; in a pod `hostUsers: true`");
    }
    Finding::ok(CHECK, "all that are needed")
}

fn descriptors() -> Finding {
    match getrlimit(Resource::Nofile).maximum {
        Some(limit) if limit < DESCRIPTORS => Finding::warn(
            "rights.descriptors",
            format!("at most {limit} open files: some {} connections through the proxy at once", limit / 2),
            "raise the hard limit: `LimitNOFILE=1048576` in the unit, or the container runtime's `nofile`",
        ),
        Some(limit) => Finding::ok("rights.descriptors", format!("up to {limit} open files")),
        None => Finding::ok("rights.descriptors", "as many open files as there is memory for"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn some_are_a_choice_and_none_are_forgotten() {
        assert_eq!(finding(&["CAP_BPF"], true).status, Status::Unknown);
        let chosen = finding(&["CAP_NET_ADMIN"], false);
        assert_eq!((chosen.status, chosen.found.as_str()), (Status::Fail, "CAP_NET_ADMIN is missing"));
    }
}
