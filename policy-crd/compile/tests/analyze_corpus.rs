//! Other projects' manifests through the checks: none stops them, every finding has its place, and no error is told
//! that lowering does not tell.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use sluice_compile::Rollout;
use sluice_compile::analyze::{CODES, analyze};
use sluice_compile::query::Cluster;
use sluice_crd::{Severity, load_texts_in};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn yaml_files(folder: &Path, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            yaml_files(&path, out);
        } else if path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml") {
            out.push(path);
        }
    }
}

/// Checks one set of texts; counts findings by code.
fn check(texts: &[(String, String)], counts: &mut BTreeMap<&'static str, usize>) {
    let borrowed = || texts.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    // Most of Cilium's manifests leave the namespace to kubectl.
    let loaded = load_texts_in(borrowed(), Some("default"));
    let analysis = analyze(&loaded, Rollout::AsIfEnforced);
    let cluster = Cluster::new(&loaded.objects, Rollout::AsIfEnforced);
    let known = loaded.problems.iter().chain(&cluster.problems);
    let errors = known.filter(|problem| problem.severity == Severity::Error).count();
    let told = analysis.findings.iter().filter(|finding| finding.problem.severity == Severity::Error);
    assert!(told.clone().count() <= errors);
    for finding in &analysis.findings {
        *counts.entry(finding.code.id).or_default() += 1;
        let place = finding.problem.place();
        let file = texts.iter().find(|(name, _)| **name == *place.file);
        let line = file.and_then(|(_, text)| text.lines().nth(place.line as usize - 1));
        assert!(line.is_some(), "{}: {}", finding.code.id, finding.problem);
        assert!(!finding.problem.reason.is_empty());
    }
}

#[test]
fn corpora_are_checked() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus");
    let mut counts = BTreeMap::new();
    for (set, least) in [("cilium", 100), ("cluster-network-policy", 3)] {
        let folder = corpus.join(set);
        if !folder.is_dir() {
            println!("{set}: skipped, the corpus is not here");
            continue;
        }
        let mut files = Vec::new();
        yaml_files(&folder, &mut files);
        let texts: Vec<(String, String)> = files
            .iter()
            .map(|path| (path.display().to_string(), std::fs::read_to_string(path).unwrap()))
            .collect();
        assert!(texts.len() >= least, "{set}: {}", texts.len());
        for text in &texts {
            check(std::slice::from_ref(text), &mut counts);
        }
        // And all of them as one cluster.
        check(&texts, &mut counts);
        println!("{set}: {} manifests, each alone and all together", texts.len());
    }
    println!("findings by code: {counts:?}");
    if corpus.join("cilium").is_dir() {
        let overview = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/analyze.md");
        let overview = std::fs::read_to_string(overview).unwrap();
        let (_, section) = overview.split_once("## On other projects' manifests").unwrap();
        let section = section.split("\n## ").next().unwrap();
        let named: Vec<&str> = section.split("| [").skip(1).map(|row| &row[..7]).collect();
        assert!(named.len() > 3, "{named:?}");
        for code in named {
            assert!(counts.contains_key(code), "docs/analyze.md: {code} is found nowhere");
        }
    }
    assert!(counts.keys().all(|id| CODES.iter().any(|code| code.id == *id)));
}
