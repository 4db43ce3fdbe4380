//! How full the maps of a node are, and what is in them.
//!
//! Counts what the loader itself has written, and what it found when it walked. Knows no verdicts. Filled by
//! `generation` and `node`, read by the agent.

use sluice_bpf_abi::map;

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Its name.
    pub map: &'static str,
    /// Entries in force.
    pub used: usize,
    /// Entries that there is room for.
    pub max: u32,
}

/// What the entries of a generation's map are, and what makes fewer of them.
pub(crate) fn meaning(name: &str) -> (&'static str, &'static str) {
    match name {
        map::ROWS => ("rows", "Fewer distinct ports, peers or CIDRs in policies make fewer"),
        map::CLASSES => (
            "address prefixes",
            "Fewer CIDRs in policies make fewer, and fewer pods that policies tell apart",
        ),
        map::SERVICES => {
            ("ports of Services", "Fewer Services, or fewer ports and addresses of them, make fewer")
        }
        map::ENDPOINTS => (
            "endpoints and bridge ports",
            "Run fewer pods on this node, or have fewer other devices on its bridges",
        ),
        _ => (
            "addresses of nodes and endpoints, and devices",
            "Run fewer pods on this node, or have fewer nodes and devices with addresses of their own",
        ),
    }
}
