//! `sluice-control`: arguments, signals and the clock; everything else is in the library.

use anyhow::Context as _;
use clap::Parser as _;
use sluice_control::config::Arguments;
use sluice_control::follow::Timing;
use sluice_control::plan::{Settings, check};
use sluice_control::run::{Config, run};
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> anyhow::Result<ExitCode> {
    // Socket and status say who talks to whom: the owner's alone. Before any thread runs.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let arguments = Arguments::parse();
    let settings = Settings::from(&arguments);
    if let (true, Some(dir)) = (arguments.check, &arguments.dir) {
        return Ok(check(dir, settings.rollout));
    }
    let listen = arguments.listen.context("--listen is needed")?;
    let level = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(level.unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    // Milliseconds since 1970: greater than any generation of an earlier run, which counted up one by one.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970: set it")?;
    let generation = u64::try_from(since.as_millis())?;
    let timing = Timing::default();
    let config = Config { settings, listen, status_file: arguments.status_file, generation, timing };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let shutdown = CancellationToken::new();
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            tracing::info!("stopping; nodes keep what is in force");
            stop.cancel();
        });
        run(config, shutdown).await
    })?;
    Ok(ExitCode::SUCCESS)
}
