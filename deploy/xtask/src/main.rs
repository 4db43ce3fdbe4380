//! `cargo xtask`: the one entry for people and for continuous integration.
//!
//! Each command does all of its own set-up, says what it does and how long that took. Knows nothing of policy.

mod apiserver;
mod areas;
mod bench;
mod bpf;
mod corpora;
mod count;
mod crds;
mod fuzz;
mod interop;
mod kernel;
mod lint;
mod parts;
mod peers;
mod place;
mod setup;
mod soak;
mod step;
mod suite;

use anyhow::bail;
use clap::{Parser, Subcommand};
use parts::Part;
use place::Place;
use setup::Machine;
use std::process::ExitCode;
use std::time::Duration;

/// How long each target is fuzzed as a part of the tests.
const FUZZ_SHORT: Duration = Duration::from_secs(60);

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Builds, tests and shows sluice", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build the world in network namespaces, send real requests, print who got what and why (needs root)
    Demo {
        /// For sluice-demo, as --keep
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run every check and test, or one part of them
    Test {
        /// The part
        part: Option<Part>,
        /// The long form of what has a short one: all shared cases as packets, hours' worth of stress in minutes
        #[arg(long, visible_alias = "all")]
        long: bool,
    },
    /// Measure, and print the tables of docs/performance.md (needs root; takes minutes; not part of the tests)
    Bench {
        /// What
        what: bench::What,
        /// Put the tables into docs/performance.md
        #[arg(long)]
        write: bool,
        /// Print what was measured for programs as well, on one line, the last (proxy)
        #[arg(long)]
        json: bool,
        /// For the benchmark: `rounds=3`, `millis=500`, `peers=floor,ours`, `scenarios=h1,churn` (proxy)
        only: Vec<String>,
    },
    /// Fuzz what reads strangers' bytes, two targets at a time, and say how far each came (not part of the tests)
    Fuzz {
        /// For each target
        #[arg(long, default_value_t = 1)]
        minutes: u64,
    },
    /// Put the product under everything at once for as long as it is told (needs root; not part of the tests, which have a
    /// short form)
    Soak {
        /// What
        what: soak::What,
        #[command(flatten)]
        form: soak::Form,
    },
    /// Boot an older kernel under qemu and run some of the datapath's tests there (takes minutes; not part of the tests)
    Kernel {
        /// The tests, by parts of their names; some of each kind unless told
        tests: Vec<String>,
        /// Debian's package of the kernel
        #[arg(long, default_value = kernel::OLDEST)]
        package: String,
    },
    /// Build the eBPF object from its source, installing the toolchain for it
    BuildBpf {
        /// Only say whether the object in the checkout is what its source gives
        #[arg(long)]
        check: bool,
    },
    /// Write the CustomResourceDefinitions of our kinds to deploy/crds
    Crds {
        /// Only say whether those in the checkout are what the types give
        #[arg(long)]
        check: bool,
    },
    /// Format, lints, bans, licences, sources and the edges between crates
    Lint,
    /// Get what the demo and the tests use: Debian's packages, a kube-apiserver, which is built once, and foreign
    /// clients and servers
    Setup,
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<bool> {
    let place = Place::find()?;
    place::check_compiler(&place)?;
    match verb {
        Verb::Demo { arguments } => demo(&place, &arguments),
        Verb::Fuzz { minutes } => fuzz::run(&place, Duration::from_secs(minutes * 60)),
        Verb::Test { part: Some(Part::Fuzz), .. } => fuzz::run(&place, FUZZ_SHORT),
        Verb::Test { part, long } => suite::test(&place, part, long),
        Verb::Bench { what, write, json, only } => {
            bench::run(&place, what, write, &bench::Form { json, only }).map(|()| true)
        }
        Verb::Soak { what, form } => soak::run(&place, what, &form),
        Verb::Kernel { tests, package } => kernel::run(&place, &package, &tests),
        Verb::BuildBpf { check } => {
            if let Some(reason) = bpf::run(&place, check)? {
                step::say(&format!("cannot tell: {reason}"));
            }
            Ok(true)
        }
        Verb::Crds { check } => crds::run(&place, check).map(|()| true),
        Verb::Lint => lint(&place),
        Verb::Setup => match setup::machine(&place)? {
            Machine::Ready => match (apiserver::ready(&place)?, interop::ready(&place)?) {
                (None, None) => Ok(true),
                (one, other) => bail!("{}", one.into_iter().chain(other).collect::<Vec<_>>().join("; ")),
            },
            Machine::Lacking(what) => bail!("{what}"),
        },
    }
}

fn demo(place: &Place, arguments: &[String]) -> anyhow::Result<bool> {
    if !setup::is_root() {
        bail!("the demo creates network namespaces and loads eBPF programs: run it as root");
    }
    if let Machine::Lacking(what) = setup::machine(place)? {
        bail!("the demo needs tools that are missing: {what}");
    }
    suite::build_demo(place)?;
    // Ctrl-C is for the demo, which cleans up after itself.
    Err(step::become_command(place.command(place.binary("sluice-demo")).args(arguments)))
}

fn lint(place: &Place) -> anyhow::Result<bool> {
    for (_, check) in lint::CHECKS {
        check(place)?;
    }
    let edges = ["test", "--locked", "--package", "sluice-tests", "--test", "edges"];
    step::command("the edges between crates", &mut place.cargo(&edges))?;
    Ok(true)
}
