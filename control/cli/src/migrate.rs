//! `sluice migrate`: Cilium's policies in, ours out, and what was lost on the way.
//!
//! Knows nothing of how a policy is converted; writes results, report and exit code.

use crate::{input, manifest};
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::{Value, json};
use sluice_compile::migrate::{LossKind, Manifest, Migrated, Outcome, Written, migrate};
use sluice_crd::{Problem, Severity};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXIT_CODES: &str = "\
Exit codes:
  0  every policy of Cilium was converted without loss (also: there was none)
  1  something was lost; the report on standard error says what
  2  wrong usage, or a policy that cannot be read: nothing is written for it

Give all policies of the cluster at once, with its Namespaces: in Cilium they are one union, and what one of
them means here depends on the others. Objects of other kinds stay as they are and are not printed.

Examples:
  kubectl get ns,networkpolicies,cnp,ccnp -A -o yaml | sluice migrate -f - > migrated.yaml
  sluice migrate -f policies/ -f namespaces.yaml --output-dir migrated --report report.json";

/// Longest name of a file that is written: what file systems take.
const MAX_FILE_NAME: usize = 240;

/// Arguments of `migrate`.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// A directory of manifests, a manifest, or `-` for standard input; may be given more than once
    #[arg(short = 'f', long = "filename", required = true, value_name = "PATH")]
    files: Vec<PathBuf>,
    /// The namespace of policies that name none
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// How to write the results
    #[arg(short = 'o', long, value_enum, default_value = "yaml")]
    output: Output,
    /// Write one file for each result into this directory, which is made if it is not there
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Write the report as JSON to this file, and only a summary to standard error
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write no result if anything is lost
    #[arg(long)]
    fail_on_loss: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Yaml,
    Json,
}

/// Migrates.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let texts = input::read(&arguments.files)?;
    let texts = texts.iter().map(|text| (text.name.as_str(), text.text.as_str()));
    let loaded = sluice_crd::load_texts_in(texts, arguments.namespace.as_deref());
    let migrated = migrate(&loaded.objects);
    let errors: Vec<&Problem> =
        loaded.problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
    let refused = migrated.originals.iter().any(|original| original.outcome == Outcome::Refused);
    let code = match (refused || !errors.is_empty(), migrated.losses.is_empty()) {
        (true, _) => 2,
        (false, false) => 1,
        (false, true) => 0,
    };
    let writes = code == 0 || !arguments.fail_on_loss;
    if writes {
        results(&migrated.manifests, arguments)?;
    }
    if let Some(path) = &arguments.report {
        let report = serde_json::to_string_pretty(&report(&migrated, &errors))? + "\n";
        std::fs::write(path, report).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    // Nobody is left to tell that standard error is closed.
    let _ = std::io::stderr().write_all(text(&migrated, &errors, arguments, writes).as_bytes());
    Ok(ExitCode::from(code))
}

fn results(manifests: &[Manifest], arguments: &Arguments) -> Result<()> {
    let values = manifests.iter().map(manifest::value).collect::<Result<Vec<Value>, _>>()?;
    if let Some(directory) = &arguments.output_dir {
        return files(directory, manifests, &values, arguments.output);
    }
    let text = match arguments.output {
        Output::Json => pretty(&json!({"apiVersion": "v1", "kind": "List", "items": values}))?,
        Output::Yaml => {
            let documents =
                manifests.iter().zip(&values).map(|(one, value)| manifest::yaml(&one.notes, value));
            documents.collect::<Vec<_>>().join("---\n")
        }
    };
    std::io::stdout().write_all(text.as_bytes()).context("standard output")
}

fn pretty(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn files(directory: &Path, manifests: &[Manifest], values: &[Value], output: Output) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    let mut taken = HashSet::new();
    for (manifest, value) in manifests.iter().zip(values) {
        let (text, ending) = match output {
            Output::Yaml => (manifest::yaml(&manifest.notes, value), "yaml"),
            Output::Json => (pretty(value)?, "json"),
        };
        let name = file_name(manifest, &mut taken);
        let path = directory.join(format!("{name}.{ending}"));
        std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

/// `namespace.kind.name`: a namespace has no dot in it, so that two results have two names.
fn file_name(manifest: &Manifest, taken: &mut HashSet<String>) -> String {
    let (kind, namespace, name) = identity(manifest);
    let mut whole = format!("{namespace}.{}.{name}", kind.to_ascii_lowercase());
    whole.truncate(MAX_FILE_NAME);
    let numbered = (2_u64..).map(|number| format!("{whole}-{number}"));
    let mut candidates = std::iter::once(whole.clone()).chain(numbered);
    candidates.find(|name| taken.insert(name.clone())).unwrap_or_default()
}

fn identity(manifest: &Manifest) -> (&'static str, &str, &str) {
    match &manifest.object {
        Written::NetworkPolicy(policy) => (
            "NetworkPolicy",
            policy.metadata.namespace.as_deref().unwrap_or_default(),
            policy.metadata.name.as_deref().unwrap_or_default(),
        ),
        Written::L7NetworkPolicy { namespace, name, .. } => ("L7NetworkPolicy", namespace, name),
    }
}

fn counted(migrated: &Migrated, outcome: Outcome) -> usize {
    migrated.originals.iter().filter(|original| original.outcome == outcome).count()
}

/// The report for people.
fn text(migrated: &Migrated, errors: &[&Problem], arguments: &Arguments, writes: bool) -> String {
    let mut out = String::new();
    for error in errors {
        let _ = writeln!(out, "error: {error}");
    }
    for warning in &migrated.warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    let losses = migrated.losses.iter().filter(|_| arguments.report.is_none());
    for loss in losses {
        let _ = writeln!(out, "{}: {}", loss.kind, loss.problem);
    }
    let (whole, lossy, refused) = (
        counted(migrated, Outcome::Whole),
        counted(migrated, Outcome::WithLoss),
        counted(migrated, Outcome::Refused),
    );
    let given = migrated.originals.len();
    let written = if writes { migrated.manifests.len() } else { 0 };
    let _ = writeln!(
        out,
        "policies of Cilium: {given}, without loss: {whole}, with loss: {lossy}, refused: {refused}; manifests: {written}"
    );
    if !writes {
        let _ = writeln!(out, "nothing is written: --fail-on-loss");
    }
    out
}

/// The report for programs.
fn report(migrated: &Migrated, errors: &[&Problem]) -> Value {
    let place = |problem: &Problem| {
        json!({
            "file": &*problem.file, "line": problem.line, "column": problem.column,
            "object": problem.object.as_deref(), "path": problem.path,
            "reason": problem.reason, "remedy": problem.remedy,
        })
    };
    let losses = migrated.losses.iter().map(|loss| {
        let mut value = place(&loss.problem);
        value["kind"] = loss.kind.as_str().into();
        value
    });
    let outcome = |outcome| match outcome {
        Outcome::Whole => "whole",
        Outcome::WithLoss => "withLoss",
        Outcome::Refused => "refused",
    };
    let originals = migrated
        .originals
        .iter()
        .map(|original| json!({"object": &*original.name, "outcome": outcome(original.outcome)}));
    let manifests = migrated.manifests.iter().map(|manifest| {
        let (kind, namespace, name) = identity(manifest);
        json!({"object": format!("{kind}/{namespace}/{name}"), "notes": manifest.notes})
    });
    let kinds = LossKind::ALL
        .map(|kind| (kind.as_str(), migrated.losses.iter().filter(|loss| loss.kind == kind).count()));
    json!({
        "policies": originals.collect::<Vec<_>>(),
        "manifests": manifests.collect::<Vec<_>>(),
        "losses": losses.collect::<Vec<_>>(),
        "warnings": migrated.warnings.iter().map(place).collect::<Vec<_>>(),
        "errors": errors.iter().map(|problem| place(problem)).collect::<Vec<_>>(),
        "counts": {
            "whole": counted(migrated, Outcome::Whole), "withLoss": counted(migrated, Outcome::WithLoss),
            "refused": counted(migrated, Outcome::Refused),
            "losses": kinds.into_iter().map(|(kind, count)| (kind.to_owned(), count.into())).collect::<serde_json::Map<String, Value>>(),
        },
    })
}
