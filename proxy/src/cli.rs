//! The command line, and what it means.

use crate::agent::{self, Options};
use crate::check::{self, Output};
use crate::confine::{User, WORKER_ID};
use crate::counters;
use crate::limits::{QUEUES, THREADS};
use clap::builder::RangedI64ValueParser;
use clap::{Args, Parser, Subcommand};
use sluice_redirect::{DEFAULT_MARK, EndpointLimits, Hooks, MAX_FLOWS, NodeConfig};
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;

/// The first of the proxy's listeners, unless told otherwise.
const LISTEN_PORT: u16 = 15_001;

/// The node's data plane.
#[derive(Debug, Parser)]
#[command(
    name = "sluice-proxy",
    version,
    about = "sluice on one node: loads the eBPF programs, reads L7, enforces"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enforce on this node until SIGTERM. Pinned L3/L4 verdicts stay; flows with L7 rules are refused meanwhile.
    Run(Run),
    /// Whether this node can run the datapath, and why not: tries everything out, with real packets in namespaces of its
    /// own, and changes nothing.
    #[command(after_help = check::EXIT_CODES)]
    Check(Check),
    /// What the kernel of this node counts and how full its maps are: reads what is pinned, beside a proxy that runs or
    /// without one, and changes nothing.
    #[command(after_help = counters::ABOUT)]
    Counters(Counters),
    /// Take everything of ours off this node: hooks, maps, the helper device, and with --state what is kept there.
    /// Give it the options of `run`, and stop that first. Nothing is enforced afterwards.
    Uninstall(Uninstall),
    /// The process that reads strangers' bytes; started by `run`.
    #[command(hide = true)]
    Worker(Worker),
}

#[derive(Debug, Args)]
struct NodeArgs {
    /// The node's name, as in the pods' spec.nodeName.
    #[arg(long)]
    node: String,
    /// A directory on a bpffs, ours alone; a bpffs is mounted there if there is none.
    #[arg(long, value_name = "DIR")]
    bpffs: PathBuf,
    /// The base name of the helper devices, at most 14 characters.
    #[arg(long, default_value = "sluice")]
    device: String,
    /// The first of the 64 ports of the proxy's listeners, in its own network namespace.
    #[arg(long, default_value_t = LISTEN_PORT)]
    listen_port: u16,
    /// The packet mark of the proxy's own packets, by which other rules on the node can tell them.
    #[arg(long, default_value_t = DEFAULT_MARK)]
    mark: u32,
    /// Take over from a newer version, which otherwise is refused: its hooks judge until ours are in force.
    #[arg(long)]
    roll_back: bool,
    /// Attach by filters of clsact qdiscs even where the kernel has tcx links.
    #[arg(long)]
    clsact: bool,
}

impl NodeArgs {
    fn config(&self) -> NodeConfig {
        NodeConfig {
            name: self.device.clone(),
            bpffs: self.bpffs.clone(),
            listen_port: self.listen_port,
            queues: QUEUES,
            mark: self.mark,
            roll_back: self.roll_back,
            limits: EndpointLimits::default(),
            flows: MAX_FLOWS,
            hooks: if self.clsact { Hooks::Clsact } else { Hooks::Auto },
        }
    }
}

/// Files that `run` makes.
#[derive(Debug, Args)]
struct Files {
    /// Keeps the last snapshot, to start with while control is away.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Where an agent that is started beside this one asks it to hand the node over, so that no request fails; by
    /// default `handover.sock` in the --state directory.
    #[arg(long, value_name = "SOCKET")]
    handover: Option<PathBuf>,
}

impl Files {
    fn handover(&self) -> Option<PathBuf> {
        self.handover.clone().or_else(|| Some(self.state.as_ref()?.join("handover.sock")))
    }
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    files: Files,
    /// Where control listens, as `unix:/run/sluice/control.sock`.
    #[arg(long, value_name = "ADDRESS")]
    control: String,
    /// Writes one line of JSON per request or connection; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    records: Option<PathBuf>,
    /// How many threads serve connections, at most 64; by default as many as CPUs that this process may use.
    #[arg(long, value_name = "COUNT", value_parser = threads())]
    threads: Option<u8>,
    #[command(flatten)]
    user: WorkerUser,
}

/// Whom the worker runs as.
#[derive(Debug, Args)]
struct WorkerUser {
    /// The user that reads what strangers send: a number that nobody else has, and not 0.
    #[arg(long, value_name = "UID", default_value_t = WORKER_ID, value_parser = id())]
    worker_uid: u32,
    /// Its only group.
    #[arg(long, value_name = "GID", default_value_t = WORKER_ID, value_parser = id())]
    worker_gid: u32,
}

impl WorkerUser {
    const fn user(&self) -> User {
        User { uid: self.worker_uid, gid: self.worker_gid }
    }
}

/// Root's is none, and neither is the number that stands for no change (setresuid(2)).
fn id() -> RangedI64ValueParser<u32> {
    RangedI64ValueParser::new().range(1..i64::from(u32::MAX))
}

fn threads() -> RangedI64ValueParser<u8> {
    RangedI64ValueParser::new().range(1..=i64::from(THREADS))
}

/// One for each CPU that this process may use: by its affinity, and by its group's quota.
fn one_each() -> u8 {
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    u8::try_from(cpus).unwrap_or(THREADS).min(THREADS)
}

#[derive(Debug, Args)]
struct Check {
    /// The directory of pins that `run` will be given.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/sluice")]
    bpffs: PathBuf,
    /// The base name of the helper devices that `run` will be given.
    #[arg(long, default_value = "sluice")]
    device: String,
    /// As `run --roll-back`: a newer version's pins are no obstacle.
    #[arg(long)]
    roll_back: bool,
    /// As `run --clsact`: try filters of clsact qdiscs even where the kernel has tcx links.
    #[arg(long)]
    clsact: bool,
    /// How findings are printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Check {
    fn config(&self) -> NodeConfig {
        NodeConfig {
            roll_back: self.roll_back,
            hooks: if self.clsact { Hooks::Clsact } else { Hooks::Auto },
            ..NodeConfig::new(&self.device, &self.bpffs, LISTEN_PORT)
        }
    }
}

#[derive(Debug, Args)]
struct Counters {
    /// The directory of pins that `run` was given.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/sluice")]
    bpffs: PathBuf,
    /// Also the counters that are 0.
    #[arg(long)]
    all: bool,
    /// How they are printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Args)]
struct Worker {
    /// Accept nothing before the first snapshot, however long that takes: another worker does.
    #[arg(long)]
    patient: bool,
    /// How many threads serve.
    #[arg(long, value_parser = threads())]
    threads: u8,
    #[command(flatten)]
    user: WorkerUser,
}

#[derive(Debug, Args)]
struct Uninstall {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    files: Files,
}

impl Cli {
    /// What is logged unless `RUST_LOG` says otherwise. What those that only look have to say is what they print.
    #[must_use]
    pub const fn log_level(&self) -> &'static str {
        match self.command {
            Command::Check(_) | Command::Counters(_) => "off",
            _ => "info",
        }
    }

    /// Does what the command line says.
    ///
    /// # Errors
    /// What could not be done, and what to do about it.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Check(check) => return check::run(&check.config(), check.output),
            Command::Counters(Counters { bpffs, all, output }) => counters::run(&bpffs, all, output)?,
            Command::Worker(Worker { patient, threads, user }) => {
                crate::worker::run(patient, threads, user.user())?;
            }
            Command::Uninstall(Uninstall { node, files }) => {
                agent::uninstall(&node.config(), files.state.as_deref(), files.handover().as_deref())?;
            }
            Command::Run(run) => agent::run(Options {
                node: run.node.config(),
                threads: run.threads.unwrap_or_else(one_each),
                user: run.user.user(),
                name: run.node.node,
                control: run.control,
                handover: run.files.handover(),
                state: run.files.state,
                records: run.records,
            })?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
