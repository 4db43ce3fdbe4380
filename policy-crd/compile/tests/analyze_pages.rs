//! Every code has a page, its example is told with that code and nothing else, and its correction with nothing.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use sluice_compile::analyze::{CODES, Code, Finding, analyze, find};
use sluice_compile::{Enforcement, Rollout};
use sluice_crd::{Severity, load_str};
use std::collections::BTreeSet;
use std::path::Path;

/// The YAML blocks of a page.
fn blocks(page: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut inside = None;
    for line in page.lines() {
        match (line, &mut inside) {
            ("```yaml", None) => inside = Some(String::new()),
            ("```", Some(block)) => {
                out.push(std::mem::take(block));
                inside = None;
            }
            (line, Some(block)) => {
                block.push_str(line);
                block.push('\n');
            }
            (_, None) => {}
        }
    }
    out
}

fn findings(code: &Code, text: &str) -> Vec<Finding> {
    let rollout = if code.page.contains("Told only with `--as-labelled`") {
        Rollout::AsLabelled { default_dataplane: false, max_enforcement: Enforcement::Enforce }
    } else {
        Rollout::AsIfEnforced
    };
    let analysis = analyze(&load_str("page.yaml", text), rollout);
    assert!(analysis.unchecked.is_empty(), "{:?}", analysis.unchecked);
    // Examples leave the manifests of their namespaces out.
    analysis
        .findings
        .into_iter()
        .filter(|finding| code.id == "SLU0010" || finding.code.id != "SLU0010")
        .collect()
}

fn shown(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("{} {}\n", finding.code.id, finding.problem)).collect()
}

#[test]
fn every_page_shows_its_code_and_how_to_correct_it() {
    for code in CODES {
        let blocks = blocks(code.page);
        assert_eq!(blocks.len(), 2, "{}: an example and its correction", code.id);
        let wrong = findings(code, &blocks[0]);
        let told: BTreeSet<&str> = wrong.iter().map(|finding| finding.code.id).collect();
        assert_eq!(told, BTreeSet::from([code.id]), "{}", shown(&wrong));
        let right = findings(code, &blocks[1]);
        assert!(right.is_empty(), "{}, corrected: {}", code.id, shown(&right));
    }
}

#[test]
fn pages_say_what_the_table_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/analyze");
    let overview = std::fs::read_to_string(folder.join("../analyze.md")).unwrap();
    for code in CODES {
        let severity = code.severity.as_str();
        let mut lines = code.page.lines();
        assert_eq!(lines.next().unwrap(), format!("# {}: {}", code.id, code.title));
        assert!(lines.next().unwrap().starts_with(&format!("Severity: {severity}")), "{}", code.id);
        let row = format!("| [{0}](analyze/{0}.md) | {severity} | {1} |", code.id, code.title);
        assert!(overview.lines().any(|line| line == row), "docs/analyze.md lacks: {row}");
        assert_eq!(find(&code.id.to_lowercase()), Some(*code));
        assert!(!code.remedy.is_empty());
    }
    let pages = std::fs::read_dir(folder).unwrap().count();
    assert_eq!(pages, CODES.len(), "a page without a code");
    let ids: BTreeSet<&str> = CODES.iter().map(|code| code.id).collect();
    assert_eq!(ids.len(), CODES.len(), "a code is given twice");
    assert!(find("SLU9999").is_none());
}

#[test]
fn findings_point_at_what_they_are_about() {
    for code in CODES {
        let text = &blocks(code.page)[0];
        for finding in findings(code, text) {
            let problem = &finding.problem;
            let line = text.lines().nth(problem.line as usize - 1).unwrap();
            let end =
                if problem.end_column == 0 { line.chars().count() as u32 + 1 } else { problem.end_column };
            assert!(problem.column >= 1 && problem.column < end, "{}: {problem:?}", code.id);
            assert!(end as usize <= line.chars().count() + 1, "{}: {problem:?}", code.id);
            assert!(problem.severity != Severity::Error || code.id < "SLU0100", "{}", code.id);
        }
    }
}
