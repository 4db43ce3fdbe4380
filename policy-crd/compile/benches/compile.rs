//! How long 10,000 policies take to compile: from objects that are read already, on one core.
//!
//! Prints the size of what is compiled first. Knows nothing of how the compiler works.

#![allow(missing_docs, reason = "the macros of criterion write functions without")]

mod common;

use common::{Size, manifests, objects, services};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sluice_compile::{NodeScope, Options, Rollout, compile};
use std::hint::black_box;
use std::time::Duration;

/// Services, each with a policy.
const SERVICES: usize = 10_000;

fn options(node: NodeScope) -> Options {
    Options { node, rollout: Rollout::AsIfEnforced, generation: 1 }
}

fn scratch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10).measurement_time(Duration::from_secs(20));
    let shapes = [
        ("teams", Size::SMALL.all_policies(), manifests(&Size::SMALL)),
        ("teams", Size::LARGE.all_policies(), manifests(&Size::LARGE)),
        ("services", SERVICES, services::manifests(SERVICES)),
    ];
    for (shape, policies, manifests) in shapes {
        let cluster = objects(&manifests);
        for (name, node) in [("one node", NodeScope::Named("node-7".into())), ("all nodes", NodeScope::All)] {
            let options = options(node);
            let snapshot = compile(&cluster, &options).snapshot;
            println!(
                "{shape}: {policies} policies, {} pods, {name}: {} policies in force, {} classes, {} endpoints, {} profiles",
                cluster.pods.len(),
                snapshot.policies.len(),
                snapshot.classes.len(),
                snapshot.endpoints.len(),
                snapshot.profiles.len()
            );
            group.bench_function(BenchmarkId::new(format!("{shape}, {name}"), policies), |bencher| {
                bencher.iter(|| compile(black_box(&cluster), black_box(&options)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, scratch);
criterion_main!(benches);
