//! `sluice-soak`: arguments; the soak itself is in the library. Started by `cargo xtask soak proxy`.

use clap::Parser;
use sluice_tests::soak::{self, Options};
use sluice_tests::world::{install_signal_handler, take_down_all, yield_to_signal};
use std::process::ExitCode;
use std::time::Duration;

/// Two nodes under thousands of connections of every protocol, a policy that changes every second, and an agent that is
/// replaced every minute; SIGKILL at the end.
///
/// Needs root. Exit code 0 only if no verdict was wrong, no request was lost (but to SIGKILL) and nothing grew.
#[derive(Debug, Parser)]
#[command(name = "sluice-soak", version)]
struct Cli {
    /// How long, without the phase of SIGKILL.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Connections at once.
    #[arg(long, default_value_t = 5000)]
    connections: usize,
    /// Requests a second, over all of them.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Seconds between two agents of a node.
    #[arg(long, default_value_t = 60)]
    restart: u64,
    /// Tell each loss as it happens.
    #[arg(long)]
    verbose: bool,
}

#[allow(clippy::print_stdout, reason = "it is what people read")]
fn main() -> ExitCode {
    let cli = Cli::parse();
    install_signal_handler();
    let options = Options {
        length: Duration::from_secs_f64(cli.minutes * 60.0),
        connections: cli.connections,
        rate: cli.rate,
        restart: Duration::from_secs(cli.restart),
        verbose: cli.verbose,
    };
    let done = soak::run(&options, |line| println!("{line}"));
    yield_to_signal();
    take_down_all();
    match done {
        Ok(outcome) => {
            println!("\n{}", outcome.summary);
            if outcome.good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("sluice-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}
