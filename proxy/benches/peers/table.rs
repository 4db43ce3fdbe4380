//! What was measured, as the tables of docs/performance.md, and as one line for programs.

use crate::client::{Sample, Scenario};
use crate::idle::{self, Sizes};
use crate::peer::Kind;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

/// Every sample, by scenario and peer, in the order of the rounds.
pub(crate) struct Results {
    peers: Vec<Kind>,
    missing: Vec<Kind>,
    samples: BTreeMap<(Scenario, usize), Vec<Sample>>,
    idle: BTreeMap<usize, Sizes>,
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
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.as_slice() {
        [] => [0.0; 3],
        all => [all[0], all[all.len() / 2], all[all.len() - 1]],
    }
}

/// Of one peer in one scenario.
struct Row {
    rate: f64,
    p50: f64,
    p99: f64,
    /// None of no proxy.
    cost: Option<Cost>,
}

/// CPU-µs a request, and memory.
struct Cost {
    cpu: [f64; 3],
    of_floor: Option<f64>,
    of_haproxy: Option<f64>,
    user: f64,
    system: f64,
    softirq: f64,
    resident: f64,
}

fn cpu(sample: &Sample) -> f64 {
    sample.usage.map_or(0.0, |usage| usage.ran.as_secs_f64()) * 1e6 / sample.count as f64
}

impl Results {
    /// None yet.
    pub(crate) fn new(peers: Vec<Kind>, missing: Vec<Kind>) -> Self {
        Self { peers, missing, samples: BTreeMap::new(), idle: BTreeMap::new() }
    }

    /// Takes one.
    pub(crate) fn take(&mut self, scenario: Scenario, peer: usize, sample: Sample) {
        self.samples.entry((scenario, peer)).or_default().push(sample);
    }

    /// Takes what a peer's memory was.
    pub(crate) fn idle(&mut self, peer: usize, sizes: Option<Sizes>) {
        self.idle.extend(sizes.map(|sizes| (peer, sizes)));
    }

    fn idle_json(&self) -> Vec<Value> {
        let one = |(at, sizes): (&usize, &Sizes)| {
            json!({
                "name": self.peers[*at].key(), "beforeMb": sizes.before, "withHttp1Mb": sizes.http1,
                "withHttp2Mb": sizes.http2,
            })
        };
        self.idle.iter().map(one).collect()
    }

    fn write_idle(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.idle.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n**{} idle connections, each of which has had one answer**\n", idle::CONNECTIONS)?;
        writeln!(f, "| by way of | RSS MB before | with HTTP/1.1 | with HTTP/2 |\n|---|--:|--:|--:|")?;
        for (at, Sizes { before, http1, http2 }) in &self.idle {
            writeln!(f, "| {} | {before:.1} | {http1:.1} | {http2:.1} |", self.peers[*at].name())?;
        }
        Ok(())
    }

    fn scenarios(&self) -> impl Iterator<Item = Scenario> {
        Scenario::ALL.into_iter().filter(|scenario| self.samples.contains_key(&(*scenario, 0)))
    }

    fn of(&self, scenario: Scenario, peer: usize) -> &[Sample] {
        self.samples.get(&(scenario, peer)).map_or(&[], Vec::as_slice)
    }

    /// The median of the ratios to another peer in the same round.
    fn ratio(&self, scenario: Scenario, peer: usize, to: Kind) -> Option<f64> {
        let to = self.peers.iter().position(|kind| *kind == to)?;
        let pairs = self.of(scenario, peer).iter().zip(self.of(scenario, to));
        Some(spread(pairs.map(|(one, other)| cpu(one) / cpu(other)))[1])
    }

    fn row(&self, scenario: Scenario, peer: usize) -> Row {
        let samples = self.of(scenario, peer);
        let median = |value: &dyn Fn(&Sample) -> f64| spread(samples.iter().map(value))[1];
        let used = samples.iter().all(|sample| sample.usage.is_some());
        let share = |part: fn(&crate::usage::Usage) -> std::time::Duration| {
            median(&|sample| {
                sample.usage.as_ref().map_or(0.0, |usage| part(usage).as_secs_f64()) * 1e6
                    / sample.count as f64
            })
        };
        Row {
            rate: median(&|sample| sample.count as f64 / sample.took.as_secs_f64()),
            p50: median(&|sample| sample.p50.as_secs_f64() * 1e6),
            p99: median(&|sample| sample.p99.as_secs_f64() * 1e6),
            cost: used.then(|| Cost {
                cpu: spread(samples.iter().map(cpu)),
                of_floor: self.ratio(scenario, peer, Kind::Floor),
                of_haproxy: self.ratio(scenario, peer, Kind::Haproxy),
                user: share(|usage| usage.user),
                system: share(|usage| usage.system),
                softirq: share(|usage| usage.softirq),
                resident: median(&|sample| sample.resident),
            }),
        }
    }

    /// All of it on one line.
    pub(crate) fn json(&self) -> Value {
        let missing: Vec<&str> = self.missing.iter().map(|kind| kind.key()).collect();
        let scenarios: Vec<Value> = self
            .scenarios()
            .map(|scenario| {
                let peers: Vec<Value> = self.peers.iter().enumerate().map(|(at, kind)| {
                    let row = self.row(scenario, at);
                    let mut value = json!({
                        "name": kind.key(), "requestsPerSecond": row.rate, "p50Us": row.p50, "p99Us": row.p99,
                    });
                    if let Some(cost) = row.cost {
                        let [least, median, most] = cost.cpu;
                        value["cpuUs"] = json!({ "median": median, "least": least, "most": most });
                        value["ofFloor"] = json!(cost.of_floor);
                        value["ofHaproxy"] = json!(cost.of_haproxy);
                        value["userUs"] = json!(cost.user);
                        value["systemUs"] = json!(cost.system);
                        value["softirqUs"] = json!(cost.softirq);
                        value["rssMb"] = json!(cost.resident);
                    }
                    value
                }).collect();
                json!({ "name": scenario.key(), "rounds": self.of(scenario, 0).len(), "peers": peers })
            })
            .collect();
        json!({ "bench": "proxy", "missing": missing, "scenarios": scenarios, "idle": self.idle_json() })
    }
}

impl Display for Results {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for kind in self.missing.iter().filter(|kind| **kind != Kind::Former) {
            writeln!(f, "\n{}: not installed.", kind.name())?;
        }
        for scenario in self.scenarios() {
            writeln!(f, "\n**{}**\n", scenario.name())?;
            writeln!(
                f,
                "| by way of | requests/s | p50 µs | p99 µs | CPU-µs a request (least–most) | of the floor | of HAProxy \
                 | user | system | softirq of the core | RSS MB |"
            )?;
            writeln!(f, "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")?;
            for (at, kind) in self.peers.iter().enumerate() {
                let row = self.row(scenario, at);
                write!(f, "| {} | {:.0} | {:.0} | {:.0} |", kind.name(), row.rate, row.p50, row.p99)?;
                let Some(cost) = row.cost else {
                    writeln!(f, " – | – | – | – | – | – | – |")?;
                    continue;
                };
                let [least, median, most] = cost.cpu;
                let ratio =
                    |ratio: Option<f64>| ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
                writeln!(
                    f,
                    " {median:.2} ({least:.2}–{most:.2}) | {} | {} | {:.2} | {:.2} | {:.2} | {:.1} |",
                    ratio(cost.of_floor),
                    ratio(cost.of_haproxy),
                    cost.user,
                    cost.system,
                    cost.softirq,
                    cost.resident
                )?;
            }
        }
        self.write_idle(f)
    }
}
