//! `sluice explain`: manifests and a question in, the verdict out.

use crate::answer::{self, Answer};
use crate::batch::{self, Answerer};
use crate::places::Places;
use crate::question;
use crate::trace::Shown;
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use sluice_compile::query::{Cluster, Query, Said};
use sluice_compile::{Enforcement, Rollout};
use sluice_crd::{Loaded, Problem, Severity};
use sluice_policy::Decision;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

const EXIT_CODES: &str = "\
Exit codes:
  0  allowed (also: allowed, and audited policies would deny); with --batch: every line was answered
  1  denied
  2  wrong usage, manifests that cannot be read, or a question that names nobody

Problems of the manifests go to standard error; what is wrong is judged fail closed, the rest as written.

Examples:
  sluice explain -f examples/shop --from shop/frontend --to shop/cart:8080 --http 'GET /api/v1/items'
  sluice explain -f examples/shop --from shop/billing --to shop/cart:grpc --grpc shop.v1.Cart/GetCart
  sluice explain -f examples/shop --from shop/intruder --to shop/cart:grpc --trace
  sluice explain -f examples/shop --batch < questions.jsonl";

/// Arguments of `explain`.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// A directory of manifests, or a manifest; may be given more than once
    #[arg(short = 'f', long = "filename", required = true, value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Who asks: namespace/pod or an IP address
    #[arg(long, value_name = "PEER", required_unless_present = "batch")]
    from: Option<String>,
    /// Who is asked, with the pod's port by number or name: namespace/pod:8080, 10.0.0.1:443, [fd00::1]:443
    #[arg(long, value_name = "PEER:PORT", required_unless_present = "batch")]
    to: Option<String>,
    /// TCP, UDP, SCTP or ICMP
    #[arg(long, default_value = "TCP")]
    protocol: String,
    /// An HTTP request, as 'GET /api/v1/items'
    #[arg(long, value_name = "METHOD PATH", conflicts_with = "grpc")]
    http: Option<String>,
    /// A gRPC call, as shop.v1.Cart/GetCart
    #[arg(long, value_name = "SERVICE/METHOD")]
    grpc: Option<String>,
    /// A TLS connection, by the server name that its client asks for; '' for one without, or with an encrypted one
    #[arg(long, value_name = "SERVER NAME", conflicts_with_all = ["http", "grpc", "headers"])]
    tls: Option<String>,
    /// A header of the request, as name:value; may be given more than once
    #[arg(long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
    /// Take the namespaces' labels sluice.dev/dataplane and sluice.dev/enforcement as they are; without it every
    /// namespace is judged as enabled and enforcing
    #[arg(long)]
    as_labelled: bool,
    /// With --as-labelled: whether namespaces without the label are in the dataplane
    #[arg(long, requires = "as_labelled", value_enum, default_value = "disabled")]
    default_dataplane: Dataplane,
    /// With --as-labelled: the cluster's cap
    #[arg(long, requires = "as_labelled", value_enum, default_value = "enforce")]
    max_enforcement: Cap,
    /// One question a line in (JSON, on standard input), one answer a line out (JSON), in order
    #[arg(long, conflicts_with_all = ["from", "to", "http", "grpc", "tls", "headers"])]
    batch: bool,
    /// Show how the verdict came about: every stage of both sides, every rule and what it failed on
    #[arg(long)]
    trace: bool,
    /// How to answer
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    output: Output,
    /// Show problems of level info too
    #[arg(short = 'v', long)]
    verbose: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Dataplane {
    Enabled,
    Disabled,
}

#[derive(Clone, Copy, ValueEnum)]
enum Cap {
    Off,
    Audit,
    Enforce,
}

/// Answers.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let loaded = load(&arguments.files)?;
    let rollout = if arguments.as_labelled {
        let max_enforcement = match arguments.max_enforcement {
            Cap::Off => Enforcement::Off,
            Cap::Audit => Enforcement::Audit,
            Cap::Enforce => Enforcement::Enforce,
        };
        let default_dataplane = arguments.default_dataplane == Dataplane::Enabled;
        Rollout::AsLabelled { default_dataplane, max_enforcement }
    } else {
        Rollout::AsIfEnforced
    };
    let cluster = Cluster::new(&loaded.objects, rollout);
    show(loaded.problems.iter().chain(&cluster.problems), arguments.verbose);
    let places = Places::new(&loaded.objects);
    let shown = Shown { cluster: &cluster, places: &places };
    if arguments.batch {
        let output = BufWriter::new(std::io::stdout().lock());
        let answerer = Answerer { shown, trace: arguments.trace };
        batch::run(&answerer, std::io::stdin().lock(), output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let query = query(arguments)?;
    let (text, decision) = answer(&shown, &query, arguments)?;
    std::io::stdout().write_all(text.as_bytes()).context("standard output")?;
    Ok(match decision {
        Decision::Allow => ExitCode::SUCCESS,
        Decision::Deny => ExitCode::from(1),
    })
}

/// The answer as it is printed, and what it comes to.
fn answer(shown: &Shown<'_>, query: &Query, arguments: &Arguments) -> Result<(String, Decision)> {
    let cluster = shown.cluster;
    let behind = cluster.behind(query)?;
    let short = |verdict| {
        let behind = behind.as_ref().map(answer::behind_text).unwrap_or_default();
        answer::text(query, verdict, cluster.judged_by_request(query)) + &behind
    };
    if !arguments.trace {
        let verdict = cluster.ask(query)?;
        let text = match arguments.output {
            Output::Json => serde_json::to_string(&Answer::new(&verdict).behind(behind.as_ref()))? + "\n",
            Output::Text => short(&verdict),
        };
        return Ok((text, verdict.decision()));
    }
    let traced = cluster.trace(query)?;
    let text = match arguments.output {
        Output::Json => {
            serde_json::to_string(&Answer::traced(query, &traced, shown).behind(behind.as_ref()))? + "\n"
        }
        Output::Text => short(&traced.verdict) + &answer::trace_text(query, &traced, shown),
    };
    Ok((text, traced.verdict.decision()))
}

/// Loads every path as one cluster, so that an object given in two of them is told.
fn load(paths: &[PathBuf]) -> Result<Loaded> {
    let mut files = Vec::new();
    for path in paths {
        match sluice_crd::manifests(path) {
            Ok(found) if found.is_empty() => {
                bail!("{} has no *.yaml, *.yml or *.json: give a directory of manifests", path.display())
            }
            Ok(found) => files.extend(found),
            Err(problem) => bail!("{problem}"),
        }
    }
    Ok(sluice_crd::load_files(&files))
}

fn show<'p>(problems: impl Iterator<Item = &'p Problem>, verbose: bool) {
    let mut shown: Vec<&Problem> =
        problems.filter(|problem| verbose || problem.severity < Severity::Info).collect();
    // In the order of the files, whether reading or compiling found them.
    shown.sort();
    let mut error = BufWriter::new(std::io::stderr().lock());
    for problem in shown {
        // Nobody is left to tell that standard error is closed.
        let _ = writeln!(error, "{}: {problem}", problem.severity.as_str());
    }
    let _ = error.flush();
}

fn query(arguments: &Arguments) -> Result<Query> {
    // clap has made sure of both.
    let (Some(from), Some(to)) = (&arguments.from, &arguments.to) else {
        bail!("--from and --to are needed");
    };
    let (to, port) = question::destination(to)?;
    let protocol = question::protocol(Some(&arguments.protocol))?;
    let headers = headers(&arguments.headers)?;
    let said = match (&arguments.http, &arguments.grpc, &arguments.tls) {
        (Some(request), _, _) => {
            let (method, target) = request
                .split_once(' ')
                .with_context(|| format!("\"{request}\" is no request: write it as 'GET /path'"))?;
            let host = headers.iter().find(|(name, _)| name == "host").map(|(_, value)| value.clone());
            question::http(method.to_owned(), target.trim().to_owned(), host, headers)?
        }
        (None, Some(call), _) => {
            let (service, method) = call
                .trim_start_matches('/')
                .split_once('/')
                .with_context(|| format!("\"{call}\" is no call: write it as shop.v1.Cart/GetCart"))?;
            question::grpc(service.to_owned(), method.to_owned(), headers)?
        }
        (None, None, Some(name)) => question::tls(Some(name.clone())),
        (None, None, None) => {
            ensure!(headers.is_empty(), "--header belongs to a request: add --http or --grpc");
            Said::Nothing
        }
    };
    question::query(from.clone(), to, protocol, port, said)
}

fn headers(given: &[String]) -> Result<Vec<(String, String)>> {
    let split = |header: &String| {
        let (name, value) = header
            .split_once(':')
            .with_context(|| format!("\"{header}\" is no header: write it as name:value"))?;
        ensure!(!name.trim().is_empty(), "\"{header}\" has no name: write it as name:value");
        Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    };
    given.iter().map(split).collect()
}
