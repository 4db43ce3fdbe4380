//! `explain --trace`: it agrees with the short answer, says the same in both forms, and can be read at 80 columns.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn sluice(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Every pod of an example to every other and to itself, from outside and to outside, on several ports, with requests.
fn questions(pods: &[&str]) -> Vec<Value> {
    let said = [
        json!({}),
        json!({"http": {"method": "GET", "path": "/api/v1/items"}}),
        json!({"http": {"method": "DELETE", "path": "/metrics"}}),
        json!({"grpc": {"service": "shop.v1.Cart", "method": "GetCart"}}),
    ];
    let peers: Vec<&str> = pods.iter().chain(&["203.0.113.7"]).copied().collect();
    let mut out = Vec::new();
    for from in &peers {
        for to in &peers {
            for port in [8080, 9090] {
                for said in &said {
                    let mut question = said.clone();
                    question["from"] = json!(from);
                    question["to"] = json!(to);
                    question["port"] = json!(port);
                    out.push(question);
                }
            }
        }
    }
    out
}

fn lines(questions: &[Value]) -> String {
    questions.iter().map(|question| format!("{question}\n")).collect()
}

fn answers(example: &str, arguments: &[&str], questions: &str) -> Vec<Value> {
    let base = ["explain", "-f", example, "--batch"];
    let output = sluice(&[&base[..], arguments].concat(), questions);
    output.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn without_trace(mut answer: Value) -> Value {
    for side in ["egress", "ingress"] {
        let side = answer[side].as_object_mut().unwrap();
        assert!(side.remove("trace").unwrap().is_array());
        side.remove("peer");
        side.remove("notes");
    }
    answer
}

/// The rule and policy that the trace of a side ends with.
fn last_word(side: &Value) -> (Value, Value) {
    let stages = side["trace"].as_array().unwrap().iter();
    let decisive = stages.rev().find(|stage| stage["result"] == "allow" || stage["result"] == "deny");
    let rules = decisive.and_then(|stage| stage["rules"].as_array().cloned()).unwrap_or_default();
    let with = |word: &str| rules.iter().find(|rule| rule["result"] == word);
    let told = |rule: Option<&Value>| {
        rule.map_or(Value::Null, |rule| json!([rule["policy"], rule["rule"], rule.get("miss")]))
    };
    (told(with("decides")), told(with("nearest")))
}

#[test]
fn a_trace_changes_no_answer_and_ends_with_what_decided() {
    let examples = [
        (
            "examples/shop",
            &["shop/frontend", "shop/cart", "shop/billing", "shop/intruder", "outside/legacy"][..],
        ),
        ("examples/tiers", &["shop/cart", "shop/frontend", "monitoring/prometheus", "sandbox/notebook"]),
        ("examples/audit", &["web/client", "web/api"]),
    ];
    let (mut decided, mut nearest) = (0, 0);
    for (example, pods) in examples {
        let questions = questions(pods);
        let plain = answers(example, &[], &lines(&questions));
        let traced = answers(example, &["--trace"], &lines(&questions));
        assert_eq!((plain.len(), traced.len()), (questions.len(), questions.len()));
        for ((question, plain), traced) in questions.iter().zip(plain).zip(traced) {
            assert!(plain["verdict"].is_string(), "{question} {plain}");
            for side in ["egress", "ingress"].map(|side| &traced[side]) {
                let (rule, miss) = last_word(side);
                if side["rule"].is_string() {
                    assert_eq!(rule, json!([side["policy"], side["rule"], null]), "{question} {side}");
                    decided += 1;
                }
                if side["nearestMiss"].is_string() {
                    let named =
                        json!([side["nearestMissPolicy"], side["nearestMissRule"], side["nearestMiss"]]);
                    assert_eq!(miss, named, "{question} {side}");
                    nearest += 1;
                }
            }
            assert_eq!(without_trace(traced), plain, "{question}");
        }
    }
    assert!(decided > 100 && nearest > 100, "{decided} {nearest}");
}

#[test]
fn a_line_of_a_batch_asks_for_its_trace() {
    let plain = json!({"from": "shop/intruder", "to": "shop/cart", "port": 9090});
    let mut traced = plain.clone();
    traced["trace"] = json!(true);
    let answers = answers("examples/shop", &[], &lines(&[plain, traced]));
    assert!(answers[0]["ingress"].get("trace").is_none());
    assert_eq!(answers[1]["ingress"]["peer"], "shop/default{app=intruder}");
    assert_eq!(
        answers[1]["egress"]["trace"],
        json!([
            {"stage": "K", "result": "silent"},
            {"stage": "L", "result": "silent"},
        ])
    );
    assert_eq!(without_trace(answers[1].clone()), answers[0]);
}

#[test]
fn a_trace_is_read_at_80_columns() {
    let base = ["explain", "--trace", "-f"];
    let shown = [
        &[
            "examples/shop",
            "--from",
            "shop/frontend",
            "--to",
            "shop/cart:8080",
            "--http",
            "HEAD /api/v1/items",
        ][..],
        &["examples/shop", "--from", "203.0.113.7", "--to", "shop/cart:8080"],
        &["examples/tiers", "--from", "shop/frontend", "--to", "shop/cart:http"],
        &["examples/audit", "--from", "web/client", "--to", "web/api:http", "--http", "POST /"],
    ];
    for arguments in shown {
        let text = sluice(&[&base[..], arguments].concat(), "");
        let (_, trace) = text.split_once("\n\n").unwrap();
        assert!(trace.lines().all(|line| line.chars().count() <= 80), "{trace}");
        assert!(trace.lines().all(|line| line == line.trim_end()), "{trace}");
    }
    // What cannot be broken is not broken: a name is copied from here into other commands.
    let folder = tempfile::tempdir().unwrap();
    let name = "n".repeat(120);
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: p, namespace: a }}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: {name}, namespace: a }}\n\
         spec: {{ podSelector: {{}} }}\n"
    );
    std::fs::write(folder.path().join("a.yaml"), manifest).unwrap();
    let path = folder.path().to_str().unwrap();
    let text = sluice(&[&base[..], &[path, "--from", "203.0.113.7", "--to", "a/p:80"]].concat(), "");
    assert!(text.contains(&format!("NetworkPolicy/a/{name}")), "{text}");
}

#[test]
fn what_a_policy_does_not_do_is_noted() {
    let question = json!({"from": "web/client", "to": "web/api", "port": 8080});
    let answer = &answers("examples/mistakes", &["--trace"], &lines(&[question]))[0];
    let note = json!([{"policy": "L7NetworkPolicy/web/api", "standing": "not_accepted"}]);
    assert_eq!(answer["ingress"]["notes"], note);
    assert!(answer["egress"].get("notes").is_none());
    let ask = |arguments: &[&str]| {
        let base = [
            "explain",
            "--trace",
            "-f",
            "examples/shop",
            "--from",
            "shop/frontend",
            "--to",
            "shop/cart:8080",
        ];
        sluice(&[&base[..], arguments].concat(), "")
    };
    assert!(!ask(&[]).contains("note:"));
    let off = ask(&["--as-labelled", "--max-enforcement", "off"]);
    assert!(off.contains("note: L7NetworkPolicy/shop/cart is switched off by the rollout"), "{off}");
    let folder = tempfile::tempdir().unwrap();
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: { name: p, namespace: a }\n\
        status: { podIP: 10.0.0.1 }\n---\n\
        apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: n, namespace: a }\n\
        spec: { podSelector: {} }\n";
    std::fs::write(folder.path().join("a.yaml"), manifest).unwrap();
    let path = folder.path().to_str().unwrap();
    for to in ["a/p:80", "10.0.0.1:80"] {
        let base = ["explain", "--trace", "-f", path, "--from", "203.0.113.7", "--to", to];
        assert!(!sluice(&base, "").contains("note:"), "{to}");
        let text = sluice(&[&base[..], &["--as-labelled"]].concat(), "");
        let note = "note: NetworkPolicy/a/n selects this pod and is not in force for it";
        assert!(text.contains(note), "{text}");
    }
}

#[test]
fn rules_are_found_in_their_files() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = "\
apiVersion: v1
kind: Pod
metadata: { name: p, namespace: a, labels: { app: p } }
---
apiVersion: policy.sluice.dev/v1alpha1
kind: L7NetworkPolicy
metadata: { name: l, namespace: a }
spec:
  podSelector: {}
  ingress:
  - name: first
    ports: [ { port: 80 } ]
  - ports: [ { port: 81 } ]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: { name: c, namespace: a }
spec:
  endpointSelector: {}
  ingress:
  - fromEntities: [ world ]
    toPorts:
    - ports: [ { port: \"80\", protocol: TCP } ]
";
    std::fs::write(folder.path().join("a.yaml"), manifest).unwrap();
    let path = folder.path().to_str().unwrap();
    let question = json!({"from": "203.0.113.7", "to": "a/p", "port": 80, "trace": true});
    let answer = &answers(path, &[], &lines(&[question]))[0];
    let rules = answer["ingress"]["trace"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|stage| stage["rules"].as_array().cloned().unwrap_or_default());
    let found: Vec<(String, String)> = rules
        .map(|rule| {
            let at = rule["at"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
            (rule["rule"].as_str().unwrap().to_owned(), at)
        })
        .collect();
    let line = |name: &str| found.iter().find(|(rule, _)| rule.starts_with(name)).map(|(_, at)| at.as_str());
    assert_eq!(line("first"), Some("a.yaml:11:5"), "{found:?}");
    assert_eq!(line("ingress[1]"), Some("a.yaml:13:5"), "{found:?}");
    assert!(line("ingress[0]").is_some_and(|at| at.starts_with("a.yaml:2")), "{found:?}");
}

#[test]
fn a_node_that_asks_its_own_pod_is_told_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = "\
apiVersion: v1
kind: Node
metadata: { name: n1 }
status: { addresses: [ { type: InternalIP, address: 192.168.0.1 } ] }
---
apiVersion: v1
kind: Pod
metadata: { name: p, namespace: a }
spec: { nodeName: n1, containers: [ { name: c } ] }
status: { podIP: 10.0.0.1 }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: n, namespace: a }
spec: { podSelector: {} }
";
    std::fs::write(folder.path().join("a.yaml"), manifest).unwrap();
    let path = folder.path().to_str().unwrap();
    let question = |from: &str| json!({"from": from, "to": "a/p", "port": 80, "trace": true});
    let answers = answers(path, &[], &lines(&[question("192.168.0.1"), question("a/p")]));
    assert_eq!(answers[0]["ingress"]["peer"], "node n1");
    let stages = json!([{"stage": "Host", "result": "allow"}, {"stage": "K", "result": "not_asked"}]);
    assert_eq!(answers[0]["ingress"]["trace"], stages);
    assert_eq!(answers[1]["ingress"]["trace"], json!([]), "a pod reaching itself is never judged");
}
