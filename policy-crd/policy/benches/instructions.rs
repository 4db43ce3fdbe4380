//! How many instructions a verdict takes: the same on a busy machine as on an idle one. See docs/benchmarks.md.
#![allow(missing_docs, reason = "gungraun's macros")]

#[path = "../tests/common/many.rs"]
mod many;

use gungraun::{library_benchmark, library_benchmark_group, main};
use many::{CLIENT, PORT, Question, SERVER, questions, snapshot};
use sluice_policy::{Facts, Protocol, Snapshot, Verdict};
use std::hint::black_box;

/// A snapshot that has judged the question before: its automata know the path.
fn warm(rules: usize, name: &str) -> (Snapshot, Question) {
    let snapshot = snapshot(rules);
    let found = questions(rules).into_iter().find(|question| question.name == name);
    let Some(question) = found else { panic!("no question is called {name}") };
    let _ = judge(&snapshot, &question);
    (snapshot, question)
}

fn judge(snapshot: &Snapshot, question: &Question) -> Verdict {
    let request = question.request();
    snapshot.judge(CLIENT, SERVER, Protocol::Tcp, PORT, Facts::Request(&request))
}

#[library_benchmark(setup = warm)]
#[bench::exact_10(10, "exact")]
#[bench::exact_1000(1_000, "exact")]
#[bench::exact_10000(10_000, "exact")]
#[bench::prefix_1000(1_000, "prefix")]
#[bench::regex_1000(1_000, "regular expression")]
#[bench::grpc_1000(1_000, "gRPC")]
#[bench::default_deny_1000(1_000, "default deny")]
#[bench::deny_1000(1_000, "deny rule")]
fn verdict((snapshot, question): (Snapshot, Question)) -> (Verdict, Snapshot, Question) {
    let verdict = judge(black_box(&snapshot), black_box(&question));
    // What is given back is dropped outside of what is counted.
    (verdict, snapshot, question)
}

library_benchmark_group!(name = verdicts, benchmarks = verdict);
main!(library_benchmark_groups = verdicts);
