//! How long 10,000 policies take to compile, and one that changed: from objects that are read already, on one core.
//!
//! Prints the size of what is compiled first, and how much of it a change has cost. Knows nothing of how the compiler
//! works.

#![allow(missing_docs, reason = "the macros of criterion write functions without")]

mod common;

use common::{Size, manifests, objects, services};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sluice_compile::{Compiler, NodeScope, Options, Rollout, compile};
use sluice_crd::Objects;
use std::hint::black_box;
use std::time::Duration;

/// Services, each with a policy.
const SERVICES: usize = 10_000;

/// The shapes of clusters, each with its number of policies.
fn shapes() -> Vec<(&'static str, usize, Objects)> {
    vec![
        ("teams", Size::SMALL.all_policies(), objects(&manifests(&Size::SMALL))),
        ("teams", Size::LARGE.all_policies(), objects(&manifests(&Size::LARGE))),
        ("services", SERVICES, objects(&services::manifests(SERVICES))),
    ]
}

fn nodes() -> [(&'static str, NodeScope); 2] {
    [("one node", NodeScope::Named("node-7".into())), ("all nodes", NodeScope::All)]
}

fn options(node: &NodeScope) -> Options {
    Options { node: node.clone(), rollout: Rollout::AsIfEnforced, generation: 1 }
}

/// Everything, by a compiler that knows nothing yet.
fn scratch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    for (shape, policies, cluster) in shapes() {
        for (name, node) in nodes() {
            let options = options(&node);
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

/// The same with one policy more or less, by a compiler that has seen the rest: what the cluster has come to, and the
/// snapshot of each of some nodes.
fn change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("change of one policy");
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    for (shape, policies, cluster) in shapes() {
        let mut without = cluster.clone();
        without.policies.pop();
        let mut compiler = Compiler::new();
        let mut turn = 0;
        let mut next = |compiler: &mut Compiler| {
            turn += 1;
            compiler.update(if turn % 2 == 0 { &cluster } else { &without }, Rollout::AsIfEnforced)
        };
        for (name, node) in nodes() {
            for _ in 0..2 {
                next(&mut compiler);
                compiler.snapshot(&node, 1);
            }
            println!("{shape}: {policies} policies, {name}: {:?}", compiler.stats());
            let id = |what: &str| BenchmarkId::new(format!("{shape}, {name}, {what}"), policies);
            group.bench_function(id("update and snapshot"), |bencher| {
                bencher.iter(|| (next(&mut compiler), compiler.snapshot(&node, 1)));
            });
            group.bench_function(id("snapshot"), |bencher| bencher.iter(|| compiler.snapshot(&node, 1)));
        }
    }
    group.finish();
}

criterion_group!(benches, scratch, change);
criterion_main!(benches);
