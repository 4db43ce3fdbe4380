//! Findings as one JSON object.
//!
//! Knows nothing of how they were found.

use super::counts;
use anyhow::Result;
use serde_json::{Value, json};
use sluice_compile::analyze::{Analysis, Finding};
use sluice_crd::Place;

/// The whole report, on one line.
pub(super) fn report(analysis: &Analysis) -> Result<String> {
    let counts: serde_json::Map<String, Value> = counts(&analysis.findings)
        .into_iter()
        .map(|(s, count)| (s.as_str().to_owned(), count.into()))
        .collect();
    let findings: Vec<Value> = analysis.findings.iter().map(finding).collect();
    let report = json!({ "findings": findings, "counts": counts, "omitted": analysis.omitted, "unchecked": analysis.unchecked });
    Ok(serde_json::to_string(&report)? + "\n")
}

fn finding(finding: &Finding) -> Value {
    let problem = &finding.problem;
    let mut out = place(&problem.place());
    let related = finding.related.iter().map(|related| {
        let mut out = place(&related.place);
        out["object"] = json!(related.object.as_deref());
        out["message"] = json!(related.message);
        out
    });
    out["code"] = json!(finding.code.id);
    out["severity"] = json!(problem.severity.as_str());
    out["title"] = json!(finding.code.title);
    out["object"] = json!(problem.object.as_deref());
    out["path"] = json!(problem.path);
    out["reason"] = json!(problem.reason);
    out["remedy"] = json!(problem.remedy);
    out["related"] = related.collect();
    out
}

/// Numbers that are not known are null.
fn place(place: &Place) -> Value {
    let known = |number: u32| (number > 0).then_some(number);
    json!({
        "file": place.file.as_ref(),
        "line": known(place.line),
        "column": known(place.column),
        "endColumn": known(place.end_column),
    })
}
