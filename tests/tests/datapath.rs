//! The datapath alone: the eBPF programs and the loader in real network namespaces, with snapshots made by
//! hand and a transparent echo proxy in the proxy's place.
//!
//! Knows nothing of Kubernetes objects, of HTTP or of the real proxy.

#[path = "datapath/across.rs"]
mod across;
#[path = "datapath/answers.rs"]
mod answers;
#[path = "datapath/attack.rs"]
mod attack;
#[path = "datapath/cases.rs"]
mod cases;
#[path = "datapath/claims.rs"]
mod claims;
#[path = "datapath/crash.rs"]
mod crash;
#[path = "datapath/drift.rs"]
mod drift;
#[path = "datapath/events.rs"]
mod events;
#[path = "datapath/families.rs"]
mod families;
#[path = "datapath/flood.rs"]
mod flood;
#[path = "datapath/flows.rs"]
mod flows;
#[path = "datapath/forge.rs"]
mod forge;
#[path = "datapath/fragments.rs"]
mod fragments;
#[path = "datapath/frames.rs"]
mod frames;
#[path = "datapath/fuzz.rs"]
mod fuzz;
#[path = "datapath/handover.rs"]
mod handover;
#[path = "datapath/host.rs"]
mod host;
#[path = "datapath/icmp.rs"]
mod icmp;
#[path = "datapath/l4.rs"]
mod l4;
#[path = "datapath/l7.rs"]
mod l7;
#[path = "datapath/legs.rs"]
mod legs;
#[path = "datapath/life.rs"]
mod life;
#[path = "datapath/links.rs"]
mod links;
#[path = "datapath/node.rs"]
mod node;
#[path = "datapath/passing.rs"]
mod passing;
#[path = "datapath/peers.rs"]
mod peers;
#[path = "datapath/pinned.rs"]
mod pinned;
#[path = "datapath/queues.rs"]
mod queues;
#[path = "datapath/quotas.rs"]
mod quotas;
#[path = "datapath/reuse.rs"]
mod reuse;
#[path = "datapath/rig.rs"]
mod rig;
#[path = "datapath/rules.rs"]
mod rules;
#[path = "datapath/services.rs"]
mod services;
#[path = "datapath/short.rs"]
mod short;
#[path = "datapath/slots.rs"]
mod slots;
#[path = "datapath/stress.rs"]
mod stress;
#[path = "datapath/strict.rs"]
mod strict;
#[path = "datapath/translation.rs"]
mod translation;
#[path = "datapath/uninstall.rs"]
mod uninstall;
#[path = "datapath/upgrade.rs"]
mod upgrade;
#[path = "datapath/v3.rs"]
mod v3;
#[path = "datapath/whole.rs"]
mod whole;

#[path = "datapath/table.rs"]
mod table;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A process of the crash tests: it dies on the way.
    if let Some(order) = std::env::var_os(crash::ORDER) {
        return crash::child(std::path::Path::new(&order));
    }
    // What the stress test's clients talk to.
    if std::env::var_os(stress::SERVER).is_some() {
        return stress::server();
    }
    let tests = [
        l4::tests(),
        answers::tests(),
        families::tests(),
        flows::tests(),
        icmp::tests(),
        l7::tests(),
        life::tests(),
        attack::tests(),
        quotas::tests(),
        flood::tests(),
        legs::tests(),
        strict::tests(),
        across::tests(),
        handover::tests(),
        queues::tests(),
        host::tests(),
        passing::tests(),
        reuse::tests(),
        links::tests(),
        node::tests(),
        claims::tests(),
        crash::tests(),
        upgrade::tests(),
        uninstall::tests(),
        fragments::tests(),
        services::tests(),
        events::tests(),
        table::tests(),
        short::tests(),
        slots::tests(),
        stress::tests(),
        drift::tests(),
        fuzz::tests(),
    ];
    let tests = tests.into_iter().flatten().collect();
    sluice_tests::harness::main(2, tests)
}
