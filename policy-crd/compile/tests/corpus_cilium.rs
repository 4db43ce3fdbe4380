//! Cilium's own manifests: every one is read and lowered without a crash and without silence.
//!
//! Each is taken as it is, templates and all, and with the namespace that most of them leave to kubectl. The corpus
//! lies beside the project, or where `SLUICE_CORPUS` says. Where it is absent the test is shown as ignored; with
//! `SLUICE_REQUIRE_ALL=1` it fails.

use libtest_mimic::{Arguments, Failed, Trial};
use sluice_compile::Rollout;
use sluice_compile::query::Cluster;
use sluice_crd::{Severity, load_str};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

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
    libtest_mimic::run(&arguments, trials).exit_code()
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
            not_silent(&text)?;
            not_silent(&placed(&text))
        })
    };
    files.into_iter().map(trial).collect()
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
