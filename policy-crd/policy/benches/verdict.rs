//! How long a verdict takes, by the number of rules and by what the rule is found by. See docs/benchmarks.md.
#![allow(missing_docs, reason = "criterion's macros")]

#[path = "../tests/common/many.rs"]
mod many;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use many::{CLIENT, PORT, SERVER, questions, side, snapshot};
use sluice_policy::{Decision, Facts, IndexedProfile, Profile, Profiles, Protocol, Side};
use std::hint::black_box;

const RULES: [usize; 3] = [10, 1_000, 10_000];

/// From the parts of a request to its verdict on both ends.
fn verdict(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verdict");
    for rules in RULES {
        let snapshot = snapshot(rules);
        for question in questions(rules) {
            let judge = || {
                let request = black_box(&question).request();
                snapshot.judge(CLIENT, SERVER, Protocol::Tcp, PORT, Facts::Request(&request))
            };
            assert_eq!(
                judge().decision() == Decision::Allow,
                question.allowed,
                "{rules} rules, {question:?}"
            );
            group.bench_function(BenchmarkId::new(question.name, rules), |bencher| bencher.iter(judge));
        }
    }
    group.finish();
}

/// What a new snapshot costs a node before it is in force.
fn prepare(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("prepare");
    for rules in RULES {
        let profile = Profile { ingress: side(rules), egress: Side::default() };
        group.bench_function(BenchmarkId::new("index", rules), |bencher| {
            bencher.iter_batched(
                || [IndexedProfile::from(profile.clone())].map(std::sync::Arc::new).into_iter().collect(),
                |profiles: Profiles| {
                    profiles.prepare();
                    profiles
                },
                criterion::BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, verdict, prepare);
criterion_main!(benches);
