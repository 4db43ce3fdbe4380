//! One round: every pair of pods tries every port at once, and what came is compared with what must come.
//!
//! All is sent and read by one thread that stays on one CPU, whose packets the kernel keeps in order all the way
//! through a veth. So when the marker, which always passes, has come, what was sent before it has come or never will:
//! a packet that must not arrive costs no wait. What must arrive is waited for. Called by the stage.

use crate::case::{CasePod, MARKER, Protocol};
use crate::sockets::{Came, Sockets, canonical, client, connect, end, mapped, ready};
use anyhow::{Context, Result, ensure};
use sluice_tests::world::Family;
use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// How long what must come may take: only something broken takes so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the thread rests where nothing new came.
const REST: Duration = Duration::from_micros(200);
/// Source ports of rounds: each has one, so that nothing of an earlier round is taken for this one's.
const FIRST_PORT: u16 = 2_000;
const LAST_PORT: u16 = 32_000;

/// One opening packet that is sent.
#[derive(Debug)]
pub(crate) struct Probe {
    /// By its place among the pods.
    pub(crate) from: usize,
    /// To whom.
    pub(crate) to: usize,
    /// Over which.
    pub(crate) family: Family,
    /// On what.
    pub(crate) protocol: Protocol,
    /// And where.
    pub(crate) port: u16,
    /// Whether it must arrive.
    pub(crate) passes: bool,
    stream: Option<TcpStream>,
    arrived: bool,
    answered: bool,
}

impl Probe {
    /// One that was not sent yet.
    pub(crate) fn new((from, to): (usize, usize), family: Family, at: (Protocol, u16), passes: bool) -> Self {
        let (protocol, port) = at;
        Self { from, to, family, protocol, port, passes, stream: None, arrived: false, answered: false }
    }

    /// Whether what came of it is what must come. What arrives is answered, and what is answered is told.
    fn right(&self) -> bool {
        self.arrived == self.passes && self.answered == self.passes
    }
}

/// A round under way.
struct Round<'s> {
    pods: &'s [CasePod],
    sockets: Vec<&'s Sockets>,
    probes: Vec<Probe>,
    udp: Vec<UdpSocket>,
    sport: u16,
    /// The probe of an opening packet that comes to a pod.
    openings: HashMap<(usize, Came), usize>,
    /// The probe of an answer.
    answers: HashMap<(usize, Came), usize>,
    markers: HashSet<(usize, SocketAddr)>,
    strays: Vec<String>,
}

/// Sends the probes and says what came otherwise than it must. `number` is the round's among all of them.
pub(crate) fn run(
    pods: &[CasePod],
    sockets: Vec<&Sockets>,
    probes: Vec<Probe>,
    number: usize,
) -> Result<Vec<String>> {
    let ports = usize::from(LAST_PORT - FIRST_PORT);
    let sport = FIRST_PORT + u16::try_from(number % ports)?;
    let mut round = Round {
        pods,
        sockets,
        probes,
        udp: Vec::new(),
        sport,
        openings: HashMap::new(),
        answers: HashMap::new(),
        markers: HashSet::new(),
        strays: Vec::new(),
    };
    round.send()?;
    round.mark()?;
    let marked = round.wait(|round| round.markers.is_empty())?;
    ensure!(marked, "the marker did not pass: {:?}", round.markers);
    // An answer to what passed. What must not pass has come by now, or never will.
    round.wait(|round| round.probes.iter().all(|probe| !probe.passes || probe.right()))?;
    round.finish()
}

impl Round<'_> {
    fn address(&self, pod: usize, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(family.pick(self.pods[pod].v4, self.pods[pod].v6()), port)
    }

    fn send(&mut self) -> Result<()> {
        for from in 0..self.pods.len() {
            self.sockets[from].enter()?;
            self.udp.push(client(self.sport)?);
            for number in 0..self.probes.len() {
                if self.probes[number].from == from {
                    self.send_one(number)?;
                }
            }
            // Before the queues are full.
            self.read()?;
        }
        Ok(())
    }

    fn send_one(&mut self, number: usize) -> Result<()> {
        let Probe { from, to, family, protocol, port, .. } = self.probes[number];
        let target = self.address(to, family, port);
        let mut sport = self.sport;
        match protocol {
            Protocol::Tcp => {
                let stream = connect(target)?;
                sport = stream.local_addr()?.port();
                self.probes[number].stream = Some(stream);
            }
            Protocol::Udp => self.datagram(from, target)?,
            Protocol::Sctp => self.sockets[from].init(target, sport, u32::try_from(number)? + 1)?,
        }
        let own = self.address(from, family, sport);
        self.openings.insert((to, Came { protocol, opens: true, from: own, port }), number);
        let opens = protocol == Protocol::Udp;
        self.answers.insert((from, Came { protocol, opens, from: target, port: sport }), number);
        Ok(())
    }

    fn datagram(&self, from: usize, target: SocketAddr) -> Result<()> {
        ready(self.udp[from].send_to(b"probe", mapped(target)))
            .with_context(|| format!("{} to {target}", self.pods[from].key))?;
        Ok(())
    }

    fn mark(&mut self) -> Result<()> {
        for (from, to) in (0..self.pods.len()).flat_map(|from| (0..self.pods.len()).map(move |to| (from, to)))
        {
            for family in Family::BOTH {
                self.datagram(from, self.address(to, family, MARKER))?;
                self.markers.insert((to, self.address(from, family, self.sport)));
            }
        }
        Ok(())
    }

    /// Reads until a condition holds; whether it came to hold.
    fn wait(&mut self, holds: impl Fn(&Self) -> bool) -> Result<bool> {
        let end = Instant::now() + PATIENCE;
        loop {
            self.read()?;
            if holds(self) {
                return Ok(true);
            }
            if Instant::now() > end {
                return Ok(false);
            }
            std::thread::sleep(REST);
        }
    }

    fn read(&mut self) -> Result<()> {
        for pod in 0..self.pods.len() {
            for came in self.sockets[pod].drain()? {
                self.take(pod, came);
            }
            let Some(udp) = self.udp.get(pod) else { continue };
            let mut buffer = [0; 64];
            let mut answers = Vec::new();
            while let Some((_, from)) = ready(udp.recv_from(&mut buffer))? {
                answers.push(canonical(from));
            }
            for from in answers {
                self.take(pod, Came { protocol: Protocol::Udp, opens: true, from, port: self.sport });
            }
        }
        for probe in self.probes.iter_mut().filter(|probe| !probe.answered) {
            probe.answered = probe.stream.as_ref().is_some_and(|stream| stream.peer_addr().is_ok());
        }
        Ok(())
    }

    fn take(&mut self, pod: usize, came: Came) {
        if came.protocol == Protocol::Udp && came.port == MARKER {
            self.markers.remove(&(pod, came.from));
        } else if let Some(number) = self.openings.get(&(pod, came)) {
            self.probes[*number].arrived = true;
        } else if let Some(number) = self.answers.get(&(pod, came)) {
            self.probes[*number].answered = true;
        } else {
            self.strays.push(format!("{} was sent what nobody sends: {came:?}", self.pods[pod].key));
        }
    }

    fn finish(self) -> Result<Vec<String>> {
        let mut wrong = self.strays;
        for probe in self.probes {
            if !probe.right() {
                let (from, to) = (&self.pods[probe.from].key, &self.pods[probe.to].key);
                let must = if probe.passes { "must pass" } else { "must not pass" };
                wrong.push(format!(
                    "{from} -> {to} {:?}/{} {:?} {must}: arrived {}, answered {}",
                    probe.protocol, probe.port, probe.family, probe.arrived, probe.answered
                ));
            }
            probe.stream.map_or(Ok(()), end)?;
        }
        self.sockets.iter().try_for_each(|sockets| sockets.accept_all())?;
        Ok(wrong)
    }
}
