//! Findings as SARIF 2.1.0 (OASIS), for code scanning services and editors.
//!
//! Knows nothing of how they were found.

use crate::input::STDIN;
use anyhow::Result;
use serde_json::{Map, Value, json};
use sluice_compile::analyze::{Analysis, CODES, Code, Finding};
use sluice_crd::{Place, Severity};

const SCHEMA: &str =
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

/// The whole report.
pub(super) fn report(analysis: &Analysis) -> Result<String> {
    let rules: Vec<Value> = CODES.iter().map(|code| rule(code)).collect();
    let results: Vec<Value> = analysis.findings.iter().map(result).collect();
    let mut invocation = json!({ "executionSuccessful": true });
    let omitted = (analysis.omitted > 0).then(|| format!("{} more findings are left out", analysis.omitted));
    let unchecked = analysis.unchecked.iter().map(|what| format!("not checked: {what}"));
    let notes: Vec<Value> = omitted
        .into_iter()
        .chain(unchecked)
        .map(|text| json!({ "level": "warning", "message": { "text": text } }))
        .collect();
    if !notes.is_empty() {
        invocation["toolExecutionNotifications"] = Value::Array(notes);
    }
    let log = json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "sluice analyze",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            } },
            "columnKind": "unicodeCodePoints",
            "invocations": [invocation],
            "results": results,
        }],
    });
    Ok(serde_json::to_string_pretty(&log)? + "\n")
}

const fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "note",
    }
}

fn rule(code: &Code) -> Value {
    json!({
        "id": code.id,
        "shortDescription": { "text": code.title },
        "help": { "text": code.page, "markdown": code.page },
        "defaultConfiguration": { "level": level(code.severity) },
    })
}

fn result(finding: &Finding) -> Value {
    let problem = &finding.problem;
    let mut out = json!({
        "ruleId": finding.code.id,
        "level": level(problem.severity),
        "message": { "text": message(finding) },
    });
    if let Some(index) = CODES.iter().position(|code| *code == finding.code) {
        out["ruleIndex"] = json!(index);
    }
    if let Some(mut location) = location(&problem.place()) {
        if let Some(object) = &problem.object {
            let mut logical = json!({ "fullyQualifiedName": object.as_ref() });
            if !problem.path.is_empty() {
                logical["name"] = json!(problem.path);
            }
            location["logicalLocations"] = json!([logical]);
        }
        out["locations"] = json!([location]);
    }
    let related: Vec<Value> = finding
        .related
        .iter()
        .filter_map(|related| {
            let mut location = location(&related.place)?;
            location["message"] = json!({ "text": related.message });
            Some(location)
        })
        .enumerate()
        .map(|(index, mut location)| {
            location["id"] = json!(index + 1);
            location
        })
        .collect();
    if !related.is_empty() {
        out["relatedLocations"] = Value::Array(related);
    }
    // The same finding after lines have moved: by what it is about, not by where that stands.
    let about = format!("{}:{}", problem.object.as_deref().unwrap_or_default(), problem.path);
    out["partialFingerprints"] = json!({ "objectAndPath/v1": about });
    out
}

fn message(finding: &Finding) -> String {
    let problem = &finding.problem;
    match problem.remedy.is_empty() {
        true => format!("{}: {}", finding.code.title, problem.reason),
        false => format!("{}: {}. {}.", finding.code.title, problem.reason, problem.remedy),
    }
}

fn location(place: &Place) -> Option<Value> {
    if place.file.is_empty() {
        return None;
    }
    let mut physical = json!({ "artifactLocation": { "uri": uri(&place.file) } });
    if place.line > 0 {
        let mut region = Map::new();
        region.insert("startLine".into(), place.line.into());
        if place.column > 0 {
            region.insert("startColumn".into(), place.column.into());
        }
        if place.end_column > place.column {
            region.insert("endColumn".into(), place.end_column.into());
        }
        physical["region"] = Value::Object(region);
    }
    Some(json!({ "physicalLocation": physical }))
}

/// A relative reference (RFC 3986 §4.2) or, of an absolute path, a `file` URI.
fn uri(file: &str) -> String {
    if file == STDIN {
        return "stdin".to_owned();
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/!$&'()*+,;=@".contains(&b);
    let mut out = if file.starts_with('/') { "file://".to_owned() } else { String::new() };
    for byte in file.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
