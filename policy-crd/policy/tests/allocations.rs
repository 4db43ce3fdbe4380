//! That an allowed request allocates nothing, from its bytes to its verdict, whatever its rule is found by.

#[path = "common/many.rs"]
mod many;

use many::{CLIENT, PORT, SERVER, questions, snapshot};
use sluice_policy::{Decision, Facts, Protocol, Snapshot};

/// Allocations of one verdict, and whether it allows. The first may build the states of an automaton; it is not
/// counted.
fn allocations(snapshot: &Snapshot, question: &many::Question) -> (u64, Decision) {
    let judge = || {
        let request = question.request();
        let verdict = snapshot.judge(CLIENT, SERVER, Protocol::Tcp, PORT, Facts::Request(&request));
        verdict.decision()
    };
    let mut decision = judge();
    let counted = allocation_counter::measure(|| decision = judge());
    (counted.count_total, decision)
}

#[test]
fn an_allowed_request_allocates_nothing() {
    for rules in [10, 1000] {
        let snapshot = snapshot(rules);
        let questions = questions(rules);
        for question in questions.iter().filter(|question| question.allowed) {
            let (count, decision) = allocations(&snapshot, question);
            assert_eq!(decision, Decision::Allow, "{rules} rules, {question:?}");
            assert_eq!(count, 0, "{rules} rules, {question:?}");
        }
        for question in questions.iter().filter(|question| !question.allowed) {
            assert_eq!(allocations(&snapshot, question).1, Decision::Deny, "{rules} rules, {question:?}");
        }
    }
}
