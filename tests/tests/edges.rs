//! The house's walls: which crate may know which, what may be in a crate's tree, where `unsafe` may stand.
//!
//! Reads `cargo metadata` and the checkout's text. A new crate or a new edge is added here on purpose or not at all.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every crate of ours and the crates of ours that it may name, in any section of its manifest.
const EDGES: &[(&str, &[&str])] = &[
    ("sluice-policy", &[]),
    ("sluice-crd", &[]),
    ("sluice-bpf-abi", &[]),
    ("sluice-wire", &["sluice-policy"]),
    ("sluice-compile", &["sluice-policy", "sluice-crd"]),
    ("sluice-bpf", &["sluice-bpf-abi"]),
    ("sluice-bpf-trials", &[]),
    ("sluice-redirect", &["sluice-policy", "sluice-bpf-abi"]),
    ("sluice-cni", &["sluice-wire"]),
    ("sluice-proxy", &["sluice-policy", "sluice-wire", "sluice-redirect"]),
    ("sluice-control", &["sluice-policy", "sluice-crd", "sluice-compile", "sluice-wire"]),
    ("sluice", &["sluice-policy", "sluice-crd", "sluice-compile", "sluice-wire"]),
    ("xtask", &[]),
];

/// May name anything of ours; nothing of ours may name it.
const TESTS: &str = "sluice-tests";

/// What must not be anywhere in the tree that a crate is built from.
const ABSENCES: &[(&str, &[&str])] = &[
    (
        "sluice-policy",
        &[
            "tokio",
            "hyper",
            "http",
            "kube",
            "k8s-openapi",
            "aya",
            "serde",
            "serde_core",
            "serde_json",
            "tonic",
            "libc",
        ],
    ),
    ("sluice-wire", &["kube", "k8s-openapi", "aya"]),
    ("sluice-compile", &["tokio", "hyper", "kube", "aya", "notify"]),
    ("sluice-redirect", &["hyper", "http", "h2", "tonic", "kube", "k8s-openapi"]),
    ("sluice-proxy", &["kube", "k8s-openapi", "sluice-crd", "sluice-compile", "sluice-control"]),
    ("sluice-control", &["aya", "sluice-proxy", "sluice-redirect", "sluice-bpf-abi"]),
    ("sluice", &["aya", "sluice-proxy", "sluice-redirect", "sluice-control"]),
];

/// The only user-space crate that talks to the kernel's eBPF; the tests look over its shoulder.
const AYA_USERS: &[&str] = &["sluice-redirect", TESTS];

/// The only crate that talks to an API server; the tests run one.
const KUBE_USERS: &[&str] = &["sluice-control", TESTS];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the checkout")
}

fn metadata(arguments: &[&str]) -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root()).args(["metadata", "--format-version", "1", "--locked"]).args(arguments);
    let output = command.output().expect("cargo starts");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

/// Our crates with what each names of ours, in the workspace and in the programs beside it.
fn named() -> BTreeMap<String, BTreeSet<String>> {
    let of = |manifest| metadata(&["--no-deps", "--manifest-path", manifest]);
    let all = ["Cargo.toml", "redirect-bpf/programs/Cargo.toml", "redirect-bpf/trials/Cargo.toml"].map(of);
    let mut named = BTreeMap::new();
    for package in all.iter().flat_map(|metadata| list(&metadata["packages"])) {
        // What has a path is ours: nothing of others is in the checkout.
        let ours = list(&package["dependencies"]).filter(|dependency| dependency["path"].is_string());
        let ours = ours.map(|dependency| text(&dependency["name"]).to_owned()).collect();
        named.insert(text(&package["name"]).to_owned(), ours);
    }
    named
}

#[test]
fn crates_name_only_the_crates_that_the_design_lets_them() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        EDGES.iter().map(|(name, names)| (*name, names.iter().copied().collect())).collect();
    for (name, ours) in named() {
        if name == TESTS {
            continue;
        }
        let Some(allowed) = allowed.get(name.as_str()) else { panic!("{name} is not in the table of edges") };
        for other in ours {
            assert!(allowed.contains(other.as_str()), "{name} must not know {other}");
        }
    }
}

/// Everything that a crate is built from: normal and build dependencies, theirs, and so on.
fn tree(metadata: &Value, root: &str) -> BTreeSet<String> {
    let name_of: BTreeMap<&str, &str> =
        list(&metadata["packages"]).map(|package| (text(&package["id"]), text(&package["name"]))).collect();
    let nodes: BTreeMap<&str, &Value> =
        list(&metadata["resolve"]["nodes"]).map(|node| (text(&node["id"]), node)).collect();
    let start = nodes.keys().find(|id| name_of[*id] == root).unwrap_or_else(|| panic!("no crate {root}"));
    let mut seen = BTreeSet::new();
    let mut waiting = vec![*start];
    while let Some(id) = waiting.pop() {
        for dependency in list(&nodes[id]["deps"]) {
            // A build dependency of somebody else runs on the builder; ours are looked at as well.
            let wanted = list(&dependency["dep_kinds"])
                .any(|kind| kind["kind"].is_null() || (kind["kind"] == "build" && id == *start));
            let other = text(&dependency["pkg"]);
            if wanted && seen.insert(other) {
                waiting.push(other);
            }
        }
    }
    seen.into_iter().map(|id| name_of[id].to_owned()).collect()
}

#[test]
fn what_a_crate_must_not_see_is_nowhere_in_its_tree() {
    let metadata = metadata(&["--filter-platform", "x86_64-unknown-linux-gnu"]);
    for (name, absent) in ABSENCES {
        let tree = tree(&metadata, name);
        for other in *absent {
            assert!(
                !tree.contains(*other),
                "{name} is built with {other}: `cargo tree -p {name} -i {other}` shows how"
            );
        }
    }
    // The walk does see what is there.
    assert!(tree(&metadata, "sluice-proxy").contains("sluice-policy"));
    assert!(tree(&metadata, "sluice-control").contains("tokio"));
    assert!(tree(&metadata, "sluice-policy").contains("regex-automata"));
}

#[test]
fn one_crate_loads_ebpf() {
    for package in list(&metadata(&["--no-deps"])["packages"]) {
        let name = text(&package["name"]);
        let aya =
            list(&package["dependencies"]).any(|dependency| text(&dependency["name"]).starts_with("aya"));
        assert!(!aya || AYA_USERS.contains(&name), "{name} must not know aya");
    }
}

#[test]
fn one_crate_talks_to_the_api_server() {
    let mut users = 0;
    for package in list(&metadata(&["--no-deps"])["packages"]) {
        let name = text(&package["name"]);
        let kube = list(&package["dependencies"])
            .any(|dependency| ["kube", "kube-client", "kube-runtime"].contains(&text(&dependency["name"])));
        assert!(!kube || KUBE_USERS.contains(&name), "{name} must not know kube");
        users += usize::from(kube);
    }
    assert_eq!(users, KUBE_USERS.len(), "the walk sees who does");
}

/// Every file of ours with this ending.
fn files(ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![root()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).expect("readable").flatten() {
            let (path, kind) = (entry.path(), entry.file_type().expect("known"));
            let name = entry.file_name().to_string_lossy().into_owned();
            if kind.is_dir() && name != "target" && (!name.starts_with('.') || name == ".ci") {
                waiting.push(path);
            } else if kind.is_file() && name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 5, "the walk found only {} files *{ending}", found.len());
    found
}

fn in_redirect(path: &Path) -> bool {
    path.starts_with(root().join("redirect-bpf"))
}

#[test]
fn unsafe_is_allowed_under_redirect_bpf_only() {
    for path in files("Cargo.toml") {
        let manifest = fs::read_to_string(&path).expect("readable");
        let denies = manifest.contains("[workspace.lints.rust]\nunsafe_code = \"deny\"");
        let shown = path.display();
        if in_redirect(&path) {
            continue;
        }
        // The fuzzers' is a workspace of its own.
        if manifest.contains("\n[workspace]") || manifest.starts_with("[workspace]") {
            assert!(denies, "the workspace {shown} does not deny unsafe");
        } else {
            assert!(!manifest.contains("unsafe_code"), "{shown} says something else about unsafe");
        }
        assert!(
            path == root().join("Cargo.toml") || manifest.contains("[lints]\nworkspace = true"),
            "{shown} does not take the workspace's lints"
        );
    }
    let this = root().join("tests/tests/edges.rs");
    for path in files(".rs") {
        if !in_redirect(&path) && path != this {
            let source = fs::read_to_string(&path).expect("readable");
            assert!(!source.contains("unsafe_code"), "{} overrides the lint", path.display());
        }
    }
}

#[test]
fn every_source_file_begins_with_what_it_does() {
    for path in files(".rs") {
        let source = fs::read_to_string(&path).expect("readable");
        assert!(
            source.starts_with("//! "),
            "{}: begin it with `//! `: what it does, what it must not know, who calls it",
            path.display()
        );
    }
}
