//! What was measured, as the tables of docs/performance.md.
//!
//! Knows nothing of how. Called by the benchmark.

use crate::traffic::{Sample, Workload};
use crate::world::{Change, Judge, World};
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

/// Every sample, by world and workload, in the order of the rounds.
pub(crate) struct Results {
    worlds: Vec<(Judge, usize)>,
    samples: BTreeMap<(Workload, usize), Vec<Sample>>,
}

impl Results {
    /// None yet.
    pub(crate) fn new(worlds: &[World]) -> Self {
        Self {
            worlds: worlds.iter().map(|world| (world.judge, world.rules)).collect(),
            samples: BTreeMap::new(),
        }
    }

    /// Takes one.
    pub(crate) fn take(&mut self, world: usize, workload: Workload, sample: Sample) {
        self.samples.entry((workload, world)).or_default().push(sample);
    }

    fn of(&self, workload: Workload, world: usize) -> &[Sample] {
        self.samples.get(&(workload, world)).map_or(&[], Vec::as_slice)
    }
}

/// What it was measured on.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let (kernel, load) = (read("/proc/sys/kernel/osrelease"), read("/proc/loadavg"));
    format!(
        "{cores} cores of {}{}, Linux {}. Load average of the machine at the end, the benchmark's own included: {}.",
        model.trim_start_matches([' ', '\t', ':']),
        if info.contains(" hypervisor") { " (a virtual machine)" } else { "" },
        kernel.trim(),
        load.split(' ').take(3).collect::<Vec<_>>().join(" ")
    )
}

/// The smallest, the middle one and the greatest.
pub(crate) fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.as_slice() {
        [] => [0.0; 3],
        all => [all[0], all[all.len() / 2], all[all.len() - 1]],
    }
}

impl Display for Results {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for workload in Workload::ALL {
            let (name, unit) = workload.words();
            writeln!(f, "\n**{name}**\n")?;
            writeln!(
                f,
                "| judged by | rules | {unit}/s, median (least–most) | of bare | CPU ns, median | of bare |"
            )?;
            writeln!(f, "|---|--:|--:|--:|--:|--:|")?;
            let bare = self.of(workload, 0);
            for (world, (judge, rows)) in self.worlds.iter().enumerate() {
                let samples = self.of(workload, world);
                let [low, rate, high] = spread(samples.iter().map(Sample::rate));
                let [_, nanos, _] = spread(samples.iter().map(Sample::nanos));
                // Round by round: what the machine did meanwhile is in both.
                let pairs = || samples.iter().zip(bare);
                let [_, of_rate, _] = spread(pairs().map(|(own, bare)| own.rate() / bare.rate()));
                let [_, of_nanos, _] = spread(pairs().map(|(own, bare)| own.nanos() / bare.nanos()));
                let rows = if *rows == 0 { "–".to_owned() } else { rows.to_string() };
                writeln!(
                    f,
                    "| {} | {rows} | {rate:.0} ({low:.0}–{high:.0}) | {:.1} % | {nanos:.0} | {:.1} % |",
                    judge.name(),
                    of_rate * 100.0,
                    of_nanos * 100.0
                )?;
            }
        }
        Ok(())
    }
}

/// What each program takes for a packet.
#[derive(Default)]
pub(crate) struct Programs(Vec<(usize, Workload, BTreeMap<String, f64>)>);

impl Programs {
    /// Takes the run time and the runs of each.
    pub(crate) fn take(&mut self, rows: usize, workload: Workload, sums: &BTreeMap<String, (Duration, u64)>) {
        let each = |(name, (time, runs)): (&String, &(Duration, u64))| {
            (name.clone(), time.as_secs_f64() * 1e9 / (*runs).max(1) as f64)
        };
        self.0.push((rows, workload, sums.iter().map(each).collect()));
    }
}

impl Display for Programs {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n**Nanoseconds a packet, by program** (`BPF_ENABLE_STATS`)\n")?;
        writeln!(f, "| rules | workload | A from_pod | B to_pod |\n|--:|---|--:|--:|")?;
        for (rows, workload, nanos) in &self.0 {
            let of = |name: &str| nanos.get(name).copied().unwrap_or(0.0);
            let (name, _) = workload.words();
            if *rows == 0 {
                let empty = of("pass");
                writeln!(f, "| does nothing | {name} | {empty:.0} | {empty:.0} |")?;
                continue;
            }
            writeln!(f, "| {rows} | {name} | {:.0} | {:.0} |", of("from_pod"), of("to_pod"))?;
        }
        Ok(())
    }
}

/// What is other in a generation than in those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sync {
    /// One rule of one policy.
    Rule,
    /// Every address has another class.
    Addresses,
    /// Every row has another key.
    Everything,
}

impl Sync {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Rule, Self::Addresses, Self::Everything];

    /// The n-th such change.
    pub(crate) fn change(self, number: u16) -> Change {
        match self {
            Self::Rule => Change { port: number, ..Change::default() },
            Self::Addresses => Change { shift: number.into(), ..Change::default() },
            Self::Everything => Change { numbers: number.into(), ..Change::default() },
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Rule => "one rule",
            Self::Addresses => "every address",
            Self::Everything => "every row",
        }
    }
}

/// How long it takes to put rows in force.
pub(crate) fn syncs(times: &BTreeMap<(usize, Sync), Vec<Duration>>) -> String {
    let mut text = String::from("\n**Rows put in force** (`Node::apply`, everything in it)\n\n");
    text += "| rows | other than before | median | least | most |\n|--:|---|--:|--:|--:|\n";
    for ((rows, what), times) in times {
        let millis = |at: usize| times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3);
        let (middle, last) = (times.len() / 2, times.len().saturating_sub(1));
        text += &format!(
            "| {rows} | {} | {:.1} ms | {:.1} ms | {:.1} ms |\n",
            what.name(),
            millis(middle),
            millis(0),
            millis(last)
        );
    }
    text
}
