//! The proxy's two legs joined in the kernel by a sockmap, beside ways of copying: what each costs, and whether what
//! was sent arrives.
//!
//! A proxy that reads nothing, between a client and a server; never a pod's own socket in a map. Called by `main`.

mod right;

use crate::arrangements::{kernel_threads, percentile};
use crate::join::Joint;
use crate::relay::{Dial, How, Relay};
use crate::table::{machine, spread};
use crate::traffic::{PORT, Sample, Workload, run as traffic};
use crate::world::{SERVER, feed, links, tear_down, within};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const ROUNDS: usize = 9;
const TIME: Duration = Duration::from_millis(400);
const WORKLOADS: [Workload; 3] = [Workload::TcpRr, Workload::TcpCrr, Workload::TcpStream];
/// Where the proxy listens, on the node.
const PROXY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// How the proxy passes bytes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// There is none.
    Direct,
    Copy,
    Splice,
    UserSpace,
    SockOps,
}

impl Way {
    const ALL: [Self; 5] = [Self::Direct, Self::Copy, Self::Splice, Self::UserSpace, Self::SockOps];

    const fn name(self) -> &'static str {
        match self {
            Self::Direct => "no proxy",
            Self::Copy => "`copy_bidirectional`",
            Self::Splice => "splice(2)",
            Self::UserSpace => "sockmap, put there by the proxy",
            Self::SockOps => "sockmap, put there by sockops",
        }
    }
}

/// A client, a server and a proxy between them.
struct Stage {
    prefix: String,
    way: Way,
    client: File,
    server: File,
    /// Where the client goes.
    target: Ipv4Addr,
    proxy: Option<(TcpListener, File, How)>,
}

impl Stage {
    fn build(number: usize, way: Way, cgroup: &Cgroup) -> Result<Self> {
        let prefix = format!("slj-{:x}-{number}", std::process::id());
        links(&prefix)?;
        let open = |role: &str| File::open(format!("/run/netns/{prefix}-{role}"));
        let (client, server, node) = (open("client")?, open("server")?, open("node")?);
        let mut stage = Self { prefix, way, client, server, target: SERVER, proxy: None };
        if way == Way::Direct {
            return Ok(stage);
        }
        let at = format!("addr add {PROXY}/32 dev lo\n");
        feed(&["ip", "-n", &format!("{}-node", stage.prefix), "-batch", "-"], &at)?;
        let how = match way {
            Way::Splice => How::Splice,
            Way::UserSpace => How::Joined(Arc::new(Joint::new(None)?)),
            Way::SockOps => {
                let netns = within(&node, netns_cookie)??;
                How::Joined(Arc::new(Joint::new(Some((&cgroup.file, netns)))?))
            }
            _ => How::Copy,
        };
        let listener = within(&node, || TcpListener::bind((PROXY, PORT)))??;
        (stage.target, stage.proxy) = (PROXY, Some((listener, node, how)));
        Ok(stage)
    }

    fn relay(&self, cpu: usize) -> Result<Option<Relay>> {
        let Some((listener, netns, how)) = &self.proxy else { return Ok(None) };
        Relay::start(netns, listener, cpu, (how.clone(), Dial::Fixed((SERVER, PORT).into()))).map(Some)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        tear_down(&self.prefix);
    }
}

/// A cgroup of this process's own, since a sockops program is attached to one; gone with the value.
struct Cgroup {
    root: PathBuf,
    own: PathBuf,
    file: File,
}

impl Cgroup {
    fn enter() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = mounts.find(|words| words.get(2) == Some(&"cgroup2"));
        let mount = mount.context("no cgroup2 is mounted: a sockops program needs one")?;
        let groups = fs::read_to_string("/proc/self/cgroup")?;
        let now = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let root = PathBuf::from(mount[1]).join(now);
        let own = root.join(format!("slj-{:x}", std::process::id()));
        fs::create_dir(&own).with_context(|| format!("make {}", own.display()))?;
        let file = File::open(&own)?;
        let cgroup = Self { root, own, file };
        fs::write(cgroup.own.join("cgroup.procs"), std::process::id().to_string())?;
        Ok(cgroup)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.root.join("cgroup.procs"), std::process::id().to_string());
        let _ = fs::remove_dir(&self.own);
    }
}

/// The cookie of this thread's network namespace.
fn netns_cookie() -> Result<u64> {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (mut cookie, mut size) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `size` bytes into the word, which lives for the call.
    let done = unsafe {
        let value = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, value, &raw mut size)
    };
    if done == 0 {
        Ok(cookie)
    } else {
        Err(std::io::Error::last_os_error()).context("SO_NETNS_COOKIE (Linux 5.14)")
    }
}

/// Asks all, and prints the tables.
pub(crate) fn run() -> Result<()> {
    let cgroup = Cgroup::enter()?;
    let build = |(number, way)| Stage::build(number, way, &cgroup);
    let stages = Way::ALL.into_iter().enumerate().map(build).collect::<Result<Vec<_>>>()?;
    let mut right = String::new();
    for stage in &stages {
        right += &right::row(stage)?;
    }
    let mut samples = vec![vec![Vec::new(); stages.len()]; WORKLOADS.len()];
    for round in 0..ROUNDS {
        eprintln!("round {} of {ROUNDS}", round + 1);
        for (workload, samples) in WORKLOADS.into_iter().zip(&mut samples) {
            for place in 0..stages.len() {
                let at = (place + round) % stages.len();
                let sample = measure(&stages[at], workload)
                    .inspect_err(|error| eprintln!("{:?}, {workload:?}: {error:#}", stages[at].way));
                samples[at].push(sample.ok());
            }
        }
    }
    println!("{}", machine());
    for (workload, samples) in WORKLOADS.into_iter().zip(&samples) {
        print!("{}", costs(workload, samples));
    }
    print!("{}{right}", right::HEAD);
    Ok(())
}

fn measure(stage: &Stage, workload: Workload) -> Result<Sample> {
    let before = kernel_threads();
    let relay = stage.relay(workload.cpus().1)?;
    let sample = traffic(workload, &stage.client, &stage.server, stage.target, TIME);
    let proxy = relay.map(Relay::stop).transpose()?.unwrap_or_default();
    let mut sample = sample?;
    sample.cpu += proxy + kernel_threads().saturating_sub(before);
    Ok(sample)
}

fn costs(workload: Workload, samples: &[Vec<Option<Sample>>]) -> String {
    let (name, unit) = workload.words();
    let copied = &samples[1];
    let mut text = format!(
        "\n**{name}**\n\n| bytes go by | {unit}/s, median (least–most) | CPU µs, median | of copying | p50 µs | p99 µs | \
         rounds that failed |\n|---|--:|--:|--:|--:|--:|--:|\n"
    );
    for (way, rounds) in Way::ALL.into_iter().zip(samples) {
        let own = || rounds.iter().flatten();
        let [low, rate, high] = spread(own().map(Sample::rate));
        let [_, nanos, _] = spread(own().map(Sample::nanos));
        let pairs = rounds.iter().zip(copied).filter_map(|(own, copied)| own.as_ref().zip(copied.as_ref()));
        let [_, of, _] = spread(pairs.map(|(own, copied)| own.nanos() / copied.nanos()));
        let failed = rounds.iter().filter(|round| round.is_none()).count();
        let delay = |percent| match percentile(own(), percent) {
            0.0 => "–".to_owned(),
            micros => format!("{micros:.1}"),
        };
        text += &format!(
            "| {} | {rate:.0} ({low:.0}–{high:.0}) | {:.1} | {:.1} % | {} | {} | {failed} |\n",
            way.name(),
            nanos / 1e3,
            of * 100.0,
            delay(50),
            delay(99)
        );
    }
    text
}
