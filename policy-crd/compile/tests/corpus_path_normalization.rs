//! Istio's tests of path normalisation: what a mode of it makes of a path, and what an authorization policy then says.
//!
//! A pair says that some server reads the first path as the second. Two things must hold of each, whatever else is
//! decided: a deny on either takes the request (no way past a deny), and an allow lets the request in only if what
//! goes on to the server is what the allow names, in every mode (no way into an allow). Beside that the verdict of an
//! allow is compared with the mode's own; where ours is stricter the pair is listed beside this file with its reason.
//! The corpus lies beside the project, or where `SLUICE_CORPUS` says; where it is absent the test is shown as ignored.

mod common;

use common::corpus::{OnPurpose, Tally, absent, folder};
use common::{Ask, load};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use sluice_compile::query::Cluster;
use sluice_policy::path::Path;
use sluice_policy::{Conditions, Decision, HttpMatch, HttpVersion, PathMatch, Regex, Request};
use std::process::ExitCode;
use std::sync::Arc;

const SET: &str = "path-normalization";
/// Where ours is stricter, with the reason of each.
const ON_PURPOSE: &str = include_str!("corpus_path_normalization.txt");

static PAIRS: Tally = Tally::new("path-normalization/pairs", "pairs");
static VERDICTS: Tally = Tally::new("path-normalization/authz-verdicts", "verdicts");

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let root = folder(SET);
    let read = |name: &str| std::fs::read_to_string(root.join(name));
    let trials = match (read("pairs.json"), read("authz-verdicts.json")) {
        (Ok(pairs), Ok(verdicts)) => {
            let json = |text: &str| serde_json::from_str(text).expect("the corpus is JSON");
            let mut trials = of_pairs(&json(&pairs));
            trials.extend(of_verdicts(&json(&verdicts)));
            trials
        }
        (Err(error), _) | (_, Err(error)) => vec![absent(SET, &root, &error)],
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        PAIRS.print();
        VERDICTS.print();
    }
    conclusion.exit_code()
}

/// That some server, in this mode, reads `sent` as `read`.
#[derive(Clone, Debug)]
struct Pair {
    mode: String,
    sent: String,
    read: String,
}

impl Pair {
    fn key(&self) -> String {
        format!("{} {}", self.mode, self.sent)
    }
}

/// The corpus' two-element rows, by the name they stand under.
fn rows(value: &Value) -> Vec<(String, String, Value)> {
    let named = value.as_object().expect("an object of lists");
    let row = |name: &String, row: &Value| {
        (name.clone(), row[0].as_str().expect("a path").to_owned(), row[1].clone())
    };
    let rows = |(name, list): (&String, &Value)| -> Vec<_> {
        list.as_array().expect("a list").iter().map(|one| row(name, one)).collect()
    };
    named.iter().flat_map(rows).collect()
}

fn of_pairs(value: &Value) -> Vec<Trial> {
    let text = |value: Value| value.as_str().expect("a path").to_owned();
    let pairs: Vec<Pair> =
        rows(value).into_iter().map(|(mode, sent, read)| Pair { mode, sent, read: text(read) }).collect();
    assert!(!pairs.is_empty(), "the corpus has pairs");
    let on_purpose = Arc::new(OnPurpose::read(ON_PURPOSE));
    let keys: Vec<String> = pairs.iter().map(Pair::key).collect();
    let unused = on_purpose.unused(&keys);
    let mut trials = vec![Trial::test("everything listed is in the corpus", move || {
        if unused.is_empty() { Ok(()) } else { Err(format!("in no case: {unused:?}").into()) }
    })];
    let all = Arc::new(pairs);
    for number in 0..all.len() {
        let (all, on_purpose) = (all.clone(), on_purpose.clone());
        let pair = all[number].clone();
        trials.push(Trial::test(pair.key(), move || {
            let closed = is_closed(&pair, &all);
            if closed.is_err() {
                PAIRS.failed(1);
                return closed;
            }
            on_purpose.judge(&pair.key(), is_alike(&pair), &PAIRS)
        }));
    }
    trials
}

/// The mode's word for a path that it refuses.
fn is_refused(pair: &Pair) -> bool {
    !pair.read.starts_with('/')
}

fn conditions(path: PathMatch) -> Conditions {
    let item = HttpMatch { path: Some(path), ..HttpMatch::default() };
    Conditions { http: vec![item], ..Conditions::default() }
}

fn get(path: &str) -> Request<'_> {
    let (version, method, path) = (HttpVersion::Http1, "GET", Path::new(path));
    Request { version, method, path, query: None, host: None, upgrade: None, headers: &[] }
}

/// The ways to name a path in a rule.
fn named(path: &str) -> [PathMatch; 3] {
    let literal: String =
        path.chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "/_-%".contains(c) { c.to_string() } else { format!("\\{c}") }
            })
            .collect();
    [
        PathMatch::exact(path),
        PathMatch::prefix(path),
        PathMatch::Regex(Regex::new(&literal).expect("a pattern")),
    ]
}

/// No way past a deny, no way into an allow.
fn is_closed(pair: &Pair, all: &[Pair]) -> Result<(), Failed> {
    let request = get(&pair.sent);
    for path in [&pair.sent, &pair.read].into_iter().filter(|path| path.starts_with('/')) {
        for deny in named(path) {
            if !conditions(deny.clone()).denies(&request) {
                return Err(format!("past a deny of {deny}").into());
            }
        }
        denied_by_policy(pair, path)?;
    }
    let goes_on = request.path.rewritten().unwrap_or(&pair.sent);
    let texts = all.iter().flat_map(|other| [&other.sent, &other.read]);
    for text in texts.filter(|text| text.starts_with('/')) {
        for allow in [PathMatch::exact(text), PathMatch::prefix(text)] {
            if !conditions(allow.clone()).allows(&request) {
                continue;
            }
            if is_refused(pair) {
                return Err(format!("into an allow of {allow}, and a server refuses it").into());
            }
            if Path::new(goes_on).strict() != Some(goes_on)
                || !conditions(allow.clone()).allows(&get(goes_on))
            {
                return Err(format!("into an allow of {allow} as {goes_on}, which it does not name").into());
            }
            if let Some(other) = all.iter().find(|other| other.sent == goes_on && other.read != goes_on) {
                return Err(format!("into an allow of {allow} as {goes_on}, read as {}", other.read).into());
            }
        }
    }
    Ok(())
}

/// The same of a policy as it is written: one that names a path which servers read in different ways is refused with
/// a problem, and denies more than it says.
fn denied_by_policy(pair: &Pair, path: &str) -> Result<(), Failed> {
    let deny = json!([{"rules": {"http": [{"path": {"type": "Exact", "value": path}}]}}]);
    match policy(&json!([{}]), &deny).1.decide(&pair.sent) {
        Decision::Deny => Ok(()),
        Decision::Allow => Err(format!("past a policy that denies {path}").into()),
    }
}

/// Whether an allow of what the mode makes of the path says of it what the mode says.
fn is_alike(pair: &Pair) -> Result<(), Failed> {
    let value = if is_refused(pair) { "/" } else { &pair.read };
    let kind = if is_refused(pair) { "PathPrefix" } else { "Exact" };
    let allow = json!([{"rules": {"http": [{"path": {"type": kind, "value": value}}]}}]);
    let allowed = policy(&allow, &json!([])).1.decide(&pair.sent) == Decision::Allow;
    if allowed != is_refused(pair) {
        return Ok(());
    }
    Err(format!(
        "an allow of {} says {allowed}; the strict reading is {:?}",
        pair.read,
        Path::new(&pair.sent).strict()
    )
    .into())
}

/// A server with one policy.
struct Server(Cluster);

impl Server {
    fn decide(&self, target: &str) -> Decision {
        Ask::new("192.0.2.1", "n/server", 8080, &format!("GET {target}")).decide(&self.0)
    }
}

/// A policy with these rules, and how many problems it has.
fn policy(allow: &Value, deny: &Value) -> (usize, Server) {
    let (cluster, problems) = load(&[
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "n", "name": "server"},
            "spec": {"nodeName": "node", "containers": [{"name": "c"}]}, "status": {"podIP": "10.0.0.1"}}),
        json!({"apiVersion": "policy.sluice.dev/v1alpha1", "kind": "L7NetworkPolicy",
            "metadata": {"namespace": "n", "name": "paths"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": allow, "ingressDeny": deny}}),
    ]);
    (problems.len(), Server(cluster))
}

/// The policies that upstream's tests of this name apply.
fn policies(test: &str) -> Option<Vec<(&'static str, Value, Value)>> {
    let http =
        |kind: &str, value: &str| json!([{"rules": {"http": [{"path": {"type": kind, "value": value}}]}}]);
    match test {
        // "A deny on /allow/admin beside an allow on /allow*."
        "TestAuthz_PathPrecedence" => Some(vec![(
            "allow /allow*, deny /allow/admin",
            http("RegularExpression", "/allow.*"),
            http("Exact", "/allow/admin"),
        )]),
        // Only /public is open, said in either way.
        "TestAuthz_PathNormalization" => Some(vec![
            ("allow /public", http("Exact", "/public"), json!([])),
            ("deny /private", json!([{}]), http("Exact", "/private")),
        ]),
        _ => None,
    }
}

fn of_verdicts(value: &Value) -> Vec<Trial> {
    let rows = rows(value);
    assert!(!rows.is_empty(), "the corpus has verdicts");
    let mut trials = Vec::new();
    for (test, path, allowed) in rows {
        let Some(policies) = policies(&test) else {
            VERDICTS.skipped(1, &format!("the policy of {test} is not recorded"));
            trials.push(Trial::test(format!("{test} {path}"), || Ok(())).with_ignored_flag(true));
            continue;
        };
        trials.push(Trial::test(format!("{test} {path}"), move || {
            let judged = policies.iter().try_for_each(|(name, allow, deny)| {
                let (problems, server) = policy(allow, deny);
                let got = server.decide(&path) == Decision::Allow;
                let right = problems == 0 && allowed.as_bool() == Some(got);
                if right {
                    Ok(())
                } else {
                    Err(Failed::from(format!("{name}: expected {allowed}, got {got}")))
                }
            });
            VERDICTS.take(judged)
        }));
    }
    trials
}
