//! `sluice analyze`: exit codes, formats, standard input, and that nothing it is given stops it.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn analyze(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .arg("analyze")
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text = input.to_owned();
    let writer = std::thread::spawn(move || {
        // A program that ended early has said why.
        let _ = stdin.write_all(text.as_bytes());
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A policy with a finding of level info and one of level warning.
const POLICY: &str = "\
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: policy.sluice.dev/v1alpha1
kind: L7NetworkPolicy
metadata: { name: cart, namespace: shop }
spec:
  ingress:
  - from: [ { podSelector: { matchLabels: { app: web } } } ]
    ports: [ { port: 443 } ]
    rules:
      http: [ { methods: [ GET ], path: { type: Exact, value: /e } } ]
";

#[test]
fn exit_codes_follow_the_threshold() {
    for (arguments, code) in [
        (&[][..], 0),
        (&["--fail-on", "error"], 0),
        (&["--fail-on", "warning"], 1),
        (&["--deny", "warnings"], 1),
        (&["--fail-on", "info"], 1),
        (&["--fail-on", "never"], 0),
        (&["--deny", "warnings", "--allow", "SLU0203"], 0),
        (&["--fail-on", "info", "--allow", "slu0203,SLU0301"], 0),
    ] {
        let output = analyze(&[&["-f", "-"], arguments].concat(), POLICY);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stdout));
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    }
    assert_eq!(analyze(&["-f", "-"], "a: [").status.code(), Some(1), "broken YAML is an error");
    for bad in [
        &[][..],
        &["-f", "/nowhere"],
        &["-f", "-", "--allow", "SLU9999"],
        &["--explain", "SLU9999"],
        &["-f", "-", "-f", "-"],
        &["-f", "-", "--deny", "errors"],
        &["-f", "-", "-o", "xml"],
    ] {
        let output = analyze(bad, "");
        assert_eq!(output.status.code(), Some(2), "{bad:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{bad:?}");
    }
}

#[test]
fn findings_are_drawn_on_the_text() {
    let output = text(&analyze(&["-f", "-"], POLICY).stdout);
    let drawn = "\
warning[SLU0203]: a rule about requests on a port that carries TLS
  --> <stdin>:11:14
   |
11 |     ports: [ { port: 443 } ]
   |              ^^^^^^^^^^^^^ nothing is decrypted: no request can be read in TLS, and the rule grants it nothing
   |
   = note: L7NetworkPolicy/shop/cart, spec.ingress[0].ports[0]
   = help: write rules.tls.serverNames, or name a port that carries HTTP in clear
";
    assert!(output.contains(drawn), "{output}");
    assert!(output.contains("1 warning, 1 info;"), "{output}");
    // What a manifest says steers no terminal.
    let hostile = POLICY.replace("name: cart", "name: \"\\e[2J\"").replace("podSelector:", "pod\u{1b}[2J: ");
    let output = text(&analyze(&["-f", "-"], &hostile).stdout);
    assert!(!output.contains('\u{1b}'), "{output}");
}

#[test]
fn json_has_every_field() {
    let output = analyze(&["-f", "-", "-o", "json"], POLICY);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["counts"], serde_json::json!({ "error": 0, "warning": 1, "info": 1 }));
    assert_eq!((&report["omitted"], &report["unchecked"]), (&0.into(), &serde_json::json!([])));
    let finding = &report["findings"][0];
    assert_eq!(finding["code"], "SLU0203");
    assert_eq!(finding["object"], "L7NetworkPolicy/shop/cart");
    assert_eq!(finding["path"], "spec.ingress[0].ports[0]");
    assert_eq!(
        (&finding["line"], &finding["column"], &finding["endColumn"]),
        (&11.into(), &14.into(), &27.into())
    );
    assert_eq!(finding["file"], "<stdin>");
    for field in ["title", "severity", "reason", "remedy"] {
        assert!(finding[field].is_string(), "{field}");
    }
}

#[test]
fn sarif_is_of_its_form() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a b.yaml");
    std::fs::write(&file, POLICY).unwrap();
    let output = analyze(&["-f", file.to_str().unwrap(), "-o", "sarif"], "");
    let log: Value = serde_json::from_slice(&output.stdout).unwrap();
    // SARIF 2.1.0: §3.13, §3.14, §3.18, §3.19, §3.27, §3.28, §3.29, §3.30, §3.49.
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    assert_eq!(run["columnKind"], "unicodeCodePoints");
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    assert!(rules.iter().all(|rule| rule["id"].is_string() && rule["help"]["markdown"].is_string()));
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"]);
        assert!(["error", "warning", "note"].contains(&result["level"].as_str().unwrap()));
        assert!(result["message"]["text"].is_string());
        let location = &result["locations"][0]["physicalLocation"];
        let uri = location["artifactLocation"]["uri"].as_str().unwrap();
        assert!(uri.starts_with("file:///") && uri.ends_with("/a%20b.yaml"), "{uri}");
        let region = &location["region"];
        assert!(region["startLine"].as_u64().unwrap() > 0 && region["startColumn"].as_u64().unwrap() > 0);
        assert!(region["endColumn"].as_u64() > region["startColumn"].as_u64());
    }
    assert_eq!(run["invocations"][0]["executionSuccessful"], true);
}

#[test]
fn pages_and_codes_are_printed() {
    let page = analyze(&["--explain", "slu0501"], "");
    assert_eq!(page.status.code(), Some(0));
    assert_eq!(text(&page.stdout), std::fs::read_to_string(root().join("docs/analyze/SLU0501.md")).unwrap());
    let codes = text(&analyze(&["--codes"], "").stdout);
    assert_eq!(codes.lines().count(), std::fs::read_dir(root().join("docs/analyze")).unwrap().count());
}

#[test]
fn the_examples_have_no_warning_but_those_of_mistakes_and_losses() {
    for folder in std::fs::read_dir(root().join("examples")).unwrap() {
        let folder = folder.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        let output = analyze(&["--deny", "warnings", "-f", folder.to_str().unwrap()], "");
        let expected = i32::from(folder.ends_with("mistakes") || folder.ends_with("migrate"));
        assert_eq!(output.status.code(), Some(expected), "{}: {}", folder.display(), text(&output.stdout));
    }
}
