//! `sluice`: the command line. Parses arguments, starts the verb, turns its result into an exit code.
//!
//! Knows nothing of how a verdict is reached: `explain` runs the same engine as the data plane.

mod analyze;
mod answer;
mod batch;
mod check;
mod demo;
mod explain;
mod input;
mod manifest;
mod migrate;
mod neighbour;
mod places;
mod question;
mod trace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Exit code of usage and input errors; clap uses the same.
const BAD_INPUT: u8 = 2;

/// Asks and shows what sluice does.
#[derive(Parser)]
#[command(name = "sluice", version, about, long_about = None)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Who may say what to whom: the verdict, and the policy and rule that decided.
    Explain(explain::Arguments),
    /// Cilium's policies into NetworkPolicy and L7NetworkPolicy, with every loss told.
    Migrate(migrate::Arguments),
    /// What is probably not meant in manifests: findings with codes, drawn on the YAML.
    Analyze(analyze::Arguments),
    /// Builds a small world on this machine, enforces policies in it and shows what happens.
    #[command(disable_help_flag = true)]
    Demo(neighbour::Rest),
    /// Whether this node can run the datapath, and why not. Run it on the node, as root.
    #[command(disable_help_flag = true)]
    Check(neighbour::Rest),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Explain(arguments) => explain::run(&arguments),
        Verb::Migrate(arguments) => migrate::run(&arguments),
        Verb::Analyze(arguments) => analyze::run(&arguments),
        Verb::Demo(rest) => demo::run(&rest),
        Verb::Check(rest) => check::run(&rest),
    };
    result.unwrap_or_else(|error| {
        eprintln!("sluice: {error:#}");
        ExitCode::from(BAD_INPUT)
    })
}
