//! Upstream's conformance tests of `ClusterNetworkPolicy`: its manifests and every probe through compiler and engine.
//!
//! The corpus lies beside the project, or where `SLUICE_CORPUS` says. Where it is absent the test is shown as
//! ignored; with `SLUICE_REQUIRE_ALL=1` it fails. Upstream changes the objects between its probes; the changes are
//! in `script`, and a probe after one that is not there is shown as ignored.

#[path = "common/corpus.rs"]
mod corpus;
#[path = "common/houses.rs"]
mod houses;

use corpus::{Tally, absent, folder};
use houses::{Change, script};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use sluice_compile::Rollout;
use sluice_compile::query::{Cluster, Port, Query, Said};
use sluice_crd::Severity;
use sluice_policy::{Decision, Protocol};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

const SET: &str = "cluster-network-policy";

static PROBES: Tally = Tally::new("cluster-network-policy/probes", "probes");
static MANIFESTS: Tally = Tally::new("cluster-network-policy/manifests", "manifests");

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let corpus = folder(SET);
    let trials = match std::fs::read_to_string(corpus.join("expected.json")) {
        Ok(text) => trials(&corpus, &text),
        Err(error) => vec![absent(SET, &corpus, &error)],
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        PROBES.print();
        MANIFESTS.print();
    }
    conclusion.exit_code()
}

fn trials(corpus: &Path, text: &str) -> Vec<Trial> {
    let probes: Vec<Value> = serde_json::from_str(text).expect("the expectations are JSON");
    assert!(!probes.is_empty(), "the corpus has probes");
    let world = houses::world(corpus);
    let mut trials = manifests(corpus, &world);
    for probes in probes.chunk_by(|a, b| a["test"] == b["test"]) {
        let file = probes[0]["manifests"].as_str().unwrap_or_default().trim_matches('"');
        let file = corpus.join(file.strip_prefix("base/").unwrap_or(file));
        let mut objects = world.clone();
        objects.extend(houses::read(&file));
        for subtest in probes.chunk_by(|a, b| a["subtest"] == b["subtest"]) {
            let name = format!("{}: {}", text_of(&subtest[0], "test"), text_of(&subtest[0], "subtest"));
            let known = script(text_of(&subtest[0], "test"), text_of(&subtest[0], "subtest"));
            let patched = subtest.iter().any(|probe| probe["after_patch"] == true);
            if patched && known.is_empty() {
                PROBES
                    .skipped(subtest.len(), "upstream changes the objects first, in a way that is not known");
                trials.push(
                    Trial::test(name, || Err("the change is not known".into())).with_ignored_flag(true),
                );
                continue;
            }
            trials.push(Trial::test(name, judged(&mut objects, subtest, &known)));
        }
    }
    trials
}

fn text_of<'a>(probe: &'a Value, field: &str) -> &'a str {
    probe[field].as_str().unwrap_or_default()
}

/// Applies the changes where they come between the probes; what is left of the objects is the next subtest's.
fn judged(
    objects: &mut Vec<Value>,
    probes: &[Value],
    changes: &[(usize, Change)],
) -> impl FnOnce() -> Result<(), Failed> + Send + 'static {
    let mut steps: Vec<(Arc<Vec<Value>>, Vec<Value>)> = vec![(Arc::new(objects.clone()), Vec::new())];
    for (number, probe) in probes.iter().enumerate() {
        let due: Vec<&Change> = changes.iter().filter(|(at, _)| *at == number).map(|(_, c)| c).collect();
        if !due.is_empty() {
            due.into_iter().for_each(|change| change.apply(objects));
            steps.push((Arc::new(objects.clone()), Vec::new()));
        }
        if let Some((_, probes)) = steps.last_mut() {
            probes.push(probe.clone());
        }
    }
    move || steps.into_iter().try_for_each(|(objects, probes)| judge(&objects, &probes))
}

fn cluster(objects: &[Value]) -> Result<Cluster, Failed> {
    let loaded = sluice_crd::load_value(objects);
    let cluster = Cluster::new(&loaded.objects, Rollout::AsIfEnforced);
    let mut problems = loaded.problems.iter().chain(&cluster.problems);
    match problems.find(|problem| problem.severity == Severity::Error) {
        Some(problem) => Err(problem.to_string().into()),
        None => Ok(cluster),
    }
}

fn judge(objects: &[Value], probes: &[Value]) -> Result<(), Failed> {
    let cluster = cluster(objects)?;
    let mut wrong = Vec::new();
    for probe in probes {
        let end = |field: &str| -> Result<String, Failed> {
            let [namespace, name] = &probe[field].as_array().ok_or("an end is a pair")?[..] else {
                return Err("an end is a namespace and a pod".into());
            };
            Ok(format!("{}/{}", namespace.as_str().unwrap_or_default(), name.as_str().unwrap_or_default()))
        };
        let protocol = Protocol::parse(&text_of(probe, "proto").to_uppercase()).ok_or("a protocol")?;
        let port = u16::try_from(probe["port"].as_u64().ok_or("a port")?)?;
        let query = Query {
            from: end("from")?,
            to: end("server")?,
            protocol,
            port: Port::Number(port),
            said: Said::Nothing,
        };
        let verdict = cluster.ask(&query)?;
        if (verdict.decision() == Decision::Allow) != probe["allow"].as_bool().ok_or("an expectation")? {
            wrong.push(format!("{probe}: {:?}", verdict.deciding()));
        }
    }
    PROBES.passed(probes.len() - wrong.len());
    PROBES.failed(wrong.len());
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// Every manifest of the corpus, those too that no recorded probe uses, is taken whole.
fn manifests(corpus: &Path, world: &[Value]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for folder in ["admin_tier", "baseline_tier", "api_integration"] {
        let mut files: Vec<PathBuf> = std::fs::read_dir(corpus.join(folder))
            .expect("the folder is there")
            .map(|entry| entry.expect("the folder can be read").path())
            .collect();
        files.sort();
        for file in files {
            let name = format!("{folder}/{}", file.file_name().unwrap_or_default().display());
            let mut objects = world.to_vec();
            let policies = houses::read(&file);
            objects.extend(policies.iter().cloned());
            let whole = move || -> Result<(), Failed> {
                let cluster = cluster(&objects)?;
                let refused: Vec<String> = cluster
                    .policies
                    .iter()
                    .filter(|policy| !policy.accepted || policy.selected.is_empty())
                    .map(|policy| policy.origin.to_string())
                    .collect();
                if cluster.policies.len() != policies.len() || !refused.is_empty() {
                    return Err(format!("{} policies; {refused:?}", cluster.policies.len()).into());
                }
                Ok(())
            };
            trials.push(Trial::test(name, move || MANIFESTS.take(whole())));
        }
    }
    trials
}
