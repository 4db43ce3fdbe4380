//! The command line: exit codes, where problems go, batches, and what a bad question is told.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn sluice(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
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

fn explain(arguments: &[&str]) -> Output {
    sluice(&[&["explain", "-f", "examples/shop"], arguments].concat(), "")
}

#[test]
fn exit_codes() {
    let get = ["--from", "shop/frontend", "--to", "shop/cart:8080", "--http", "GET /api/v1/items"];
    assert_eq!(explain(&get).status.code(), Some(0));
    let denied = ["--from", "shop/frontend", "--to", "shop/cart:8080", "--http", "PUT /api/v1/items"];
    assert_eq!(explain(&denied).status.code(), Some(1));
    for bad in [
        &["--from", "shop/frontend"][..],
        &["--from", "shop/nobody", "--to", "shop/cart:8080"],
        &["--from", "frontend", "--to", "shop/cart:8080"],
        &["--from", "shop/frontend", "--to", "shop/cart"],
        &["--from", "shop/frontend", "--to", "shop/cart:0"],
        &["--from", "shop/frontend", "--to", "shop/cart:70000"],
        &["--from", "shop/frontend", "--to", "shop/cart:nope"],
        &["--from", "shop/frontend", "--to", "10.0.0.1:http"],
        &["--from", "shop/frontend", "--to", "shop/cart:8080", "--http", "GET"],
        &["--from", "shop/frontend", "--to", "shop/cart:8080", "--http", "GET items"],
        &["--from", "shop/frontend", "--to", "shop/cart:8080", "--grpc", "Cart"],
        &["--from", "shop/frontend", "--to", "shop/cart:8080", "--http", "GET /", "--grpc", "a/b"],
        &["--from", "shop/frontend", "--to", "shop/cart:8080", "--header", "a:b"],
        &["--from", "shop/frontend", "--to", "shop/cart:8080", "--http", "GET /", "--header", "ab"],
        &["--from", "shop/frontend", "--to", "shop/cart:8080", "--protocol", "GRE"],
        &["--from", "shop/frontend", "--to", "shop/cart:8080", "--protocol", "UDP", "--http", "GET /"],
        &["--from", "shop/frontend", "--to", "shop/cart:8080", "--protocol", "ICMP"],
    ] {
        let output = explain(bad);
        assert_eq!(output.status.code(), Some(2), "{bad:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{bad:?}");
        assert!(!output.stderr.is_empty(), "{bad:?}");
    }
    let nowhere = sluice(&["explain", "-f", "/nowhere", "--from", "a/b", "--to", "c/d:1"], "");
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(text(&nowhere.stderr).contains("give a directory of manifests"));
    let empty = tempfile::tempdir().unwrap();
    let path = empty.path().to_str().unwrap();
    assert_eq!(sluice(&["explain", "-f", path, "--from", "a/b", "--to", "c/d:1"], "").status.code(), Some(2));
}

#[test]
fn headers_and_other_protocols() {
    let base = ["--from", "shop/frontend", "--to", "shop/cart:http"];
    let post = |headers: &[&str]| {
        let request = ["--http", "POST /api/v1/checkout"];
        explain(&[&base[..], &request, headers].concat()).status.code()
    };
    assert_eq!(post(&["--header", "X-Tenant: acme"]), Some(0));
    assert_eq!(
        post(&["--header", "x-tenant: acme", "--header", "x-tenant: acme"]),
        Some(1),
        "twice is ambiguous"
    );
    assert_eq!(post(&["--header", "x-tenant: ACME"]), Some(1));
    let icmp = ["--from", "shop/frontend", "--to", "shop/billing", "--protocol", "icmp"];
    assert_eq!(explain(&icmp).status.code(), Some(0));
}

#[test]
fn labels_are_taken_only_if_asked_for() {
    let to_legacy = ["--from", "203.0.113.1", "--to", "shop/cart:8080", "--http", "GET /"];
    assert_eq!(explain(&to_legacy).status.code(), Some(1));
    let off = [&to_legacy[..], &["--as-labelled", "--max-enforcement", "off"]].concat();
    assert_eq!(explain(&off).status.code(), Some(0));
    let alone = explain(&[&to_legacy[..], &["--max-enforcement", "off"]].concat());
    assert_eq!(alone.status.code(), Some(2), "it means nothing without --as-labelled");
    let dir = tempfile::tempdir().unwrap();
    let manifests = "apiVersion: v1\nkind: Namespace\nmetadata: { name: a }\n---\napiVersion: v1\nkind: Pod\n\
        metadata: { name: p, namespace: a }\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
        metadata: { name: deny, namespace: a }\nspec: { podSelector: {} }\n";
    std::fs::write(dir.path().join("a.yaml"), manifests).unwrap();
    let unlabelled = |arguments: &[&str]| {
        let path = dir.path().to_str().unwrap();
        let base = ["explain", "-f", path, "--from", "203.0.113.1", "--to", "a/p:80"];
        sluice(&[&base[..], arguments].concat(), "").status.code()
    };
    assert_eq!(unlabelled(&[]), Some(1));
    assert_eq!(unlabelled(&["--as-labelled"]), Some(0));
    assert_eq!(unlabelled(&["--as-labelled", "--default-dataplane", "enabled"]), Some(1));
    let audit = [&to_legacy[..], &["--as-labelled", "--max-enforcement", "audit", "-o", "json"]].concat();
    let output = explain(&audit);
    assert_eq!(output.status.code(), Some(0));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["verdict"], "audit");
    assert_eq!(answer["ingress"]["wouldDeny"][0]["policy"], "L7NetworkPolicy/shop/cart");
}

#[test]
fn a_batch_answers_every_line_in_order() {
    let long = "x".repeat(3 << 20);
    let lines = [
        r#"{"from":"shop/frontend","to":"shop/cart","protocol":"TCP","port":8080,"http":{"method":"GET","path":"/api/v1/items?y=1","host":"cart","headers":{"x-a":"1"}}}"#,
        "",
        "not json",
        r#"{"from":"shop/nobody","to":"shop/cart","port":8080}"#,
        r#"{"from":"shop/frontend","to":"shop/cart","port":8080,"surprise":1}"#,
        &long,
        "\u{feff}{}",
        r#"{"from":"shop/billing","to":"shop/cart","port":"grpc","grpc":{"service":"shop.v1.Cart","method":"GetCart"}}"#,
        r#"{"from":"shop/intruder","to":"shop/cart","port":9090}"#,
    ];
    let output = sluice(&["explain", "-f", "examples/shop", "--batch"], &lines.join("\n"));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let answers: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let got: Vec<&str> = answers.iter().map(|answer| answer["verdict"].as_str().unwrap_or("error")).collect();
    assert_eq!(got, ["allow", "error", "error", "error", "error", "error", "error", "allow", "deny"]);
    assert!(answers.iter().all(|answer| answer["verdict"].is_string() != answer["error"].is_string()));
    assert_eq!(answers[0]["ingress"]["rule"], "frontend-http");
    assert_eq!(answers[0]["policy"], "L7NetworkPolicy/shop/cart");
    assert!(answers[5]["error"].as_str().unwrap().contains("more than"));
}

#[test]
fn a_tls_connection_is_known_by_its_server_name() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = "\
apiVersion: v1
kind: Pod
metadata: { name: shop, namespace: a }
---
apiVersion: policy.sluice.dev/v1alpha1
kind: L7NetworkPolicy
metadata: { name: out, namespace: a }
spec:
  podSelector: {}
  policyTypes: [ Egress ]
  egress:
  - name: stripe
    to: [ { ipBlock: { cidr: 203.0.113.0/24 } } ]
    ports: [ { port: 443 } ]
    rules: { tls: { serverNames: [ api.stripe.com, '*.example.com' ] } }
";
    std::fs::write(folder.path().join("a.yaml"), manifest).unwrap();
    let path = folder.path().to_str().unwrap();
    let base = ["explain", "-f", path, "--from", "a/shop", "--to", "203.0.113.7:443"];
    for (said, code, word) in [
        (&["--tls", "api.stripe.com"][..], 0, "TLS to api.stripe.com"),
        (&["--tls", "API.Stripe.com."], 0, "rule stripe"),
        (&["--tls", "a.example.com"], 0, "rule stripe"),
        (&["--tls", "example.com"], 1, "server name example.com not in [api.stripe.com, *.example.com]"),
        (&["--tls", ""], 1, "no readable server name"),
        (&["--http", "GET /"], 1, "not TLS"),
        (&["--tls", "a", "--http", "GET /"], 2, ""),
        (&["--tls", "a", "--protocol", "UDP"], 2, ""),
    ] {
        let output = sluice(&[&base[..], said].concat(), "");
        assert_eq!(output.status.code(), Some(code), "{said:?}: {}", text(&output.stderr));
        assert!(text(&output.stdout).contains(word), "{said:?}: {}", text(&output.stdout));
    }
    let lines = [
        r#"{"from":"a/shop","to":"203.0.113.7","port":443,"tls":{"serverName":"api.stripe.com"}}"#,
        r#"{"from":"a/shop","to":"203.0.113.7","port":443,"tls":{}}"#,
        r#"{"from":"a/shop","to":"203.0.113.7","port":443,"tls":{},"grpc":{"service":"a","method":"b"}}"#,
    ];
    let output = sluice(&["explain", "-f", path, "--batch"], &lines.join("\n"));
    let answers: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers[0]["verdict"], "allow");
    assert_eq!(answers[1]["verdict"], "deny");
    assert!(answers[2]["error"].as_str().unwrap().contains("one of http, grpc and tls"));
}
