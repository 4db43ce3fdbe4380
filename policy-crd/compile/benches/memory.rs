//! How much memory a compiled rule takes: what is held on to after compiling, counted at the allocator.
//!
//! No benchmark of time, for counting costs some. Knows nothing of how the compiler works.

#![allow(clippy::print_stdout, reason = "a benchmark's result")]

mod common;

use common::{Size, manifests, objects, services};
use sluice_compile::{NodeScope, Options, Rollout, compile};
use sluice_policy::Snapshot;

fn rules(snapshot: &Snapshot) -> usize {
    let sides = snapshot.profiles.iter().flat_map(|p| [&p.ingress, &p.egress]);
    sides.map(|side| side.rules().count()).sum()
}

/// Services, each with a policy.
const SERVICES: usize = 10_000;

fn main() {
    let shapes = [
        ("teams", Size::SMALL.all_policies(), manifests(&Size::SMALL)),
        ("teams", Size::LARGE.all_policies(), manifests(&Size::LARGE)),
        ("services", SERVICES, services::manifests(SERVICES)),
    ];
    for (shape, policies, manifests) in shapes {
        let cluster = objects(&manifests);
        for (name, node) in [("one node", NodeScope::Named("node-7".into())), ("all nodes", NodeScope::All)] {
            let options = Options { node, rollout: Rollout::AsIfEnforced, generation: 1 };
            let mut compiled = None;
            let all = allocation_counter::measure(|| compiled = Some(compile(&cluster, &options)));
            let Some(compiled) = compiled else { return };
            let rules = rules(&compiled.snapshot);
            let profiles = compiled.snapshot.profiles.len();
            let dropped = {
                let mut snapshot = compiled.snapshot;
                allocation_counter::measure(|| snapshot.profiles = sluice_policy::Profiles::default())
            };
            let held = dropped.bytes_current.unsigned_abs();
            println!(
                "{shape}: {policies} policies, {name}: {rules} rules in {profiles} profiles, {} KiB, {} bytes a rule; \
                 everything that compiling gave {} KiB, at most {} KiB while compiling",
                held >> 10,
                held / rules.max(1) as u64,
                all.bytes_current.unsigned_abs() >> 10,
                all.bytes_max >> 10,
            );
        }
    }
}
