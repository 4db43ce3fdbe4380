//! What a rule takes in memory, with its index and without. See docs/benchmarks.md.
#![allow(clippy::print_stdout, reason = "a benchmark's result")]

#[path = "../tests/common/many.rs"]
mod many;

use allocation_counter::measure;
use sluice_policy::{Decision, Facts, Profile, Profiles, Protocol, Side};

fn main() {
    for rules in [1_000_usize, 10_000] {
        let bytes = |info: allocation_counter::AllocationInfo| {
            usize::try_from(info.bytes_current.max(0)).unwrap_or_default() / rules
        };
        let mut profiles = Profiles::default();
        let held = measure(|| {
            profiles = vec![Profile { ingress: many::side(rules), egress: Side::default() }].into();
        });
        let index = measure(|| profiles.prepare());
        drop(profiles);
        let snapshot = many::snapshot(rules);
        let questions = many::questions(rules);
        let asked = measure(|| {
            for question in &questions {
                let request = question.request();
                let facts = Facts::Request(&request);
                let verdict = snapshot.judge(many::CLIENT, many::SERVER, Protocol::Tcp, many::PORT, facts);
                assert_eq!(verdict.decision() == Decision::Allow, question.allowed, "{question:?}");
            }
        });
        println!(
            "{rules} rules: {} bytes a rule, {} more for the index, {} more once asked",
            bytes(held),
            bytes(index),
            bytes(asked)
        );
    }
}
