//! The loader is killed at every step of opening a node and of applying a snapshot; real packets say what is in force
//! after it, and what is once the next loader has started.
//!
//! The victim is a process of its own: this same binary, told by [`ORDER`] what to do and at which step to die.

use crate::peers::UdpServer;
use crate::rig::Rig;
use crate::rules::{self, Line, closed, egress, ingress, udp};
use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sluice_policy::{Direction, Snapshot};
use sluice_redirect::{Hooks, Node, NodeConfig};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use sluice_tests::{Pod, PodSpec};
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Names the file that says what a child does.
pub(crate) const ORDER: &str = "SLUICE_CRASH_ORDER";
/// More steps than any way through has: a loop that does not end is a mistake.
const MAX_STEPS: usize = 100;
/// Fewer steps than this are too few to have named them all: of a process that begins, and of one that goes on.
const MIN_STEPS: [usize; 2] = [15, 4];
/// The files with the snapshots that a victim has put in force before its steps are counted, and the one after.
const BEGUN: [&str; 2] = ["first", "second"];
const SNAPSHOT: &str = "snapshot";
/// What the victim says when it has come to where its steps are counted.
const READY: &str = "ready";
/// How long a datagram that must not come is waited for. Everything is on this machine.
const NOTHING: Duration = Duration::from_millis(40);
/// How long one that must come may take.
const ANSWER: Duration = Duration::from_secs(5);

pub(crate) fn tests() -> Vec<Trial> {
    let test =
        |name: &str, case: Case| harness::test(format!("crash: {name}"), [Need::Bpf], move || run(case));
    vec![
        test("a policy changes", changed()),
        test("a pod is added", added()),
        test("a pod is removed", removed()),
        test("a node starts for the first time", first()),
        test("profiles and classes move", moved()),
        test("a pod is added, by filters", Case { hooks: Hooks::Clsact, ..added() }),
        test("a policy changes, of a process that knows the slot", Case { again: true, ..changed() }),
        test("a pod is removed, of a process that knows the slot", Case { again: true, ..removed() }),
        test("profiles and classes move, of a process that knows the slot", Case { again: true, ..moved() }),
    ]
}

/// What a packet does, and under which of the two snapshots it may pass.
struct Probe {
    from: &'static str,
    to: &'static str,
    port: u16,
    before: bool,
    after: bool,
    /// Passes at every moment, if it does under both.
    steady: bool,
}

fn probe(from: &'static str, to: &'static str, port: u16, before: bool, after: bool) -> Probe {
    // Between the rows that do not know it any more and the end of its hooks it is cut off; and while it has one hook
    // alone, that one has not seen the packet that it sees the answer to.
    let steady = ![from, to].contains(&"a/late");
    Probe { from, to, port, before, after, steady }
}

struct Case {
    /// `None`: nothing of ours has ever been there.
    before: Option<(Vec<Line>, bool)>,
    /// The rules, and whether `a/late` is an endpoint.
    after: (Vec<Line>, bool),
    probes: Vec<Probe>,
    /// The new snapshot has other numbers for the same things.
    renumber: u32,
    /// How hooks are attached.
    hooks: Hooks,
    /// The victim has put snapshots in force before, and writes over what it has written itself.
    again: bool,
}

fn changed() -> Case {
    let server = |ports: [u16; 2]| ports.map(|port| ingress("a/server", "a/client", udp(port)));
    let other = closed("a/other", Direction::Egress);
    Case {
        before: Some(([&server([1001, 1003])[..], std::slice::from_ref(&other)].concat(), true)),
        after: ([&server([1002, 1003])[..], &[other]].concat(), true),
        probes: vec![
            probe("a/client", "a/server", 1001, true, false),
            probe("a/client", "a/server", 1002, false, true),
            probe("a/client", "a/server", 1003, true, true),
            probe("a/client", "a/server", 1004, false, false),
            probe("a/other", "b/remote", 1001, false, false),
            probe("a/late", "b/remote", 1001, true, true),
        ],
        renumber: 0,
        hooks: Hooks::Tcx,
        again: false,
    }
}

fn late() -> Vec<Line> {
    vec![
        ingress("a/late", "a/client", udp(1001)),
        egress("a/late", "b/remote", udp(1001)),
        closed("a/other", Direction::Egress),
    ]
}

fn added() -> Case {
    Case {
        before: Some((vec![closed("a/other", Direction::Egress)], false)),
        after: (late(), true),
        probes: vec![
            probe("a/client", "a/late", 1001, true, true),
            probe("a/client", "a/late", 1002, true, false),
            probe("a/late", "b/remote", 1002, true, false),
            probe("a/other", "a/late", 1001, false, false),
        ],
        renumber: 0,
        hooks: Hooks::Tcx,
        again: false,
    }
}

fn removed() -> Case {
    let mut case = added();
    case.before = Some((late(), true));
    case.after = (vec![closed("a/other", Direction::Egress)], false);
    for probe in &mut case.probes {
        std::mem::swap(&mut probe.before, &mut probe.after);
    }
    case
}

fn first() -> Case {
    Case {
        before: None,
        after: (late(), true),
        probes: vec![
            probe("a/client", "a/late", 1001, true, true),
            probe("a/client", "a/late", 1002, true, false),
            probe("a/late", "b/remote", 1002, true, false),
            probe("a/other", "a/late", 1001, true, false),
        ],
        renumber: 0,
        hooks: Hooks::Tcx,
        again: false,
    }
}

/// The same rules, but what was one class or profile is now another: a mixture of two generations would show.
fn moved() -> Case {
    let lines = vec![ingress("a/server", "a/client", udp(1001)), closed("a/other", Direction::Egress)];
    Case {
        before: Some((lines.clone(), true)),
        after: (lines, true),
        probes: vec![
            probe("a/client", "a/server", 1001, true, true),
            probe("a/client", "a/server", 1002, false, false),
            probe("a/late", "a/server", 1001, false, false),
            probe("a/other", "b/remote", 1001, false, false),
            probe("a/late", "b/remote", 1001, true, true),
        ],
        renumber: 1,
        hooks: Hooks::Tcx,
        again: false,
    }
}

/// The world of a case, and who answers in it.
struct Stage {
    rig: Rig,
    case: Case,
    before: Option<Snapshot>,
    after: Snapshot,
    servers: Vec<(String, Family, u16, UdpServer)>,
}

fn run(case: Case) -> Result<()> {
    let mut stage = Stage::build(case)?;
    drop(stage.rig.take("n1"));
    stage.open()?;
    for step in 1..=MAX_STEPS {
        stage.begin().with_context(|| format!("before step {step}"))?;
        let victim = stage.victim(step).with_context(|| format!("before step {step}"))?;
        let unwanted = stage.arrived_unwanted();
        let stop = AtomicBool::new(false);
        let died = std::thread::scope(|scope| {
            let flood = scope.spawn(|| stage.flood(&stop));
            let died = last_words(victim);
            stop.store(true, Ordering::SeqCst);
            flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            died
        })?;
        let what = died.clone().unwrap_or_else(|| "lived".to_owned());
        let what = || format!("step {step}: {what}");
        ensure!(stage.arrived_unwanted() == unwanted, "{}: a packet passed that neither allows", what());
        let done = died.is_none();
        stage
            .check(|probe| if done { (probe.after, probe.after) } else { probe.either() })
            .with_context(what)?;
        // The next loader finds what the one before left, and puts the same snapshot in force.
        stage.open().with_context(what)?;
        stage
            .check(|probe| if done { (probe.after, probe.after) } else { probe.either() })
            .with_context(what)?;
        stage.forget_the_neighbours()?;
        let after = stage.after.clone();
        let applied = stage.rig.put("n1", &after).with_context(what)?;
        ensure!(applied.missing.is_empty() && applied.problems.is_empty(), "{}: {applied:?}", what());
        stage.check(|probe| (probe.after, probe.after)).with_context(what)?;
        stage.leftovers().with_context(what)?;
        if done {
            ensure!(step > MIN_STEPS[usize::from(stage.case.again)], "only {step} steps");
            return Ok(());
        }
    }
    bail!("more than {MAX_STEPS} steps")
}

impl Probe {
    /// At least, at most: whether it passes while nobody knows which of the two snapshots is in force.
    const fn either(&self) -> (bool, bool) {
        (self.before && self.after && self.steady, self.before || self.after)
    }
}

impl Stage {
    fn build(case: Case) -> Result<Self> {
        let mut rig = Rig::routed()?;
        rig.world.add_pod(&PodSpec::new("n1", "a/late"))?;
        let snapshot = |generation: u64, (lines, late): &(Vec<Line>, bool)| {
            let mut snapshot = rules::snapshot(&rig.world, "n1", generation, lines);
            if !late {
                let all = snapshot.endpoints.iter();
                snapshot.endpoints = all.filter(|e| &*e.workload.pod != "late").cloned().collect();
            }
            snapshot
        };
        let before = case.before.as_ref().map(|before| snapshot(1, before));
        let mut after = snapshot(2, &case.after);
        if case.renumber != 0 {
            rules::renumber(&mut after, case.renumber);
        }
        let mut servers = Vec::new();
        for probe in &case.probes {
            for family in Family::BOTH {
                let pod = rig.pod(probe.to);
                if !servers
                    .iter()
                    .any(|(to, at, port, _)| to == probe.to && *at == family && *port == probe.port)
                {
                    let server = UdpServer::start(&pod.netns, SocketAddr::new(pod.ip(family), probe.port))?;
                    servers.push((probe.to.to_owned(), family, probe.port, server));
                }
            }
        }
        Ok(Self { rig, case, before, after, servers })
    }

    fn open(&mut self) -> Result<()> {
        let config = NodeConfig { hooks: self.case.hooks, ..self.rig.config("n1") };
        self.rig.open_with("n1", config)
    }

    /// The state that the victim finds. What ran before still runs.
    fn begin(&mut self) -> Result<()> {
        let config = self.rig.config("n1");
        if let Some(before) = self.before.clone() {
            // The slot that the victim writes to holds a generation that allows everything: to put that in force, or
            // a part of it, shows.
            let everything = rules::snapshot(&self.rig.world, "n1", 0, &[]);
            self.rig.put("n1", &everything)?;
            self.rig.put("n1", &before)?;
            self.check(|probe| (probe.before, probe.before))?;
            drop(self.rig.take("n1"));
            return Ok(());
        }
        drop(self.rig.take("n1"));
        let netns = self.rig.world.node("n1").netns.clone();
        Ok(netns.inside(|| Node::uninstall(&config))??)
    }

    /// Starts the victim, up to where it waits to be told to go on.
    fn victim(&self, step: usize) -> Result<Child> {
        let config = NodeConfig { hooks: self.case.hooks, ..self.rig.config("n1") };
        let everything = rules::snapshot(&self.rig.world, "n1", 0, &[]);
        let begun: Vec<&Snapshot> = match &self.before {
            Some(before) if self.case.again => vec![&everything, before],
            _ => Vec::new(),
        };
        Victim::with(&self.rig, &config, &begun, &self.after)?.start("open", step)
    }

    /// The place of a probe's server among them.
    fn server(&self, probe: &Probe, family: Family) -> usize {
        let is = |(to, at, port, _): &(String, Family, u16, UdpServer)| {
            to == probe.to && *at == family && *port == probe.port
        };
        self.servers.iter().position(is).expect("a server for each probe")
    }

    /// Sends every probe, from a port of its own and from one that is always the same, all at once.
    fn check(&self, bounds: impl Fn(&Probe) -> (bool, bool)) -> Result<()> {
        let arrived = || -> Vec<usize> {
            self.servers.iter().map(|(.., server)| server.datagrams.load(Ordering::SeqCst)).collect()
        };
        let (before, mut most_at) = (arrived(), vec![0; self.servers.len()]);
        let mut sent = Vec::new();
        for (number, probe) in (0..).zip(&self.case.probes) {
            for (family, local) in Family::BOTH.into_iter().flat_map(|f| [(f, 0), (f, 3000 + number)]) {
                let from: &Pod = self.rig.pod(probe.from);
                let (local, target) =
                    (SocketAddr::new(from.ip(family), local), self.rig.at(probe.to, family, probe.port));
                let socket =
                    from.netns.inside(|| UdpSocket::bind(local))?.with_context(|| local.to_string())?;
                socket.send_to(b"ping", target)?;
                most_at[self.server(probe, family)] += usize::from(bounds(probe).1);
                sent.push((probe, format!("{} to {target} from {local}", probe.from), socket));
            }
        }
        // Those that must be answered first: by then the others have had their time, and a little more.
        let passed = |must: bool, deadline| -> Result<()> {
            for (probe, what, socket) in &sent {
                let (least, most) = bounds(probe);
                if least == must {
                    socket.set_read_timeout(Some(deadline))?;
                    let answered = socket.recv(&mut [0; 16]).is_ok();
                    ensure!(answered || !least, "{what} must pass and does not");
                    ensure!(most || !answered, "{what} passes and must not");
                }
            }
            Ok(())
        };
        passed(true, ANSWER)?;
        std::thread::sleep(NOTHING);
        passed(false, Duration::from_millis(1))?;
        for ((before, after), (most, (to, _, port, _))) in
            before.iter().zip(arrived()).zip(most_at.iter().zip(&self.servers))
        {
            ensure!(
                after - before <= *most,
                "{} datagrams came to {to}:{port}, at most {most} may",
                after - before
            );
        }
        Ok(())
    }

    /// What neither snapshot allows is tried without end.
    fn flood(&self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::SeqCst) {
            for probe in self.case.probes.iter().filter(|probe| !probe.before && !probe.after) {
                for family in Family::BOTH {
                    let (from, target) =
                        (self.rig.pod(probe.from), self.rig.at(probe.to, family, probe.port));
                    from.netns.inside(|| -> Result<()> {
                        let socket = UdpSocket::bind(SocketAddr::new(from.ip(family), 0))?;
                        for _ in 0..20 {
                            socket.send_to(b"ping", target)?;
                        }
                        Ok(())
                    })??;
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn arrived_unwanted(&self) -> usize {
        let never = self.case.probes.iter().filter(|probe| {
            let same = |other: &&Probe| other.to == probe.to && other.port == probe.port;
            self.case.probes.iter().filter(same).all(|probe| !probe.before && !probe.after)
        });
        let all = never.flat_map(|probe| Family::BOTH.map(|family| self.server(probe, family)));
        all.map(|server| self.servers[server].3.datagrams.load(Ordering::SeqCst)).sum()
    }

    /// While a pod is cut off, who looks for it keeps what is meant for it, and so does the pod with what it would send:
    /// it would come when the neighbour is found, and be counted then.
    fn forget_the_neighbours(&self) -> Result<()> {
        let pods = ["a/client", "a/server", "a/other", "a/late"].map(|pod| &self.rig.pod(pod).netns);
        for netns in pods.into_iter().chain([&self.rig.world.node("n1").netns]) {
            netns.run(&["ip", "neigh", "flush", "all"])?;
        }
        Ok(())
    }

    /// Nothing is pinned but what the snapshot needs.
    fn leftovers(&self) -> Result<()> {
        if self.case.hooks == Hooks::Clsact {
            return Ok(());
        }
        let links = self.rig.config("n1").bpffs.join(format!("v{}/links", sluice_redirect::ABI_VERSION));
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&links)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        ensure!(names.len() == self.after.endpoints.len() * 2, "pinned: {names:?}");
        ensure!(names.iter().all(|name| !name.ends_with("-new")), "half done: {names:?}");
        Ok(())
    }
}

/// A process of its own that opens a node and puts a snapshot in force, or takes everything away, and dies on the way.
pub(crate) struct Victim {
    order: PathBuf,
    lines: Vec<String>,
}

impl Victim {
    /// On `n1` of a rig, to be opened with this, by these rules.
    pub(crate) fn new(rig: &Rig, config: &NodeConfig, lines: &[Line]) -> Result<Self> {
        Self::with(rig, config, &[], &rules::snapshot(&rig.world, "n1", 2, lines))
    }

    /// The same, which has put others in force before.
    fn with(rig: &Rig, config: &NodeConfig, begun: &[&Snapshot], snapshot: &Snapshot) -> Result<Self> {
        let directory = rig.world.dir();
        for (name, snapshot) in BEGUN.iter().zip([begun.first(), begun.get(1)]) {
            let bytes = snapshot.map(|snapshot| sluice_wire::to_bytes(snapshot)).unwrap_or_default();
            std::fs::write(directory.join(name), bytes)?;
        }
        std::fs::write(directory.join(SNAPSHOT), sluice_wire::to_bytes(snapshot))?;
        let lines = vec![
            rig.world.node("n1").netns.path().display().to_string(),
            config.name.clone(),
            config.bpffs.display().to_string(),
            config.listen_port.to_string(),
            directory.display().to_string(),
            format!("{:?}", config.hooks),
        ];
        Ok(Self { order: rig.world.dir().join("order"), lines })
    }

    /// Lets it die at a step of opening and applying; what it died after, or nothing if it came to its end.
    pub(crate) fn die(&mut self, step: usize) -> Result<Option<String>> {
        last_words(self.start("open", step)?)
    }

    /// The same of taking everything away.
    pub(crate) fn uninstall(&mut self, step: usize) -> Result<Option<String>> {
        last_words(self.start("uninstall", step)?)
    }

    /// Up to where it waits to be told to go on.
    fn start(&self, what: &str, step: usize) -> Result<Child> {
        let order = [&self.lines[..], &[step.to_string(), what.to_owned()]].concat();
        std::fs::write(&self.order, order.join("\n"))?;
        let mut command = Command::new("/proc/self/exe");
        command.env(ORDER, &self.order);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut victim = command.spawn().context("start the victim")?;
        let mut said = String::new();
        BufReader::new(victim.stdout.take().context("its output")?).read_line(&mut said)?;
        if said.trim() != READY {
            let output = victim.wait_with_output()?;
            bail!("the victim failed: {said} {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(victim)
    }
}

/// Lets the victim go on; what it died after, or nothing if it came to its end.
fn last_words(mut victim: Child) -> Result<Option<String>> {
    // What it waits for is the end of its input.
    drop(victim.stdin.take());
    let output = victim.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match (output.status.success(), output.status.signal()) {
        (true, _) => Ok(None),
        (_, Some(9)) if said.contains("dies after") => Ok(Some(said)),
        _ => bail!("the victim failed: {said}"),
    }
}

/// What the victim does.
pub(crate) fn child(order: &Path) -> ExitCode {
    match obey(order) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn obey(order: &Path) -> Result<()> {
    let text = std::fs::read_to_string(order)?;
    let [netns, name, bpffs, port, directory, hooks, step, what] = text.lines().collect::<Vec<_>>()[..]
    else {
        bail!("an order of other lines: {text}");
    };
    let read = |name: &str| -> Result<Option<Snapshot>> {
        let bytes = std::fs::read(Path::new(directory).join(name))?;
        if bytes.is_empty() { Ok(None) } else { Ok(Some(sluice_wire::from_bytes(&bytes)?)) }
    };
    let [first, second, after] = [read(BEGUN[0])?, read(BEGUN[1])?, read(SNAPSHOT)?];
    let netns = std::fs::File::open(netns)?;
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
    let hooks = if hooks == "Clsact" { Hooks::Clsact } else { Hooks::Tcx };
    let config = NodeConfig { hooks, ..NodeConfig::new(name, bpffs, port.parse()?) };
    let begun: Vec<Snapshot> = [first, second].into_iter().flatten().collect();
    let mut node = if begun.is_empty() { None } else { Some(Node::open(config.clone())?) };
    for snapshot in &begun {
        node.as_mut().context("a node")?.apply(snapshot)?;
    }
    println!("{READY}");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    sluice_redirect::crash::arm(step.parse()?);
    if what == "uninstall" {
        return Ok(Node::uninstall(&config)?);
    }
    let mut node = match node {
        Some(node) => node,
        None => Node::open(config)?,
    };
    let applied = node.apply(&after.context("a snapshot")?)?;
    ensure!(applied.missing.is_empty() && applied.problems.is_empty(), "{applied:?}");
    Ok(())
}
