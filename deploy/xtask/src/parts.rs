//! Which test belongs to which part. Every test target of the workspace belongs to exactly one.
//!
//! Reads what cargo says it built, so that a new test cannot be forgotten: what no line here names goes with its
//! package.
//! Knows nothing of how tests are run.

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A part of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Part {
    /// The core, the objects, the compiler, the CLI, the fixtures through the engine, the workspace's edges, the corpora
    Policy,
    /// The corpora alone: expected verdicts that other projects wrote
    Netpol,
    /// The wire and the controller
    Control,
    /// The proxy by itself
    Proxy,
    /// The eBPF programs and the loader, in network namespaces
    Datapath,
    /// Spans, as a collector receives them
    Telemetry,
    /// Whole nodes: end to end, and the demo
    Node,
    /// Clients and servers that nobody here wrote, through whole nodes, and a minute's soak
    Interop,
    /// The fuzzers, for a minute each; only where they are asked for
    Fuzz,
}

impl Part {
    /// All, in the order they run: cheap ones first.
    pub(crate) const ALL: [Self; 8] = [
        Self::Policy,
        Self::Netpol,
        Self::Control,
        Self::Proxy,
        Self::Datapath,
        Self::Telemetry,
        Self::Node,
        Self::Interop,
    ];

    /// What runs where a part is asked for: with the policies the corpora that they are judged against.
    pub(crate) fn whole(self) -> Vec<Self> {
        if self == Self::Policy { vec![Self::Policy, Self::Netpol] } else { vec![self] }
    }

    /// As it is typed.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// The part of a package, or of a test target of it.
fn part_of(package: &str, target: Option<&str>) -> Part {
    let named = |words: &[&str]| target.is_some_and(|target| words.iter().any(|word| target.contains(word)));
    if named(&["corpus", "netpol"]) {
        return Part::Netpol;
    }
    if named(&["telemetry", "span", "otlp"]) {
        return Part::Telemetry;
    }
    if named(&["interop", "soak"]) {
        return Part::Interop;
    }
    match package {
        "sluice-wire" | "sluice-control" => Part::Control,
        "sluice-proxy" => Part::Proxy,
        "sluice-bpf-abi" | "sluice-redirect" => Part::Datapath,
        "sluice-cni" => Part::Node,
        "sluice-tests" if named(&["e2e", "node", "demo"]) => Part::Node,
        "sluice-tests" if named(&["datapath", "world", "peers"]) => Part::Datapath,
        "sluice-tests" if named(&["fixtures", "edges", "policy"]) => Part::Policy,
        "sluice-tests" if named(&["proxy"]) => Part::Proxy,
        "sluice-tests" if named(&["control"]) => Part::Control,
        "sluice-tests" => Part::Node,
        _ => Part::Policy,
    }
}

/// One test binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TestBinary {
    /// Its part.
    pub(crate) part: Part,
    /// Its package.
    pub(crate) package: String,
    /// Its source, from the package's root.
    pub(crate) source: String,
    /// The package's root: where cargo would run it.
    pub(crate) home: PathBuf,
    /// The binary.
    pub(crate) executable: PathBuf,
}

/// What the workspace has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workspace {
    /// Package by id.
    names: BTreeMap<String, String>,
    /// Packages by the parts of their tests.
    packages: BTreeMap<Part, BTreeSet<String>>,
    binaries: BTreeSet<String>,
}

impl Workspace {
    /// From `cargo metadata --no-deps`.
    pub(crate) fn read(metadata: &str) -> anyhow::Result<Self> {
        let value: Value = serde_json::from_str(metadata).context("cargo metadata is not JSON")?;
        let mut workspace = Self::default();
        for package in value["packages"].as_array().context("cargo metadata names no packages")? {
            let name = package["name"].as_str().context("a package without a name")?;
            let id = package["id"].as_str().context("a package without an id")?;
            workspace.names.insert(id.to_owned(), name.to_owned());
            for target in package["targets"].as_array().into_iter().flatten() {
                let title = target["name"].as_str().unwrap_or_default();
                let test = has(&target["kind"], "test");
                if has(&target["kind"], "bin") {
                    workspace.binaries.insert(title.to_owned());
                }
                let part = part_of(name, test.then_some(title));
                workspace.packages.entry(part).or_default().insert(name.to_owned());
            }
        }
        Ok(workspace)
    }

    /// The arguments that choose what to build for a part, or for all. The tests of nodes start every binary.
    pub(crate) fn selection(&self, part: Option<Part>) -> Vec<String> {
        let packages = part.and_then(|part| self.packages.get(&part));
        match packages.filter(|packages| !packages.contains("sluice-tests")) {
            Some(packages) => packages.iter().flat_map(|p| ["--package".to_owned(), p.clone()]).collect(),
            None => vec!["--workspace".to_owned()],
        }
    }

    /// Whether there is such a binary.
    pub(crate) fn has_binary(&self, name: &str) -> bool {
        self.binaries.contains(name)
    }

    /// The test binary that a line of `cargo build --message-format=json` tells of, if it does.
    pub(crate) fn test_binary(&self, line: &str) -> Option<TestBinary> {
        let message: Value = serde_json::from_str(line).ok()?;
        let executable = message["executable"].as_str()?;
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            return None;
        }
        let package = self.names.get(message["package_id"].as_str()?)?;
        let target = &message["target"];
        let test = has(&target["kind"], "test").then(|| target["name"].as_str()).flatten();
        let home = Path::new(message["manifest_path"].as_str()?).parent()?;
        let source = Path::new(target["src_path"].as_str()?);
        Some(TestBinary {
            part: part_of(package, test),
            package: package.clone(),
            source: source.strip_prefix(home).unwrap_or(source).display().to_string(),
            home: home.to_owned(),
            executable: executable.into(),
        })
    }
}

fn has(kinds: &Value, kind: &str) -> bool {
    kinds.as_array().into_iter().flatten().any(|found| found == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const METADATA: &str = r#"{"packages":[
        {"name":"sluice-policy","id":"a#1","targets":[{"name":"sluice_policy","kind":["lib"]}]},
        {"name":"sluice-wire","id":"w#1","targets":[{"name":"sluice_wire","kind":["lib"]}]},
        {"name":"sluice-tests","id":"t#1","targets":[
            {"name":"sluice-demo","kind":["bin"]},{"name":"edges","kind":["test"]},{"name":"corpus","kind":["test"]},
            {"name":"build-script-build","kind":["custom-build"]}]}]}"#;

    #[test]
    fn every_test_has_one_part_and_a_new_one_goes_with_its_package() {
        assert_eq!(part_of("sluice-policy", Some("walk")), Part::Policy);
        assert_eq!(part_of("sluice-compile", Some("corpus")), Part::Netpol);
        assert_eq!(part_of("sluice-tests", Some("datapath")), Part::Datapath);
        assert_eq!(part_of("sluice-tests", Some("fixtures")), Part::Policy);
        assert_eq!(part_of("sluice-tests", Some("policy_bytes")), Part::Policy);
        assert_eq!(Part::Policy.whole(), [Part::Policy, Part::Netpol]);
        assert_eq!(Part::Proxy.whole(), [Part::Proxy]);
        assert_eq!(part_of("sluice-tests", Some("fixtures_e2e")), Part::Node);
        assert_eq!(part_of("sluice-tests", Some("interop")), Part::Interop);
        assert_eq!(part_of("sluice-tests", Some("unheard_of")), Part::Node);
        assert_eq!(part_of("unheard-of", None), Part::Policy);
    }

    #[test]
    fn a_part_builds_what_it_runs() {
        let workspace = Workspace::read(METADATA).expect("metadata");
        assert_eq!(workspace.selection(Some(Part::Control)), ["--package", "sluice-wire"]);
        assert_eq!(workspace.selection(Some(Part::Netpol)), ["--workspace"]);
        assert_eq!(workspace.selection(None), ["--workspace"]);
        assert!(workspace.has_binary("sluice-demo") && !workspace.has_binary("sluice"));
    }

    #[test]
    fn a_built_test_is_known_by_its_source() {
        let workspace = Workspace::read(METADATA).expect("metadata");
        let line = r#"{"reason":"compiler-artifact","package_id":"t#1","manifest_path":"/w/tests/Cargo.toml",
            "target":{"kind":["test"],"name":"edges","src_path":"/w/tests/tests/edges.rs"},
            "profile":{"test":true},"executable":"/target/edges-1"}"#;
        let binary = workspace.test_binary(line).expect("a test");
        assert_eq!((binary.part, &*binary.source), (Part::Policy, "tests/edges.rs"));
        assert_eq!(workspace.test_binary(&line.replace("true", "false")), None);
        assert_eq!(workspace.test_binary("   Compiling a v0.1.0"), None);
    }
}
