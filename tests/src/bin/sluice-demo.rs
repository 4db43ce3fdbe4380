//! `sluice-demo`: arguments; the demo itself is in the library. Started by `sluice demo` and `cargo xtask demo`.

use clap::Parser;
use sluice_tests::demo::{self, Options, table::Style};
use sluice_tests::world::{install_signal_handler, take_down_all, yield_to_signal};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

/// Two nodes, five pods and a policy in network namespaces of their own: real requests, and what became of them.
///
/// Needs root, iproute2 and curl. Exit code 0 only if every line is as expected; everything is taken down again,
/// also on Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "sluice-demo", version)]
struct Cli {
    /// Leave the world up at the end and print the commands to play with it.
    #[arg(long)]
    keep: bool,
    /// No colours (also without a terminal, or where NO_COLOR is set).
    #[arg(long)]
    no_color: bool,
    /// `json`: one line of JSON for each line of the demo on standard output, the text on standard error.
    #[arg(short, long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    output: String,
    /// The manifests to load instead of examples/shop.
    #[arg(long, value_name = "DIR")]
    examples: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    install_signal_handler();
    let colour = !cli.no_color && std::env::var_os("NO_COLOR").is_none() && std::io::stdout().is_terminal();
    let options = Options {
        examples: cli.examples.unwrap_or_else(demo::examples),
        keep: cli.keep,
        style: Style { colour },
        json: cli.output == "json",
    };
    let played = demo::run(&options);
    yield_to_signal();
    take_down_all();
    match played {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sluice-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
