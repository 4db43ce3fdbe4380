//! `sluice migrate`: exit codes, where results and reports go, and that results are what they were.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn sluice(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const WORLD: &str = "examples/migrate/pods.yaml";
const WHOLE: &str = "examples/migrate/api.yaml";
const LOSSY: &str = "examples/migrate/web.yaml";

#[test]
fn exit_codes() {
    let code = |arguments: &[&str]| sluice(&[&["migrate"], arguments].concat()).status.code();
    assert_eq!(code(&["-f", WORLD, "-f", WHOLE]), Some(0));
    assert_eq!(code(&["-f", WORLD]), Some(0), "there is nothing to migrate");
    assert_eq!(code(&["-f", WORLD, "-f", LOSSY]), Some(1));
    assert_eq!(code(&["-f", "/nowhere"]), Some(2));
    assert_eq!(code(&[]), Some(2));
    let dir = tempfile::tempdir().unwrap();
    let typo = dir.path().join("typo.yaml");
    std::fs::write(&typo, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: { name: p }\nspec: { endpointSelector: {}, ingres: [{}] }\n").unwrap();
    let typo = typo.to_str().unwrap();
    let refused = sluice(&["migrate", "-n", "a", "-f", typo, "-f", WHOLE]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("did you mean `ingress`?"), "{}", text(&refused.stderr));
    // The others are converted.
    assert!(text(&refused.stdout).contains("kind: L7NetworkPolicy"));
    assert!(!text(&refused.stdout).contains("namespace: a\n"));
    // Standard input is read where `-` stands.
    let mut child = Command::new(env!("CARGO_BIN_EXE_sluice"));
    child.args(["migrate", "-f", "-"]).stdin(std::fs::File::open(dir.path().join("typo.yaml")).unwrap());
    assert_eq!(child.output().unwrap().status.code(), Some(2));
    // Without a namespace it is nowhere.
    assert_eq!(sluice(&["migrate", "-f", typo]).status.code(), Some(2));
}

#[test]
fn results_go_where_they_are_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let (out, report) = (dir.path().join("out"), dir.path().join("report.json"));
    let (out_path, report_path) = (out.to_str().unwrap(), report.to_str().unwrap());
    let base = ["migrate", "-f", WORLD, "-f", WHOLE, "-f", LOSSY, "--report", report_path];
    let output = sluice(&[&base[..], &["--output-dir", out_path]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert_eq!(
        text(&output.stderr).lines().count(),
        1,
        "the losses stand in the report: {}",
        text(&output.stderr)
    );
    let mut names: Vec<String> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "orders.l7networkpolicy.api.yaml",
        "orders.l7networkpolicy.web.yaml",
        "orders.networkpolicy.api.yaml",
        "orders.networkpolicy.web.yaml",
    ];
    assert_eq!(names, expected);
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
    assert_eq!(report["counts"]["whole"], 1);
    assert_eq!(report["counts"]["withLoss"], 1);
    assert_eq!(report["counts"]["losses"]["widened"], 1);
    assert_eq!(report["losses"].as_array().unwrap().len(), 2);
    assert_eq!(report["manifests"].as_array().unwrap().len(), expected.len());
    // As one list, and as documents: the same objects.
    let list: Value = serde_json::from_slice(&sluice(&[&base[..], &["-o", "json"]].concat()).stdout).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text(&sluice(&base).stdout)).unwrap();
    assert_eq!(list["items"].as_array().unwrap(), &documents);
    // The result has nothing left to migrate.
    let again = sluice(&["migrate", "-f", out_path]);
    assert_eq!((again.status.code(), text(&again.stdout)), (Some(0), String::new()));
}

#[test]
fn nothing_is_written_where_no_loss_is_wanted() {
    let output = sluice(&["migrate", "-f", WORLD, "-f", LOSSY, "--fail-on-loss"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()));
    assert!(text(&output.stderr).contains("--fail-on-loss"));
    assert_eq!(sluice(&["migrate", "-f", WORLD, "-f", WHOLE, "--fail-on-loss"]).status.code(), Some(0));
}

#[test]
fn the_result_answers_as_the_original_did() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    assert_eq!(sluice(&["migrate", "-f", WORLD, "-f", WHOLE, "--output-dir", out]).status.code(), Some(0));
    // And nothing in it is an error.
    let analyzed = sluice(&["analyze", "-f", WORLD, "-f", out]);
    assert!(analyzed.status.code() != Some(2), "{}", text(&analyzed.stderr));
    assert!(!text(&analyzed.stdout).contains("error"), "{}", text(&analyzed.stdout));
    for (from, port, request) in [
        ("orders/web", "http", "GET /orders/7?page=2"),
        ("orders/web", "http", "DELETE /orders/7"),
        ("orders/web", "http", "POST /orders/"),
        ("orders/web", "metrics", "GET /metrics"),
        ("monitoring/prometheus", "metrics", "GET /metrics"),
        ("monitoring/prometheus", "http", "GET /orders/7"),
    ] {
        let to = format!("orders/api:{port}");
        let ask = |policies: &str| {
            let question = ["--from", from, "--to", &to, "--http", request];
            sluice(&[&["explain", "-f", WORLD, "-f", policies][..], &question].concat()).status.code()
        };
        assert_eq!(ask(WHOLE), ask(out), "{from} {to} {request}");
    }
}
