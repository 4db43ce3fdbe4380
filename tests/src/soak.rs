//! `sluice-soak`: a node under everything at once for as long as it is told, and what went wrong meanwhile.
//!
//! Thousands of connections of every protocol from two pods to a third; a policy that changes every second; an agent
//! that is replaced every minute; at the end, as a phase of its own, SIGKILL. Every answer is judged against the
//! generation that was acknowledged when it was asked for and when it came: between two, either is right. Called by
//! `cargo xtask soak proxy` and, in its short form, by the tests of interoperation.

pub mod clients;
pub mod measure;
pub mod servers;
pub mod stage;
pub mod tally;

use crate::world::Process;
use anyhow::{Context, Result, ensure};
use measure::{Measures, Sample};
use stage::Stage;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tally::{Kind, Tally};

/// How long a new agent may take on a machine that is busy.
const TAKEN: Duration = Duration::from_secs(60);
/// Between two changes of the policy.
const FLIP: Duration = Duration::from_secs(1);
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);
/// How long the clients may take to be connected: thousands, on two cores that do other things too.
const CONNECTED: Duration = Duration::from_secs(120);
/// How long it goes on after each SIGKILL, with a proxy that is up again.
const AFTER_KILL: Duration = Duration::from_secs(5);
/// How long the last streams of an agent that handed over may take: longer than any of them lives.
const LAST: Duration = Duration::from_secs(90);

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long, without the phase of SIGKILL.
    pub length: Duration,
    /// Connections at once.
    pub connections: usize,
    /// Requests a second, over all of them.
    pub rate: u32,
    /// Between two agents of a node.
    pub restart: Duration,
    /// Whether each kind of loss is told as it happens.
    pub verbose: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// For people.
    pub summary: String,
    /// Nothing was wrong, nothing lost, and nothing grew.
    pub good: bool,
}

/// Runs it.
///
/// # Errors
/// When a part of it does not come up. What is wrong with the proxy is in the outcome.
pub fn run(options: &Options, mut say: impl FnMut(&str)) -> Result<Outcome> {
    let tally = Arc::new(Tally::new(options.verbose));
    let mut stage = Stage::start()?;
    stage.flip(&tally)?;
    let clients = stage.clients(options, &tally)?;
    let begun = Instant::now();
    while tally.open() < options.connections * 9 / 10 && begun.elapsed() < CONNECTED {
        std::thread::sleep(Duration::from_millis(100));
    }
    let opened = tally.open();
    say(&format!("{opened} connections after {:.1} s", begun.elapsed().as_secs_f32()));
    ensure!(opened >= options.connections * 8 / 10, "only {opened} connections came about: {}", tally.told());
    let mut soak = Soak { stage: &mut stage, tally: &tally, old: Vec::new(), measures: Measures::default() };
    let done = soak.run(options, &mut say);
    let ended = done.and_then(|()| soak.wait_for_the_old());
    let killed = ended.and_then(|()| soak.kill_phase(&mut say));
    tally.stop();
    for client in clients {
        client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    killed.inspect_err(|_| say(&soak.stage.cluster.tails()))?;
    let (flat, growth) = soak.measures.judge();
    let verdicts = tally.told();
    let good = flat && tally.is_clean();
    let summary = format!(
        "{verdicts}\n{growth}\nchanges of policy: {}, hand-overs: {}\n{}",
        soak.stage.changes(),
        soak.measures.hand_overs,
        if good { "clean" } else { "NOT CLEAN" },
    );
    Ok(Outcome { summary, good })
}

struct Soak<'a> {
    stage: &'a mut Stage,
    tally: &'a Arc<Tally>,
    /// Agents that drain.
    old: Vec<Process>,
    measures: Measures,
}

impl Soak<'_> {
    fn run(&mut self, options: &Options, say: &mut impl FnMut(&str)) -> Result<()> {
        let begun = Instant::now();
        let (mut restart, mut progress) = (begun + options.restart, begun + PROGRESS);
        let mut which = 0;
        while begun.elapsed() < options.length {
            let turn = Instant::now();
            self.stage.flip(self.tally)?;
            if Instant::now() >= restart {
                let node = ["n2", "n1"][which % 2];
                which += 1;
                self.hand_over(node)?;
                restart = Instant::now() + options.restart;
            }
            if Instant::now() >= progress {
                progress += PROGRESS;
                let sample = Sample::take(&mut self.stage.cluster, begun.elapsed(), self.old.len())?;
                say(&format!("{sample} · {}", self.tally.line()));
                self.measures.add(sample);
            }
            self.end_the_old()?;
            std::thread::sleep(FLIP.saturating_sub(turn.elapsed()));
        }
        Ok(())
    }

    /// A new agent in the place of a node's.
    fn hand_over(&mut self, node: &str) -> Result<()> {
        let cluster = &mut self.stage.cluster;
        let old = cluster.take_proxy(node)?;
        self.old.push(old);
        cluster.start_proxy(node)?;
        let new = cluster.proxy(node)?;
        new.wait_line(0, TAKEN, "that it has the node", |line| line.contains("took the node over"))?;
        self.measures.hand_overs += 1;
        Ok(())
    }

    /// SIGKILL, of the worker and then of the agent with it. What is lost meanwhile is counted apart; what is wrong is
    /// wrong.
    fn kill_phase(&mut self, say: &mut impl FnMut(&str)) -> Result<()> {
        self.tally.killing(true);
        for whole in [false, true] {
            let begun = Instant::now();
            let mut agent = self.stage.cluster.take_proxy("n2")?;
            let family = agent.family();
            if whole {
                agent.kill()?;
                drop(agent);
                self.stage.cluster.start_proxy("n2")?;
            } else {
                let worker = family.get(1).copied().context("the agent has no worker")?;
                let pid = rustix::process::Pid::from_raw(worker).context("no number")?;
                rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
                self.stage.cluster.put_proxy("n2", agent);
            }
            let answered = self.tally.answered(Kind::Http1);
            crate::world::eventually("requests pass after SIGKILL", TAKEN, || {
                Ok(self.tally.answered(Kind::Http1) > answered + 50)
            })?;
            let what = if whole { "the agent" } else { "the worker" };
            say(&format!(
                "SIGKILL of {what}: requests passed again after {:.1} s",
                begun.elapsed().as_secs_f32()
            ));
            let until = Instant::now() + AFTER_KILL;
            while Instant::now() < until {
                self.stage.flip(self.tally)?;
                std::thread::sleep(FLIP / 2);
            }
        }
        Ok(())
    }

    /// Agents that handed over end by themselves once their last stream has, under load and changes as before.
    fn wait_for_the_old(&mut self) -> Result<()> {
        let until = Instant::now() + LAST;
        while !self.old.is_empty() {
            self.stage.flip(self.tally)?;
            self.end_the_old()?;
            let told = || self.old.iter().map(|old| old.tail(10)).collect::<String>();
            ensure!(Instant::now() < until, "agents that handed over live on:\n{}", told());
            std::thread::sleep(FLIP);
        }
        Ok(())
    }

    /// Forgets those that have ended, and well.
    fn end_the_old(&mut self) -> Result<()> {
        let mut at = 0;
        while at < self.old.len() {
            if self.old[at].running()? {
                at += 1;
                continue;
            }
            let mut old = self.old.swap_remove(at);
            let status = old.wait(LAST)?;
            ensure!(status.success(), "an agent that handed over ended with {status}:\n{}", old.tail(10));
        }
        Ok(())
    }
}
