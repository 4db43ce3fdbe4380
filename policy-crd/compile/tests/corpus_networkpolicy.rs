//! Kubernetes' own expectations of `NetworkPolicy`: every cell of the public corpus through compiler and engine.
//!
//! The corpus lies beside the project, or where `SLUICE_CORPUS` says. Where it is absent the test is shown as
//! ignored; with `SLUICE_REQUIRE_ALL=1` it fails.

#[path = "common/corpus.rs"]
mod corpus;

use corpus::{Tally, absent, folder};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use sluice_compile::Rollout;
use sluice_compile::query::{Cluster, Port, Query, Said};
use sluice_crd::Severity;
use sluice_policy::{Decision, Protocol};
use std::process::ExitCode;
use std::sync::Arc;

/// Where the cases are, in the corpus.
const SET: &str = "networkpolicy";

static CELLS: Tally = Tally::new("networkpolicy", "cells");

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let path = folder(SET).join("cases.json");
    let trials = match std::fs::read_to_string(&path) {
        Ok(text) => trials(&text),
        Err(error) => vec![absent(SET, &path, &error)],
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        CELLS.print();
    }
    conclusion.exit_code()
}

fn trials(text: &str) -> Vec<Trial> {
    let cases: Vec<Value> = serde_json::from_str(text).expect("the corpus is JSON");
    assert!(!cases.is_empty(), "the corpus has cases");
    let trial = |case: Value| {
        let name = format!("{:03} {}", case["n"], case["description"].as_str().unwrap_or_default());
        let case = Arc::new(case);
        Trial::test(name, move || {
            let steps = case["steps"].as_array().ok_or("the case has steps")?;
            if steps.is_empty() {
                return Err("the case has no steps".into());
            }
            steps.iter().enumerate().try_for_each(|(number, step)| judge(number, step))
        })
    };
    cases.into_iter().map(trial).collect()
}

fn judge(number: usize, step: &Value) -> Result<(), Failed> {
    let loaded = sluice_crd::load_value(&manifests(step)?);
    let cluster = Cluster::new(&loaded.objects, Rollout::AsIfEnforced);
    let mut problems = loaded.problems.iter().chain(&cluster.problems);
    if let Some(problem) = problems.find(|problem| problem.severity == Severity::Error) {
        return Err(format!("step {number}: {problem}").into());
    }
    let mut wrong = Vec::new();
    let mut judged = 0;
    for (service, rows) in step["table"].as_object().ok_or("a step has a table")? {
        let (protocol, port) = service.split_once('/').ok_or("a table is PROTOCOL/PORT")?;
        let protocol = Protocol::parse(protocol).ok_or("the protocol is known")?;
        let port: u16 = port.parse()?;
        for (from, row) in rows.as_object().ok_or("a table has rows")? {
            let cells = row.as_str().ok_or("a row is text")?.split_whitespace();
            for (to, cell) in step["to_order"].as_array().ok_or("there is an order")?.iter().zip(cells) {
                let to = to.as_str().ok_or("a pod is text")?;
                let query = Query {
                    from: from.clone(),
                    to: to.into(),
                    protocol,
                    port: Port::Number(port),
                    said: Said::Nothing,
                };
                judged += compare(&cluster, &query, cell, &mut wrong)?;
            }
        }
    }
    if judged == 0 {
        return Err(format!("step {number}: no cell was judged").into());
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let shown = wrong.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
    Err(format!("step {number}: {} of {judged} cells differ:\n{shown}", wrong.len()).into())
}

/// Compares a cell of ingress, egress and both; returns how many of its characters say anything.
fn compare(cluster: &Cluster, query: &Query, cell: &str, wrong: &mut Vec<String>) -> Result<usize, Failed> {
    let verdict = cluster.ask(query)?;
    let mark = |decision| if decision == Decision::Allow { '.' } else { 'X' };
    let got = [mark(verdict.ingress.decision), mark(verdict.egress.decision), mark(verdict.decision())];
    let judged = cell.chars().zip(got).filter(|(expected, _)| matches!(expected, '.' | 'X'));
    let mut count = 0;
    let mut differs = false;
    for (expected, got) in judged {
        count += 1;
        differs |= expected != got;
    }
    match (count, differs) {
        (0, _) => CELLS.skipped(1, unjudged(cell)),
        (_, false) => CELLS.passed(1),
        (_, true) => CELLS.failed(1),
    }
    if differs {
        let got: String = got.iter().collect();
        wrong.push(format!(
            "{} -> {} {}/{:?}: expected {cell}, got {got} (ingress {:?}, egress {:?})",
            query.from, query.to, query.protocol, query.port, verdict.ingress.reason, verdict.egress.reason
        ));
    }
    Ok(count)
}

/// Why a cell says nothing.
fn unjudged(cell: &str) -> &'static str {
    match cell.chars().next() {
        Some('#') => "a pod reaching itself is not judged",
        Some('P') => "the pod has no port of that name",
        Some('N') => "nothing serves that port and protocol",
        _ => "not probed",
    }
}

/// The step as Kubernetes objects.
fn manifests(step: &Value) -> Result<Vec<Value>, Failed> {
    let namespaces = step["namespaces"].as_object().ok_or("a step has namespaces")?.iter().map(|(name, labels)| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    });
    let mut out: Vec<Value> = namespaces.collect();
    for pod in step["pods"].as_array().ok_or("a step has pods")? {
        let (namespace, name) =
            pod["key"].as_str().and_then(|key| key.split_once('/')).ok_or("a pod has a key")?;
        out.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": pod["labels"]},
            "spec": {"nodeName": "node", "containers": [{"name": "c", "ports": ports()}]},
            "status": {"podIP": pod["ip"], "phase": "Running"},
        }));
    }
    for policy in step["policies"].as_array().into_iter().flatten() {
        let mut policy = policy.clone();
        policy["apiVersion"] = "networking.k8s.io/v1".into();
        policy["kind"] = "NetworkPolicy".into();
        out.push(policy);
    }
    Ok(out)
}

/// Ports 80 and 81 on every protocol, named as the corpus says.
fn ports() -> Vec<Value> {
    let each = |port: u16| {
        ["TCP", "UDP", "SCTP"].into_iter().map(move |protocol| {
            let name = format!("serve-{port}-{}", protocol.to_lowercase());
            json!({"name": name, "containerPort": port, "protocol": protocol})
        })
    };
    [80, 81].into_iter().flat_map(each).collect()
}
