//! Gateway API's conformance tests of HTTP matching, through compiler and engine: each match of its routes becomes a
//! rule, and a request must match exactly those that upstream's answer to it presupposes.
//!
//! A gateway picks one backend of those that match, by precedence; a policy allows if anything matches. So every
//! match is a policy of its own, on a pod of its own: which of them match is asked of the engine, which of these wins
//! is reckoned here as the Gateway API says, and the winner's backend must be the one that upstream recorded. A pod
//! with all the rules must allow what upstream answers and deny what it does not (404). The corpus lies beside the
//! project, or where `SLUICE_CORPUS` says; where it is absent the test is shown as ignored.

mod common;
#[path = "common/routes.rs"]
mod routes;

use common::corpus::{OnPurpose, Tally, absent, folder};
use common::load;
use libtest_mimic::{Arguments, Failed, Trial};
use routes::{Match, Request, matches};
use serde_json::{Value, json};
use sluice_compile::query::{Cluster, Port, Query, Said};
use sluice_crd::Severity;
use sluice_policy::{Decision, Protocol, Verdict};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

const SET: &str = "http-matching";
/// What is judged otherwise, with the reason of each.
const ON_PURPOSE: &str = include_str!("corpus_http_matching.txt");

static TALLY: Tally = Tally::new(SET, "requests");

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let root = folder(SET);
    let trials = match std::fs::read_to_string(root.join("expected.json")) {
        Ok(text) => trials(&root, &text),
        Err(error) => vec![absent(SET, &root, &error)],
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        TALLY.print();
    }
    conclusion.exit_code()
}

fn trials(root: &Path, text: &str) -> Vec<Trial> {
    let cases: Vec<Value> = serde_json::from_str(text).expect("the corpus is JSON");
    assert!(!cases.is_empty(), "the corpus has cases");
    let on_purpose = Arc::new(OnPurpose::read(ON_PURPOSE));
    let keys: Vec<String> = cases.iter().map(key).collect();
    let unused = on_purpose.unused(&keys);
    let mut trials = vec![Trial::test("everything listed is in the corpus", move || {
        if unused.is_empty() { Ok(()) } else { Err(format!("in no case: {unused:?}").into()) }
    })];
    for cases in cases.chunk_by(|a, b| a["test"] == b["test"]) {
        let world = manifest(root, &cases[0]).and_then(|path| World::new(&path, cases)).map(Arc::new);
        for case in cases {
            let (case, key) = (case.clone(), key(case));
            match &world {
                Err(reason) => {
                    TALLY.skipped(1, reason);
                    trials.push(Trial::test(key, || Ok(())).with_ignored_flag(true));
                }
                Ok(world) => {
                    let (world, on_purpose) = (world.clone(), on_purpose.clone());
                    trials.push(Trial::test(key.clone(), move || {
                        on_purpose.judge(&key, world.judge(&case), &TALLY)
                    }));
                }
            }
        }
    }
    trials
}

/// What names a case whatever its place.
fn key(case: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let request = &case["req"];
    let mut key = format!("{} {}", text(&case["test"][0]), request["method"].as_str().unwrap_or("GET"));
    key.push_str(&format!(" {}{}", text(&request["host"]), text(&request["path"])));
    for (name, value) in request["headers"].as_object().into_iter().flatten() {
        key.push_str(&format!(" {name}:{}", text(value)));
    }
    key
}

/// The manifest that a case names: under its path, or under its name alone.
fn manifest(root: &Path, case: &Value) -> Result<PathBuf, String> {
    let named = case["manifest"][0].as_str().ok_or("the case names no manifest")?;
    let file = Path::new(named).file_name().ok_or("the case names no manifest")?;
    [root.join(named), root.join(file)]
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| format!("{named} is not in the corpus"))
}

/// A cluster with a pod for every match, and one for all.
struct World {
    matches: Vec<Match>,
    cluster: Cluster,
}

/// The pod that every rule is for.
const ALL: &str = "all";

impl World {
    fn new(path: &Path, cases: &[Value]) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|error| error.to_string())?;
        let matches = matches(&objects)?;
        let backends = cases.iter().filter_map(|case| case["backend"].as_str());
        // Upstream has two manifests of one name: the other test's says nothing about this one's requests.
        for backend in backends {
            if !matches.iter().any(|one| one.backend == backend) {
                let file = path.file_name().unwrap_or_default().display();
                return Err(format!(
                    "{file} in the corpus is another test's manifest: it has no backend {backend}"
                ));
            }
        }
        let rules: Vec<Value> = matches.iter().map(|one| one.rule.clone()).collect();
        let mut objects = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}})];
        for (number, one) in matches.iter().enumerate() {
            objects.extend(server(&number.to_string(), 10 + number, std::slice::from_ref(&one.rule)));
        }
        objects.extend(server(ALL, 9, &rules));
        let (cluster, problems) = load(&objects);
        let errors: Vec<String> = problems
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
            .map(ToString::to_string)
            .collect();
        assert!(errors.is_empty(), "every match can be said: {errors:#?}");
        Ok(Self { matches, cluster })
    }

    fn ask(&self, pod: &str, request: &Request) -> Result<Verdict, Failed> {
        let said = Said::Http {
            method: request.method.clone(),
            target: request.target.clone(),
            host: request.host.clone(),
            headers: request.headers.clone(),
        };
        let (from, to) = ("192.0.2.1".to_owned(), format!("n/{pod}"));
        Ok(self.cluster.ask(&Query { from, to, protocol: Protocol::Tcp, port: Port::Number(8080), said })?)
    }

    fn judge(&self, case: &Value) -> Result<(), Failed> {
        let request = Request::read(&case["req"]);
        let mut matching = Vec::new();
        for (number, one) in self.matches.iter().enumerate() {
            if self.ask(&number.to_string(), &request)?.decision() == Decision::Allow {
                matching.push(one);
            }
        }
        let expected = case["backend"].as_str();
        let winner = matching.iter().copied().min_by_key(|one| one.precedence(&request));
        let names: Vec<&str> = matching.iter().map(|one| &*one.name).collect();
        if winner.map(|one| &*one.backend) != expected {
            return Err(format!("expected {expected:?}; these match: {names:?}").into());
        }
        let all = self.ask(ALL, &request)?;
        let allowed = all.decision() == Decision::Allow;
        if allowed != expected.is_some() {
            return Err(format!("expected {expected:?}, the verdict of all rules is {all:?}").into());
        }
        match all.ingress.rule.as_deref() {
            Some(rule) if allowed && !names.contains(&rule) => {
                Err(format!("{rule} is said to have decided; these match: {names:?}").into())
            }
            None if allowed => Err("the verdict names no rule".into()),
            _ => Ok(()),
        }
    }
}

/// A pod and the policy for it.
fn server(name: &str, host: usize, rules: &[Value]) -> [Value; 2] {
    let labels: BTreeMap<&str, &str> = BTreeMap::from([("app", name)]);
    [
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "n", "name": name, "labels": labels},
            "spec": {"nodeName": "node", "containers": [{"name": "c"}]},
            "status": {"podIP": format!("10.0.{}.{}", host / 250, host % 250 + 1)},
        }),
        json!({
            "apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
            "metadata": {"namespace": "n", "name": name},
            "spec": {"podSelector": {"matchLabels": labels}, "policyTypes": ["Ingress"], "ingress": rules},
        }),
    ]
}
