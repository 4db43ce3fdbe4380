//! `sluice analyze`: manifests in, findings out.
//!
//! Reads, runs the checks of `sluice-compile` and hands what they found to a format. Knows nothing of the checks.

mod json;
mod sarif;
mod text;

use crate::input;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use sluice_compile::analyze::{Analysis, CODES, Code, Finding, analyze, find, worst};
use sluice_compile::{Enforcement, Rollout};
use sluice_crd::Severity;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

const EXIT_CODES: &str = "\
Exit codes:
  0  nothing was found at or above --fail-on
  1  something was
  2  wrong usage, or manifests that cannot be read

Examples:
  sluice analyze -f examples/shop
  kubectl get networkpolicies,l7networkpolicies,pods,namespaces -A -o yaml | sluice analyze -f -
  sluice analyze -f policies/ -o sarif > findings.sarif
  sluice analyze --explain SLU0101";

/// Findings that reach this fail the run.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum FailOn {
    Error,
    Warning,
    Info,
    Never,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
    Sarif,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Deny {
    Warnings,
}

/// Arguments of `analyze`.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// A directory of manifests, a manifest, or - for standard input; may be given more than once
    #[arg(short = 'f', long = "filename", required_unless_present_any = ["explain", "codes"], value_name = "PATH")]
    files: Vec<PathBuf>,
    /// The namespace of policies that name none
    #[arg(short = 'n', long)]
    namespace: Option<String>,
    /// How to tell
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    output: Format,
    /// The least severity that makes the exit code 1
    #[arg(long, value_enum, default_value = "error", value_name = "SEVERITY")]
    fail_on: FailOn,
    /// --deny warnings is --fail-on warning
    #[arg(long, value_enum, conflicts_with = "fail_on", value_name = "WHAT")]
    deny: Option<Deny>,
    /// Leave findings with this code out; several after commas, or given more than once
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    allow: Vec<String>,
    /// Take the namespaces' labels sluice.dev/dataplane and sluice.dev/enforcement as they are; without it every
    /// namespace is judged as enabled and enforcing
    #[arg(long)]
    as_labelled: bool,
    /// Print the page of a code
    #[arg(long, value_name = "CODE", conflicts_with_all = ["files", "codes"])]
    explain: Option<String>,
    /// Print every code
    #[arg(long, conflicts_with = "files")]
    codes: bool,
}

/// Analyzes.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(id) = &arguments.explain {
        print(code(id)?.page)?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.codes {
        print(&text::codes(CODES))?;
        return Ok(ExitCode::SUCCESS);
    }
    let allowed = arguments.allow.iter().map(|id| code(id)).collect::<Result<Vec<_>>>()?;
    let texts = input::read(&arguments.files)?;
    let loaded = input::load(&texts, arguments.namespace.as_deref());
    let rollout = if arguments.as_labelled {
        Rollout::AsLabelled { default_dataplane: false, max_enforcement: Enforcement::Enforce }
    } else {
        Rollout::AsIfEnforced
    };
    let mut analysis = analyze(&loaded, rollout);
    analysis.findings.retain(|finding| !allowed.contains(&finding.code));
    print(&match arguments.output {
        Format::Text => text::report(&analysis, &texts),
        Format::Json => json::report(&analysis)?,
        Format::Sarif => sarif::report(&analysis)?,
    })?;
    Ok(if fails(&analysis, arguments) { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn code(id: &str) -> Result<&'static Code> {
    let Some(code) = find(id) else { bail!("there is no code {id}: `sluice analyze --codes` lists them") };
    Ok(code)
}

/// Whether something is bad enough. Severities are ordered from the worst.
fn fails(analysis: &Analysis, arguments: &Arguments) -> bool {
    let least = match (arguments.deny, arguments.fail_on) {
        (Some(Deny::Warnings), _) | (None, FailOn::Warning) => Severity::Warning,
        (None, FailOn::Error) => Severity::Error,
        (None, FailOn::Info) => Severity::Info,
        (None, FailOn::Never) => return false,
    };
    worst(&analysis.findings).is_some_and(|worst| worst <= least)
}

fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("standard output"),
    }
}

/// How many findings there are of each severity.
fn counts(findings: &[Finding]) -> [(Severity, usize); 3] {
    [Severity::Error, Severity::Warning, Severity::Info].map(|severity| {
        (severity, findings.iter().filter(|finding| finding.problem.severity == severity).count())
    })
}
