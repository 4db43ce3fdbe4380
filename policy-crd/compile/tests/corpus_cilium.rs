//! Cilium's own manifests: every one is read and lowered without a crash and without silence, and every expectation
//! about them that our fields can express holds, in the engine and in the kernel's rows.
//!
//! Each manifest is taken as it is, templates and all, and with the namespace that most of them leave to kubectl. The
//! corpus lies beside the project, or where `SLUICE_CORPUS` says. Where it is absent the test is shown as ignored; with
//! `SLUICE_REQUIRE_ALL=1` it fails. What is skipped is shown as ignored, with the reason in its name.

#[path = "common/clients.rs"]
mod clients;
#[path = "common/corpus.rs"]
mod corpus;
#[path = "common/expectations.rs"]
mod expectations;

use expectations::Case;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use sluice_compile::Rollout;
use sluice_compile::query::Cluster;
use sluice_crd::{Category, Problem, Severity, load_str};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, LazyLock, Mutex};

/// By set: how many passed, how many did not, how many pairs of ends that were, and how many are skipped for each reason.
#[derive(Default)]
struct Count {
    passed: usize,
    failed: usize,
    pairs: usize,
    skipped: BTreeMap<String, usize>,
}

static COUNTS: LazyLock<Mutex<BTreeMap<&'static str, Count>>> = LazyLock::new(Mutex::default);

fn count(set: &'static str, add: impl FnOnce(&mut Count)) {
    add(COUNTS.lock().expect("no trial panics while it counts").entry(set).or_default());
}

/// Counts a case with its pairs, or that it failed.
fn counted(set: &'static str, judged: Result<usize, Failed>) -> Result<(), Failed> {
    count(set, |count| match &judged {
        Ok(pairs) => {
            count.passed += 1;
            count.pairs += pairs;
        }
        Err(_) => count.failed += 1,
    });
    judged.map(|_| ())
}

fn corpus() -> PathBuf {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus");
    std::env::var_os("SLUICE_CORPUS").map_or_else(beside, PathBuf::from).join("cilium")
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let root = corpus();
    let mut files = Vec::new();
    for folder in ["connectivity", "examples", "extra"] {
        manifests(&root.join(folder), &mut files);
    }
    files.sort();
    let trials = if files.is_empty() { vec![absent(&root)] } else { trials(&root, files) };
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        for (set, Count { passed, failed, pairs, skipped }) in &*COUNTS.lock().expect("every trial is over") {
            let unit =
                if *pairs == 0 { "cases".to_owned() } else { format!("cases ({pairs} pairs of ends)") };
            corpus::report(&format!("cilium/{set}"), &unit, [*passed, *failed], &BTreeMap::new(), skipped);
        }
    }
    conclusion.exit_code()
}

/// One trial that stands for a corpus which is not there.
fn absent(root: &Path) -> Trial {
    let reason = format!("{} has no manifests; set SLUICE_CORPUS to the corpus folder", root.display());
    let required = std::env::var_os("SLUICE_REQUIRE_ALL").is_some_and(|value| value == "1");
    eprintln!("corpus_cilium: {reason}");
    Trial::test("cilium corpus unavailable", move || Err(Failed::from(reason))).with_ignored_flag(!required)
}

fn manifests(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            manifests(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            out.push(path);
        }
    }
}

fn trials(root: &Path, files: Vec<PathBuf>) -> Vec<Trial> {
    let trial = |path: PathBuf| {
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        Trial::test(name, move || {
            let text = std::fs::read_to_string(&path)?;
            counted("manifests", not_silent(&text).and_then(|()| not_silent(&placed(&text))).map(|()| 0))
        })
    };
    let mut trials: Vec<Trial> = files.into_iter().map(trial).collect();
    let text = std::fs::read_to_string(root.join("expectations.yaml")).expect("the corpus has expectations");
    let expected: Value = serde_saphyr::from_str(&text).expect("the expectations are YAML");
    let expected = Arc::new(expected);
    trials.extend(cases(root, &expected));
    trials.extend(filter_matrix(&expected));
    for (index, _) in expected["header_match_matrix"].as_array().into_iter().flatten().enumerate() {
        let reason = "mismatch actions change requests, which is never done here";
        trials.push(skipped("header_match_matrix", &format!("row {index}"), reason));
    }
    trials.extend(deny_table(&expected));
    trials
}

fn skipped(set: &'static str, name: &str, reason: &str) -> Trial {
    count(set, |count| *count.skipped.entry(reason.to_owned()).or_default() += 1);
    let shown = format!("{set}: {name}: skipped: {reason}");
    Trial::test(shown.clone(), move || Err(shown.into())).with_ignored_flag(true)
}

/// One line of the corpus in one cluster.
fn judged(set: &'static str, name: &str, cluster: &Arc<Cluster>, line: &Value, defaults: &Value) -> Trial {
    let (cluster, line, defaults) = (cluster.clone(), line.clone(), defaults.clone());
    Trial::test(format!("{set}: {name}: {line}"), move || {
        counted(set, Case::new(&line, &defaults).judge(&cluster).map_err(Failed::from))
    })
}

/// A cluster of the world and these objects, and its errors.
fn cluster(objects: &[Value]) -> (Arc<Cluster>, Vec<Problem>) {
    let mut all = clients::world();
    all.extend_from_slice(objects);
    let loaded = sluice_crd::load_value(&all);
    let cluster = Cluster::new(&loaded.objects, Rollout::AsIfEnforced);
    let problems = loaded.problems.iter().chain(&cluster.problems).cloned();
    let errors = problems.filter(|problem| problem.severity == Severity::Error).collect();
    (Arc::new(cluster), errors)
}

/// `cases`: each set of manifests, and each of its variants.
fn cases(root: &Path, expected: &Value) -> Vec<Trial> {
    let mut trials = Vec::new();
    for case in expected["cases"].as_array().expect("a list of cases") {
        let policies = words(&case["policy"]);
        let also = words(&case["also"]);
        let variants = also.iter().map(|other| variant(&policies, other));
        for policies in std::iter::once(policies.clone()).chain(variants) {
            trials.extend(set_of(root, &policies, case, &expected["defaults"]));
        }
    }
    trials
}

/// One text or a list of them.
fn words(given: &Value) -> Vec<String> {
    let list = given.as_array().map_or_else(|| vec![given], |list| list.iter().collect());
    list.into_iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The set with one manifest in the place of the one whose name begins most alike.
fn variant(policies: &[String], other: &str) -> Vec<String> {
    let alike = |name: &String| name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let best = policies.iter().map(alike).max().unwrap_or_default();
    let place = |name: &String| if alike(name) == best { other.to_owned() } else { name.clone() };
    policies.iter().map(place).collect()
}

fn set_of(root: &Path, policies: &[String], case: &Value, defaults: &Value) -> Vec<Trial> {
    let name = policies.join(" + ").replace("connectivity/", "");
    let tests = case["tests"].as_array().expect("a list of tests");
    let all_skipped = |reason: &str| -> Vec<Trial> {
        tests.iter().map(|line| skipped("cases", &format!("{name}: {line}"), reason)).collect()
    };
    let mut objects = Vec::new();
    for policy in policies {
        match clients::read(&root.join(policy)) {
            Ok(read) => objects.extend(read),
            Err(reason) => return all_skipped(&reason),
        }
    }
    let (cluster, errors) = cluster(&objects);
    let (unsupported, wrong): (Vec<Problem>, Vec<Problem>) =
        errors.into_iter().partition(|problem| problem.category == Category::Unsupported);
    if !wrong.is_empty() {
        let wrong = format!("{name}: {wrong:#?}");
        return vec![Trial::test(format!("cases: {name}"), move || Err(wrong.into()))];
    }
    // Without rules for DNS no query is answered; everything else about these policies holds.
    let field = |problem: &Problem| problem.path.rsplit('.').next().unwrap_or_default().to_owned();
    let fields: BTreeSet<String> = unsupported.iter().map(field).filter(|field| field != "dns").collect();
    if !fields.is_empty() {
        let fields: Vec<String> = fields.into_iter().collect();
        return all_skipped(&format!("{} not honoured", fields.join(", ")));
    }
    let trial = |line: &Value| match line["dns"].is_null() {
        true => judged("cases", &name, &cluster, line, defaults),
        false => skipped("cases", &format!("{name}: {line}"), "dns not honoured"),
    };
    tests.iter().map(trial).collect()
}

/// `http_filter_matrix`: the rules of two identities that stand in the corpus as a comment, as a policy.
fn filter_matrix(expected: &Value) -> Vec<Trial> {
    let from = |name: &str, http: Value| {
        json!({"fromEndpoints": [{"matchLabels": {"name": name}}],
            "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": http}}]})
    };
    let one = json!([{"path": "/allowed"}, {"path": ".*public$"}, {"host": "allowedHOST"},
        {"host": ".*REGEX.*"}, {"method": "PUT", "path": "/public/opinions"}]);
    let policy = json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "matrix", "namespace": clients::NAMESPACE},
        "spec": {"endpointSelector": {"matchLabels": {"kind": "echo"}},
            "ingress": [from("client", one), from("client2", json!([{"path": "/only-2-allowed"}]))]}});
    let (cluster, errors) = cluster(&[policy]);
    assert!(errors.is_empty(), "{errors:#?}");
    let rows = expected["http_filter_matrix"].as_array().into_iter().flatten();
    let trial = |row: &Value| {
        let mut line = row.clone();
        line["want"] = row["want"].to_string().into();
        let ends = json!({"from": "client", "to": "echo"});
        judged("http_filter_matrix", "identity 1", &cluster, &line, &ends)
    };
    rows.map(trial).collect()
}

/// `deny_table`: for each column its allows and denies on the server, and what becomes of a client there.
fn deny_table(expected: &Value) -> Vec<Trial> {
    let table = &expected["deny_table"];
    let mut trials = Vec::new();
    for (index, column) in table["columns"].as_array().into_iter().flatten().enumerate() {
        let allow = if column["allow"].is_null() { &table["allow"] } else { &column["allow"] };
        let rules = |given: &Value| words(given).iter().map(|words| rule(words)).collect::<Vec<Value>>();
        let policy = json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "table", "namespace": clients::NAMESPACE},
            "spec": {"endpointSelector": {"matchLabels": {"name": "echo-same-node"}},
                "ingress": rules(allow), "ingressDeny": rules(&column["deny"])}});
        let (cluster, errors) = cluster(&[policy]);
        assert!(errors.is_empty(), "{errors:#?}");
        for (probe, want) in column.as_object().into_iter().flatten() {
            let mut line = json!({"from": "client", "to": "echo-same-node", "want": want});
            match (probe.as_str(), probe.strip_prefix("port").and_then(|port| port.parse::<u16>().ok())) {
                ("allow" | "deny", _) => continue,
                ("ping", _) => line["proto"] = "icmp".into(),
                (_, Some(port)) => line["port"] = port.into(),
                _ => {
                    trials.push(skipped("deny_table", &format!("column {index} {probe}"), "unknown probe"));
                    continue;
                }
            }
            let name = format!("column {index} {probe}");
            trials.push(judged("deny_table", &name, &cluster, &line, &json!({"method": "GET"})));
        }
    }
    trials
}

/// A rule of the table: `L3 client`, `L4 80`, `L7 http on 80`.
fn rule(words: &str) -> Value {
    let ports = |port: &str| json!({"ports": [{"port": port, "protocol": "TCP"}]});
    match words.split(' ').collect::<Vec<_>>()[..] {
        ["L3", name] => json!({"fromEndpoints": [{"matchLabels": {"name": name}}]}),
        ["L4", port] => json!({"toPorts": [ports(port)]}),
        ["L7", "http", "on", port] => {
            let mut item = ports(port);
            item["rules"] = json!({"http": [{"method": "GET", "path": "/public"}]});
            json!({"toPorts": [item]})
        }
        _ => panic!("nobody knows the rule {words}"),
    }
}

/// The manifests in a namespace, where they name none and their kind has one.
fn placed(text: &str) -> String {
    let document = |document: &str| {
        let clusterwide = ["CiliumClusterwide", "CiliumCIDRGroup", "kind: ClusterNetworkPolicy"];
        if clusterwide.iter().any(|kind| document.contains(kind)) || document.contains("\n  namespace:") {
            return document.to_owned();
        }
        document.replacen("metadata:\n", "metadata:\n  namespace: cilium-test\n", 1)
    };
    text.split("\n---").map(document).collect::<Vec<_>>().join("\n---")
}

/// Every policy is in force as it was written, or an error says why not.
fn not_silent(text: &str) -> Result<(), Failed> {
    let loaded = load_str("manifest.yaml", text);
    let cluster = Cluster::new(&loaded.objects, Rollout::AsIfEnforced);
    let problems: Vec<_> = loaded.problems.iter().chain(&cluster.problems).collect();
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    let written = text.lines().filter(|line| line.starts_with("kind:") && line.ends_with("NetworkPolicy"));
    let accepted = cluster.policies.iter().filter(|state| state.accepted).count();
    if written.count() > accepted && errors == 0 {
        return Err(format!("a policy is neither in force nor told: {problems:?}").into());
    }
    for policy in &loaded.objects.cilium {
        let name = policy.source.object().cloned();
        let state = |name: &str| cluster.policies.iter().find(|state| state.origin.to_string() == name);
        let accepted = name.as_deref().and_then(state).is_some_and(|state| state.accepted);
        let told = problems.iter().any(|p| p.severity == Severity::Error && p.object == name);
        if accepted == told {
            return Err(format!("{name:?}: accepted {accepted}, told {told}: {problems:?}").into());
        }
    }
    let templates = text.lines().any(|line| line.contains("{{") && !line.trim_start().starts_with('#'));
    if templates && errors == 0 {
        return Err(format!("a template is taken as it stands: {problems:?}").into());
    }
    Ok(())
}
