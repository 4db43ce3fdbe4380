//! The two places for the proxy's sockets, side by side: does it work, and what does it cost.
//!
//! N: in the node's own network namespace. P: in one of the proxy's own, behind a helper veth. Both with programs that do
//! as little as each needs, and a proxy that only copies; beside them the programs that ship. Called by `main`.

mod habit;
mod stage;

use crate::relay::{Dial, How, Relay};
use crate::table::{machine, spread};
use crate::traffic::{PORT, Sample, Workload, run as traffic};
use crate::world::within;
use anyhow::{Context, Result, bail, ensure};
use habit::{Ends, Habit, Sockets};
use stage::Stage;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const ROUNDS: usize = 9;
const TIME: Duration = Duration::from_millis(400);
/// What can be measured here: a proxy takes connections alone.
const WORKLOADS: [Workload; 3] = [Workload::TcpRr, Workload::TcpCrr, Workload::TcpStream];
/// Where it is measured, and on which nodes.
const MEASURED: [(Ends, Habit); 4] = [
    (Ends::Local, Habit::Plain),
    (Ends::Local, Habit::Conntrack),
    (Ends::Ingress, Habit::Plain),
    (Ends::Ingress, Habit::Conntrack),
];
const SOCKETS: [Sockets; 4] = [Sockets::Nowhere, Sockets::Within, Sockets::Apart, Sockets::Shipped];
/// A connection that is not there by then does not come.
const PATIENCE: Duration = Duration::from_secs(2);
/// What is echoed to see whether a way works: 1 MiB in pieces.
const PIECE: usize = 16 * 1024;
const PIECES: usize = 64;

/// By workload and stage: those of each round, none where it failed.
type Samples = BTreeMap<(Workload, usize), Vec<Option<Sample>>>;

/// Asks both, and prints the tables.
pub(crate) fn run() -> Result<()> {
    let works = works()?;
    let mut stages = Vec::new();
    for (ends, habit) in MEASURED {
        for sockets in SOCKETS {
            stages.push(Stage::build(stages.len(), sockets, ends, habit)?);
        }
    }
    let mut samples = Samples::new();
    for round in 0..ROUNDS {
        eprintln!("round {} of {ROUNDS}", round + 1);
        for workload in WORKLOADS {
            // Each round begins with another one.
            for place in 0..stages.len() {
                let at = (place + round) % stages.len();
                let sample = measure(&stages[at], workload)
                    .inspect_err(|error| eprintln!("{}, {workload:?}: {error:#}", stages[at].shown()));
                samples.entry((workload, at)).or_default().push(sample.ok());
            }
        }
    }
    println!("{}", machine());
    for workload in WORKLOADS {
        print!("{}", costs(&stages, &samples, workload));
    }
    print!("{works}");
    Ok(())
}

fn relay(stage: &Stage, cpu: usize) -> Result<Option<Relay>> {
    let Some((listener, netns)) = &stage.proxy else { return Ok(None) };
    Relay::start(netns, listener, cpu, (How::Copy, Dial::Transparent(stage.mark()))).map(Some)
}

fn measure(stage: &Stage, workload: Workload) -> Result<Sample> {
    let before = kernel_threads();
    let relay = relay(stage, workload.cpus().1)?;
    let sample = traffic(workload, &stage.client, &stage.server, stage.target, TIME);
    let proxy = relay.map(Relay::stop).transpose()?.unwrap_or_default();
    let mut sample = sample?;
    sample.cpu += proxy + kernel_threads().saturating_sub(before);
    Ok(sample)
}

/// CPU time of the kernel's own threads that may work for others: those of work queues and of softirqs.
pub(crate) fn kernel_threads() -> Duration {
    let of = |entry: fs::DirEntry| -> Option<u64> {
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        if !comm.starts_with("kworker") && !comm.starts_with("ksoftirqd") {
            return None;
        }
        let stat = fs::read_to_string(entry.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse().ok()
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    Duration::from_nanos(all.filter_map(of).sum())
}

/// A share of the delays of all rounds, in microseconds: 50 is the median.
pub(crate) fn percentile<'a>(samples: impl Iterator<Item = &'a Sample>, percent: usize) -> f64 {
    let mut delays: Vec<Duration> = samples.flat_map(|sample| sample.delays.iter().copied()).collect();
    delays.sort_unstable();
    let at = delays.len() * percent / 100;
    delays.get(at).map_or(0.0, |delay| delay.as_secs_f64() * 1e6)
}

fn costs(stages: &[Stage], samples: &Samples, workload: Workload) -> String {
    let (name, unit) = workload.words();
    let waits = workload != Workload::TcpStream;
    let delays = if waits { " p50 µs | p99 µs |" } else { "" };
    let places = if waits { "--:|--:|" } else { "" };
    let mut text = format!(
        "\n**{name}**\n\n| ends | node | proxy's sockets | {unit}/s, median (least–most) | CPU µs, median | of N |{delays} rounds that hung |\n\
         |---|---|---|--:|--:|--:|{places}--:|\n"
    );
    for (at, stage) in stages.iter().enumerate() {
        let rounds = &samples[&(workload, at)];
        let own = || rounds.iter().flatten();
        // Each group has them in this order.
        let within = &samples[&(workload, at - at % SOCKETS.len() + 1)];
        let [low, rate, high] = spread(own().map(Sample::rate));
        let [_, nanos, _] = spread(own().map(Sample::nanos));
        // Round by round: what the machine did meanwhile is in both.
        let pairs = rounds.iter().zip(within).filter_map(|(own, within)| own.as_ref().zip(within.as_ref()));
        let [_, of, _] = spread(pairs.map(|(own, within)| own.nanos() / within.nanos()));
        let hung = rounds.iter().filter(|round| round.is_none()).count();
        let (ends, habit, sockets) = (stage.ends.name(), stage.habit.name(), stage.sockets.name());
        text += &format!(
            "| {ends} | {habit} | {sockets} | {rate:.0} ({low:.0}–{high:.0}) | {:.1} | {:.1} % |",
            nanos / 1e3,
            of * 100.0
        );
        if waits {
            text += &format!(" {:.1} | {:.1} |", percentile(own(), 50), percentile(own(), 99));
        }
        text += &format!(" {hung} |");
        text.push('\n');
    }
    text
}

/// On which nodes each way works at all.
fn works() -> Result<String> {
    let ways = [Sockets::Within, Sockets::Apart, Sockets::Shipped];
    let mut text =
        String::from("\n**Whether 1 MiB there and back arrives, from the client's own address**\n\n");
    text += &format!("| node | ends | {} |\n|---|---|---|---|---|\n", ways.map(Sockets::name).join(" | "));
    for habit in Habit::ALL {
        // Between pods of one node there is no tunnel.
        for ends in Ends::ALL.into_iter().filter(|ends| *ends != Ends::Local || !habit.tunnels()) {
            let mut answers = Vec::new();
            for sockets in ways {
                let stage = Stage::build(0, sockets, ends, habit)?;
                answers.push(match passes(&stage) {
                    Ok(()) => "yes".to_owned(),
                    Err(error) => {
                        eprintln!("{habit:?} {ends:?} {sockets:?}: {error:#}");
                        "**no**".to_owned()
                    }
                });
            }
            text += &format!("| {} | {} | {} |\n", habit.name(), ends.name(), answers.join(" | "));
        }
    }
    Ok(text)
}

fn passes(stage: &Stage) -> Result<()> {
    let relay = relay(stage, 0)?;
    let listener = within(&stage.server, || TcpListener::bind((IpAddr::from([0, 0, 0, 0]), PORT)))??;
    let echoed = std::thread::scope(|scope| {
        let server = scope.spawn(|| echo(&listener, stage.source.into()));
        let client = within(&stage.client, || ask((stage.target, PORT).into()))?;
        // A client that failed leaves its server waiting for as long as it waits itself.
        let server = server.join().map_err(|_| anyhow::anyhow!("the server panicked"))?;
        client.and(server)
    });
    if let Some(relay) = relay {
        relay.stop()?;
    }
    echoed
}

fn echo(listener: &TcpListener, from: IpAddr) -> Result<()> {
    socket2::SockRef::from(listener).set_read_timeout(Some(PATIENCE))?;
    let (mut stream, peer) = listener.accept().context("nobody came")?;
    ensure!(peer.ip() == from, "the server sees {peer} and not {from}");
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut piece = vec![0; PIECE];
    for _ in 0..PIECES {
        stream.read_exact(&mut piece)?;
        stream.write_all(&piece)?;
    }
    Ok(())
}

fn ask(target: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut back = vec![0; PIECE];
    for number in 0..PIECES {
        let piece = vec![u8::try_from(number)?; PIECE];
        stream.write_all(&piece)?;
        stream.read_exact(&mut back)?;
        if back != piece {
            bail!("what came back is not what was sent");
        }
    }
    Ok(())
}
