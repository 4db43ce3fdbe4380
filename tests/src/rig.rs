//! Runs fixtures through the real datapath: their pods get the places of a world that is up, their policies are
//! applied as files, their requests are sent by real clients, and what came out is compared.
//!
//! What must come out is the engine's verdict, finer than the fixture says it: refused as a connection or as a
//! request, through the proxy or past it, by which policy and rule. Called by the end-to-end tests.

use crate::cluster::{Cluster, RECORDED, is_of_the_kernel};
use crate::engine::{Engine, Judged};
use crate::fixture::{Expect, Fixture, HttpVersion, OUTSIDE, Placed, Protocol, Request};
use crate::peer::{Stats, Version, http_client, raw_client};
use crate::world::{Family, NodeSpec, PodSpec, Process, World};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The places for pods: a routed node and a bridged one, in turn, so that every fixture has flows on one node
/// and across.
const SLOTS: [(&str, &str); 6] = [
    ("n1", "slot/a"),
    ("n2", "slot/b"),
    ("n1", "slot/c"),
    ("n2", "slot/d"),
    ("n1", "slot/e"),
    ("n2", "slot/f"),
];
/// What every peer serves, so that a connection that fails was refused.
const SERVED: &[&str] = &[
    "--http",
    "[::]:8080",
    "--http",
    "[::]:8081",
    "--http",
    "[::]:8082",
    "--http",
    "[::]:9090",
    "--tcp",
    "[::]:5432",
    "--greet",
    "[::]:3306",
    "--udp",
    "[::]:5353",
    "--udp",
    "[::]:5354",
];
/// The port that the ledger is read on.
const LEDGER_PORT: u16 = 8080;
/// How long a connection that must not come about is waited for: a second SYN goes out after one second.
const NO_CONNECTION: Duration = Duration::from_millis(1300);
/// How long a datagram's answer that must not come is waited for.
const NO_ANSWER: Duration = Duration::from_millis(400);
/// How long anything that must come may take.
const ANSWER: Duration = Duration::from_secs(5);
/// What stands for a protocol that is not HTTP.
const PAYLOAD: &[u8] = b"\x00\x01sluice";

/// A world with peers, control and proxies, for one fixture after the other.
#[derive(Debug)]
pub struct Rig {
    servers: Vec<Process>,
    /// The cluster.
    pub cluster: Cluster,
}

/// One request in one family, with what must come of it.
#[derive(Debug)]
struct Case<'a> {
    request: &'a Request,
    judged: Judged,
    /// What each proxy on its way makes of it: one judges its own node's endpoints alone.
    on_the_way: Vec<Judged>,
    from: String,
    to: String,
    target: SocketAddr,
    client: SocketAddr,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Got {
    /// The server answered.
    Passed,
    /// The mesh answered.
    Refused,
    /// Nobody did.
    Silence,
}

impl Rig {
    /// Builds the world and starts everything in it.
    ///
    /// # Errors
    /// When a part of it does not come up.
    pub fn start() -> Result<Self> {
        let nodes = [NodeSpec::routed("n1"), NodeSpec::bridged("n2").br_netfilter(true)];
        let mut builder = nodes.into_iter().fold(World::builder(), crate::WorldBuilder::node);
        for (node, slot) in SLOTS {
            builder = builder.pod(PodSpec::new(node, slot));
        }
        for (name, v4, v6) in OUTSIDE {
            builder = builder.outside(name, v4, v6);
        }
        let world = builder.build()?;
        let names = SLOTS.iter().map(|(_, slot)| *slot).chain(OUTSIDE.iter().map(|(name, ..)| *name));
        let servers = names.map(|name| world.serve(name, SERVED)).collect::<Result<Vec<Process>>>()?;
        Ok(Self { servers, cluster: Cluster::start(world, &[])? })
    }

    /// Runs a fixture.
    ///
    /// # Errors
    /// With everything that came out otherwise.
    pub fn run(&mut self, fixture: &Fixture) -> Result<()> {
        self.run_with(fixture, |_| {})
    }

    /// Runs a fixture while something else is in force than what is expected: what `spoil` makes of its objects.
    ///
    /// # Errors
    /// With everything that came out otherwise.
    pub fn run_with(&mut self, fixture: &Fixture, spoil: impl FnOnce(&mut Vec<Value>)) -> Result<()> {
        let slots = places(fixture)?;
        let world = &self.cluster.world;
        let place = |name: &str| -> Result<Placed> {
            let pod = world.pod(slots.get(name).with_context(|| format!("{name} has no place"))?);
            Ok(Placed { node: pod.node.clone(), v4: pod.v4, v6: pod.v6 })
        };
        let mut objects = fixture.manifests(place)?;
        let engine = Engine::new(&objects)?;
        spoil(&mut objects);
        self.cluster.apply(&objects)?;
        let cases = self.cases(fixture, &slots, &engine);
        let mark = self.cluster.mark();
        let (denied, passing): (Vec<&Case>, Vec<&Case>) =
            cases.iter().partition(|case| case.judged.outcome == Expect::Deny);
        let before = self.ledgers()?;
        let mut wrong: Vec<String> =
            cases.iter().filter_map(|case| case.judged.differs_from(case.request)).collect();
        wrong.extend(self.send(&denied)?);
        let after = self.ledgers()?;
        for (name, stats) in &after {
            let (was, is) = (payload(&before[name]), payload(stats));
            if was != is {
                wrong.push(format!("denied requests reached {name}: before {was:?}, after {is:?}"));
            }
        }
        wrong.extend(self.send(&passing)?);
        let end = Instant::now() + RECORDED;
        let unrecorded = cases.iter().filter_map(|case| self.check_records(case, &mark, end).err());
        wrong.extend(unrecorded.map(|error| format!("{error:#}")));
        ensure!(wrong.is_empty(), "{}\n  {}\n{}", fixture.about, wrong.join("\n  "), self.cluster.tails());
        Ok(())
    }

    fn cases<'a>(
        &self,
        fixture: &'a Fixture,
        slots: &BTreeMap<String, &'static str>,
        engine: &Engine,
    ) -> Vec<Case<'a>> {
        let mut cases = Vec::new();
        let nodes: BTreeMap<&str, Engine> =
            SLOTS.iter().map(|(node, _)| (*node, engine.of_node(node))).collect();
        for request in &fixture.requests {
            let slot =
                |name: &String| slots.get(name).map_or_else(|| name.clone(), |slot| (*slot).to_owned());
            let (from, to) = (slot(&request.from), slot(&request.to));
            let (client, server) = (self.cluster.world.pod(&from), self.cluster.world.pod(&to));
            let outside = client.node.is_empty() || server.node.is_empty();
            // The client's node first; one that denies ends it.
            let mut way: Vec<&Engine> =
                [&client.node, &server.node].iter().filter_map(|n| nodes.get(n.as_str())).collect();
            if client.node == server.node {
                way.pop();
            }
            for family in Family::BOTH {
                // An address block of IPv4 says nothing of the same host's IPv6 address.
                if outside && family == Family::V6 {
                    continue;
                }
                let (client, server) = (client.ip(family), server.ip(family));
                let mut on_the_way: Vec<Judged> = Vec::new();
                for judged in way.iter().map(|node| node.judge(client, server, request)) {
                    if !on_the_way.last().is_some_and(|before| before.outcome == Expect::Deny) {
                        on_the_way.push(judged);
                    }
                }
                on_the_way.retain(|judged| judged.proxied);
                cases.push(Case {
                    request,
                    judged: engine.judge(client, server, request),
                    on_the_way,
                    from: from.clone(),
                    to: to.clone(),
                    target: SocketAddr::new(server, request.port),
                    client: SocketAddr::new(client, 0),
                });
            }
        }
        cases
    }

    /// Sends the requests at once; returns what came out otherwise than it must.
    fn send(&self, cases: &[&Case]) -> Result<Vec<String>> {
        std::thread::scope(|scope| {
            let workers: Vec<_> = cases.iter().map(|case| scope.spawn(|| self.attempt(case))).collect();
            let mut wrong = Vec::new();
            for (case, worker) in cases.iter().zip(workers) {
                let got = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                let want = match (case.judged.outcome, case.judged.connects) {
                    (Expect::Deny, true) => Got::Refused,
                    (Expect::Deny, false) => Got::Silence,
                    _ => Got::Passed,
                };
                if got.0 != want {
                    wrong.push(format!(
                        "{} ({}): must be {want:?}, was {got:?}",
                        case.request,
                        case.target.ip()
                    ));
                }
            }
            Ok(wrong)
        })
    }

    fn attempt(&self, case: &Case) -> Result<(Got, String)> {
        let netns = &self.cluster.world.pod(&case.from).netns;
        let silent = case.judged.outcome == Expect::Deny && !case.judged.connects;
        let datagram = if silent { NO_ANSWER } else { ANSWER };
        let stream = if silent { NO_CONNECTION } else { ANSWER };
        let target = case.target;
        if let Some((ask, version)) = case.request.ask() {
            let version = if version == HttpVersion::H1 { Version::Http1 } else { Version::Http2 };
            let asks = [ask];
            let answers = netns.block_on(|| http_client::ask_within(target, version, &asks, stream))?;
            return match answers {
                Err(error) => Ok((Got::Silence, format!("{error:#}"))),
                Ok(answers) => self.read_answer(case, answers.first().context("no answer")?),
            };
        }
        let answer = match case.request.protocol {
            Protocol::Tcp => netns.inside(|| raw_client::tcp(target, PAYLOAD, PAYLOAD.len(), stream))?,
            Protocol::Udp => netns.inside(|| raw_client::udp(target, PAYLOAD, datagram))??,
            Protocol::Icmp => netns.inside(|| raw_client::icmp(target.ip(), datagram))??,
        };
        let got = if answer.received.is_empty() { Got::Silence } else { Got::Passed };
        Ok((got, format!("{answer:?}")))
    }

    /// Who answered, and whether the server saw what it had to see.
    fn read_answer(&self, case: &Case, answer: &http_client::Answer) -> Result<(Got, String)> {
        let shown = format!("{answer:?}");
        let grpc =
            answer.headers.get("grpc-status").or(answer.trailers.get("grpc-status")).map(String::as_str);
        if case.request.grpc.is_some() {
            // A service that the server does not have is its own answer (12, unimplemented).
            return Ok(match grpc {
                Some("0" | "12") if answer.status == 200 => (Got::Passed, shown),
                Some("7") if answer.status == 200 => (Got::Refused, shown),
                _ => bail!("{}: neither the server nor the mesh: {shown}", case.request),
            });
        }
        if answer.status == 403 {
            return Ok((Got::Refused, shown));
        }
        ensure!(answer.status == 200, "{}: neither the server nor the mesh: {shown}", case.request);
        let json = answer.json();
        let server = self.cluster.world.pod(&case.to).short_name();
        // HEAD has no body to say it in.
        let head = case.request.http.as_ref().is_some_and(|http| http.method == "HEAD");
        ensure!(head || json["server"] == server, "{}: the wrong server: {shown}", case.request);
        let client = case.client.ip().to_string();
        ensure!(
            head || json["peer"] == client.as_str(),
            "{}: the server saw another client: {shown}",
            case.request
        );
        Ok((Got::Passed, shown))
    }

    fn ledgers(&self) -> Result<BTreeMap<String, Stats>> {
        let names = SLOTS.iter().map(|(_, slot)| *slot).chain(OUTSIDE.iter().map(|(name, ..)| *name));
        names.map(|name| Ok((name.to_owned(), self.cluster.world.stats(name, LEDGER_PORT)?))).collect()
    }

    /// A flow that the kernel decides has a record of the kernel's and none of a proxy; one that the proxy judged has
    /// one that says what the engine says.
    fn check_records(&self, case: &Case, mark: &BTreeMap<String, usize>, end: Instant) -> Result<()> {
        let request = case.request;
        let same_flow = |record: &Value| {
            record["source"]["ip"] == case.client.ip().to_string().as_str()
                && record["destination"]["ip"] == case.target.ip().to_string().as_str()
                && match request.protocol {
                    Protocol::Icmp => {
                        record["protocol"].as_str().is_some_and(|name| name.starts_with("icmp"))
                    }
                    _ => record["destination"]["port"] == request.port,
                }
        };
        if case.on_the_way.is_empty() {
            let records = self.cluster.records_since(mark);
            let entered = records.iter().find(|record| same_flow(record) && !is_of_the_kernel(record));
            ensure!(entered.is_none(), "{request}: entered the proxy: {entered:?}");
            let judged = &case.judged;
            // Of pods that are outside the dataplane nobody tells anything.
            if judged.reason == "not_isolated" {
                return Ok(());
            }
            let told = |record: &Value| {
                same_flow(record)
                    && is_of_the_kernel(record)
                    // An echo request of the fixture before had the same identifier.
                    && (record["error"] == "" || record["error"] == "cut")
                    && record["verdict"] == judged.outcome.as_str()
                    && (judged.outcome != Expect::Deny || record["policy"] == judged.policy.as_str())
            };
            let what = format!("{request} by the kernel, with {judged:?}");
            let found = self.cluster.wait_record_until(mark, end, &what, told);
            if let Err(error) = found {
                let records = self.cluster.records_since(mark);
                let near: Vec<&Value> = records.iter().filter(|record| same_flow(record)).collect();
                bail!("{error:#}\n  but {near:#?}");
            }
            return Ok(());
        }
        let Some((ask, _)) = request.ask() else { return Ok(()) };
        let path = ask.path.split('?').next().unwrap_or_default();
        let said = |record: &Value| {
            same_flow(record) && record["method"] == ask.method.as_str() && record["path"] == path
        };
        for judged in &case.on_the_way {
            let what = format!("{request} with {judged:?}");
            let found = self.cluster.wait_record_until(mark, end, &what, |r| said(r) && agrees(r, judged));
            if let Err(error) = found {
                let records = self.cluster.records_since(mark);
                let near: Vec<&Value> = records.iter().filter(|record| said(record)).collect();
                ensure!(!near.is_empty(), error);
                bail!("{request}: {judged:?}\n  but {near:#?}");
            }
        }
        Ok(())
    }

    /// The peers' last lines, for a test that failed.
    #[must_use]
    pub fn servers(&self) -> String {
        self.servers.iter().map(|server| format!("--- {}\n{}", server.name(), server.tail(10))).collect()
    }
}

/// Whether a flow record says what the engine says.
fn agrees(record: &Value, judged: &Judged) -> bool {
    let audited = record["wouldDeny"].as_array().is_some_and(|list| !list.is_empty());
    record["verdict"] == judged.outcome.as_str()
        && record["reason"] == judged.reason.as_str()
        && record["policy"] == judged.policy.as_str()
        && record["rule"] == judged.rule.as_str()
        && record["nearestMiss"] == judged.nearest_miss.as_str()
        && audited == (judged.outcome == Expect::Audit)
}

/// The slot of each pod, in the order of their names.
fn places(fixture: &Fixture) -> Result<BTreeMap<String, &'static str>> {
    ensure!(fixture.pods.len() <= SLOTS.len(), "{} has more pods than there are places", fixture.name);
    Ok(fixture.pods.keys().cloned().zip(SLOTS.iter().map(|(_, slot)| *slot)).collect())
}

/// Bytes and requests by port.
fn payload(stats: &Stats) -> BTreeMap<u16, (u64, u64)> {
    let ports = stats.iter().map(|(port, stats)| (*port, (stats.bytes, stats.requests)));
    ports.filter(|(_, counts)| *counts != (0, 0)).collect()
}
