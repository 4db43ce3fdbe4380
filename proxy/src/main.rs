//! `sluice-proxy`: reads the command line, sets up logging, hands over.

use clap::Parser as _;
use sluice_proxy::cli::Cli;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(cli.log_level()));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sluice-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}
