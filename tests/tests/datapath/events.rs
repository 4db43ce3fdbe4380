//! Events: what the kernel tells of flows, on real packets, read as the agent reads them.

use crate::forge;
use crate::peers::{
    Connection, Proxy, SILENCE, SOON, Server, UdpServer, datagram, is_refused, ping, reaches,
};
use crate::rig::{OUTSIDE, Rig};
use crate::rules::{Line, closed, egress, icmp, ingress, tcp, udp};
use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use sluice_policy::{Direction, PortSet};
use sluice_redirect::{Counter, EndpointLimits, EventVerdict, Events, FlowEvent};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name, run: fn() -> Result<()>| harness::test(name, [Need::Bpf], run);
    vec![
        test("events: of new flows, with the rule that lets them pass", passed),
        test("events: of refusals, with what refuses them", refused),
        test("events: of forged packets and raw SCTP", raw),
        test("events: of a flow that is cut, once", cut),
        test("events: of a flow that goes to the proxy", to_proxy),
        test("events: a flood hides no other endpoint's refusals", flood),
        test("events: what nobody reads is lost and counted, and refusals have room", lost),
        test("events: of the time without a reader are read by the next one, alone", unread),
    ]
}

/// How long an event may take.
const TOLD: Duration = Duration::from_secs(5);

/// A reader and what it has read.
struct Reader {
    events: Events,
    seen: Vec<FlowEvent>,
}

impl Reader {
    fn of(rig: &Rig) -> Result<Self> {
        Ok(Self { events: rig.node("n1").events()?, seen: Vec::new() })
    }

    fn read(&mut self) {
        while let Some(event) = self.events.next() {
            self.seen.push(event);
        }
    }

    /// The event that is wanted, once it has come.
    fn wait(&mut self, what: &str, wanted: impl Fn(&FlowEvent) -> bool) -> Result<FlowEvent> {
        let end = Instant::now() + TOLD;
        loop {
            self.read();
            if let Some(event) = self.seen.iter().find(|event| wanted(event)) {
                return Ok(event.clone());
            }
            if Instant::now() > end {
                bail!("no event of {what} among {:#?}", self.seen);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn count(&mut self, wanted: impl Fn(&FlowEvent) -> bool) -> usize {
        self.read();
        self.seen.iter().filter(|event| wanted(event)).count()
    }
}

/// Between these, in its originator's orientation.
fn between(event: &FlowEvent, from: IpAddr, to: SocketAddr) -> bool {
    (event.source, event.destination, event.destination_port) == (Some(from), Some(to.ip()), to.port())
}

/// The policy and rule that an event names.
fn named(event: &FlowEvent) -> (String, Option<String>) {
    let origin = event.origin.as_ref();
    let policy = origin.map_or_else(String::new, |origin| origin.policy.origin.name.to_string());
    (policy, origin.and_then(|origin| origin.rule.as_ref()).map(ToString::to_string))
}

fn pod(event: &FlowEvent) -> String {
    event
        .endpoint
        .as_ref()
        .map_or_else(String::new, |e| format!("{}/{}", e.workload.namespace, e.workload.pod))
}

fn passed() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[
        ingress("a/server", "a/other", tcp(80, 80)),
        ingress("a/server", "a/client", tcp(80, 80)),
        egress("a/client", "b/remote", udp(53)),
        ingress("a/server", "b/remote", icmp()),
        egress("a/client", "a/server", tcp(80, 80)),
        closed("a/other", Direction::Ingress).audited(),
    ])?;
    let mut reader = Reader::of(&rig)?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    let _audited = Server::start(&rig.pod("a/other").netns, 81)?;
    rig.explain((|| {
        for family in Family::BOTH {
            let (client, target) = (rig.pod("a/client").ip(family), rig.at("a/server", family, 80));
            reaches(rig.pod("a/client"), target)?;
            let event = reader.wait("a connection", |event| between(event, client, target))?;
            ensure!((event.verdict, event.reason) == (EventVerdict::Allow, Counter::Allowed), "{event:?}");
            ensure!(event.protocol == 6 && event.source_port != 0, "{event:?}");
            // By the hook of the destination, alone: it is the last word.
            ensure!(event.direction == Direction::Ingress && pod(&event) == "a/server", "{event:?}");
            ensure!(named(&event) == ("a/server".into(), Some("rule-1".into())), "{event:?}");
            ensure!(event.generation.is_some() && event.time.elapsed()? < TOLD, "{event:?}");
            ensure!(reader.count(|event| between(event, client, target)) == 1, "{:?}", reader.seen);

            let dns = rig.at("b/remote", family, 53);
            let _dns = UdpServer::start(&rig.pod("b/remote").netns, dns)?;
            ensure!(
                datagram(&rig.pod("a/client").netns, rig.at("a/client", family, 0), dns, SOON)?,
                "no answer"
            );
            let event = reader.wait("a datagram", |event| between(event, client, dns))?;
            ensure!(event.direction == Direction::Egress && pod(&event) == "a/client", "{event:?}");
            ensure!(named(&event) == ("a/client".into(), Some("rule-0".into())), "{event:?}");

            let (remote, server) = (rig.pod("b/remote").ip(family), rig.pod("a/server").ip(family));
            ensure!(ping(rig.pod("b/remote"), server)?, "no ping");
            let echo = |event: &FlowEvent| event.source == Some(remote) && event.destination == Some(server);
            let event = reader.wait("an echo", echo)?;
            ensure!(named(&event) == ("a/server".into(), Some("rule-2".into())), "{event:?}");
            ensure!(event.number == if family == Family::V4 { 8 } else { 0x0180 }, "{event:?}");

            let audited = rig.at("a/other", family, 81);
            reaches(rig.pod(OUTSIDE), audited)?;
            let outside = rig.pod(OUTSIDE).ip(family);
            let event = reader.wait("an audited connection", |event| between(event, outside, audited))?;
            ensure!((event.verdict, event.reason) == (EventVerdict::Audit, Counter::Audited), "{event:?}");
        }
        Ok(())
    })())
}

fn refused() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[
        ingress("a/server", "a/client", tcp(80, 80)),
        ingress("a/server", "a/client", tcp(81, 81)).denied(),
        closed("a/other", Direction::Egress),
    ])?;
    let mut reader = Reader::of(&rig)?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    rig.explain((|| {
        for family in Family::BOTH {
            let by_rule = rig.at("a/server", family, 81);
            is_refused(rig.pod("a/client"), by_rule)?;
            let client = rig.pod("a/client").ip(family);
            let event = reader.wait("a rule's refusal", |event| between(event, client, by_rule))?;
            ensure!((event.verdict, event.reason) == (EventVerdict::Deny, Counter::Denied), "{event:?}");
            ensure!(named(&event) == ("a/server".into(), Some("rule-1".into())), "{event:?}");
            ensure!(event.direction == Direction::Ingress, "{event:?}");

            let by_default = rig.at("a/server", family, 80);
            is_refused(rig.pod(OUTSIDE), by_default)?;
            let outside = rig.pod(OUTSIDE).ip(family);
            let event = reader.wait("a refusal by default", |event| between(event, outside, by_default))?;
            ensure!(event.verdict == EventVerdict::Deny, "{event:?}");
            ensure!(named(&event) == ("a/server".into(), None), "{event:?}");

            let other = rig.pod("a/other").ip(family);
            is_refused(rig.pod("a/other"), by_default)?;
            let event =
                reader.wait("an endpoint's own refusal", |event| between(event, other, by_default))?;
            ensure!(event.direction == Direction::Egress && pod(&event) == "a/other", "{event:?}");
            ensure!(named(&event) == ("a/other".into(), None), "{event:?}");
        }
        Ok(())
    })())
}

fn raw() -> Result<()> {
    const INIT: [u8; 12] = [0x0f, 0xa0, 0, 38, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut rig = Rig::routed()?;
    rig.apply(&[ingress("a/server", "a/client", PortSet::All)])?;
    let (client, server) = (rig.pod("a/client").clone(), rig.pod("a/server").clone());
    let (other, _) = (rig.pod("a/other").clone(), Server::start(&server.netns, 80)?);
    let mut reader = Reader::of(&rig)?;
    rig.explain((|| {
        let sctp =
            forge::ipv4(client.v4, server.v4, 132, 64, &[&INIT[..], &[1, 0, 0, 20], &[0; 16]].concat());
        client.netns.inside(|| forge::raw(server.v4.into(), &sctp))??;
        let target = SocketAddr::new(server.v4.into(), 38);
        let event = reader.wait("SCTP", |event| between(event, client.v4.into(), target))?;
        ensure!((event.protocol, event.verdict) == (132, EventVerdict::Allow), "{event:?}");
        let sctp = forge::ipv4(other.v4, server.v4, 132, 64, &[&INIT[..], &[1, 0, 0, 20], &[0; 16]].concat());
        other.netns.inside(|| forge::raw(server.v4.into(), &sctp))??;
        let event = reader.wait("refused SCTP", |event| between(event, other.v4.into(), target))?;
        ensure!(event.verdict == EventVerdict::Deny, "{event:?}");

        // In the client's name, by somebody else.
        let forged = forge::ipv4(client.v4, server.v4, 17, 64, &[0x0f, 0xa0, 0, 53, 0, 8, 0, 0]);
        other.netns.inside(|| forge::raw(server.v4.into(), &forged))??;
        let event = reader.wait("a forged packet", |event| event.reason == Counter::Spoofed)?;
        ensure!(event.verdict == EventVerdict::Deny && pod(&event) == "a/other", "{event:?}");
        ensure!(event.source == Some(client.v4.into()) && event.destination_port == 53, "{event:?}");
        ensure!(event.origin.is_none(), "{event:?}");
        Ok(())
    })())
}

fn cut() -> Result<()> {
    let mut rig = Rig::routed()?;
    let line = || ingress("a/server", "a/client", tcp(80, 80));
    rig.apply(&[line()])?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    let mut reader = Reader::of(&rig)?;
    let target = rig.at("a/server", Family::V4, 80);
    let mut client = Connection::open(&rig.pod("a/client").netns, target)?;
    client.echo("before", SOON)?;
    rig.apply(&[closed("a/server", Direction::Ingress)])?;
    let result = (|| {
        client.is_dead()?;
        let from = client.local()?;
        let of = |event: &FlowEvent| between(event, from.ip(), target) && event.verdict == EventVerdict::Cut;
        let event = reader.wait("a flow that is cut", of)?;
        ensure!(event.source_port == from.port(), "{event:?}");
        ensure!(named(&event) == ("a/server".into(), None), "{event:?}");
        std::thread::sleep(SILENCE);
        let times = reader.count(of);
        ensure!(times == 1, "told {times} times");
        Ok(())
    })();
    rig.explain(result)
}

fn to_proxy() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[ingress("a/server", "a/client", tcp(80, 80)).l7()])?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    let mut reader = Reader::of(&rig)?;
    let target = rig.at("a/server", Family::V6, 80);
    let proxy = Proxy::start(rig.node("n1"))?;
    let result = (|| {
        reaches(rig.pod("a/client"), target)?;
        let client = rig.pod("a/client").ip(Family::V6);
        let event = reader.wait("a proxied flow", |event| between(event, client, target))?;
        ensure!((event.verdict, event.reason) == (EventVerdict::ToProxy, Counter::ToProxy), "{event:?}");
        ensure!(event.origin.is_none(), "{event:?}");
        let times = reader.count(|event| between(event, client, target));
        ensure!(times == 1, "told {times} times: {:?}", reader.seen);
        Ok(())
    })();
    proxy.stop()?;
    rig.explain(result)
}

/// A node whose endpoints may cause so many events a second.
fn limited(refusal_events: u32, flow_events: u32, lines: &[Line]) -> Result<Rig> {
    let mut rig = Rig::routed()?;
    let mut config = rig.config("n1");
    drop(rig.take("n1"));
    config.limits = EndpointLimits { refusal_events, flow_events, ..EndpointLimits::default() };
    rig.open_with("n1", config)?;
    rig.apply(lines)?;
    Ok(rig)
}

/// Datagrams from the outside to this port of the server, each from another port.
fn send(rig: &Rig, from: &str, to: SocketAddr, times: u16) -> Result<()> {
    rig.pod(from).netns.inside(|| -> Result<()> {
        for _ in 0..times {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            std::net::UdpSocket::bind(any)?.send_to(b"x", to)?;
        }
        Ok(())
    })?
}

fn flood() -> Result<()> {
    const MOST: u32 = 20;
    let rig = limited(
        MOST,
        MOST,
        &[
            ingress("a/server", "a/client", udp(53)),
            ingress("a/server", "a/client", udp(54)).denied(),
            closed("a/other", Direction::Ingress),
        ],
    )?;
    let mut reader = Reader::of(&rig)?;
    let before = rig.counters()?;
    let began = Instant::now();
    rig.explain((|| {
        // What passes, what is refused at the same endpoint, and what another endpoint refuses.
        send(&rig, "a/client", rig.at("a/server", Family::V4, 53), 500)?;
        send(&rig, "a/client", rig.at("a/server", Family::V4, 54), 500)?;
        let other = rig.at("a/other", Family::V4, 99);
        send(&rig, OUTSIDE, other, 1)?;
        let outside = rig.pod(OUTSIDE).ip(Family::V4);
        reader.wait("the other endpoint's refusal", |event| between(event, outside, other))?;
        let seconds = began.elapsed().as_secs() + 2;
        let most = usize::try_from(u64::from(MOST) * seconds)?;
        for port in [53, 54] {
            let told = reader.count(|event| event.destination_port == port);
            ensure!((1..=most).contains(&told), "{told} events of port {port} within {seconds} s");
        }
        rig.grew(&before, Counter::EventLimit)
    })())
}

fn lost() -> Result<()> {
    let rig = limited(0, 0, &[ingress("a/server", "a/client", udp(53))])?;
    let before = rig.counters()?;
    rig.explain((|| {
        // More than half of the ring of flows that pass, and nobody reads.
        let target = rig.at("a/server", Family::V4, 53);
        send(&rig, "a/client", target, 7_000)?;
        rig.grew(&before, Counter::EventLost)?;
        let refused = rig.at("a/server", Family::V4, 54);
        send(&rig, "a/client", refused, 1)?;
        let mut reader = Reader::of(&rig)?;
        let client = rig.pod("a/client").ip(Family::V4);
        let event = reader.wait("a refusal", |event| between(event, client, refused))?;
        ensure!(event.verdict == EventVerdict::Deny, "{event:?}");
        // And there is room again.
        send(&rig, "a/client", target, 1)?;
        let passed = reader.count(|event| event.destination_port == 53);
        reader.wait("a flow", |_| true)?;
        ensure!(passed > 1_000, "{passed} of the flows that pass were told");
        Ok(())
    })())
}

fn unread() -> Result<()> {
    let mut rig = Rig::routed()?;
    let lines = [closed("a/server", Direction::Ingress)];
    rig.apply(&lines)?;
    let target = rig.at("a/server", Family::V4, 99);
    let config = rig.config("n1");
    drop(rig.take("n1"));
    // Nobody is there but the pinned programs.
    send(&rig, "a/client", target, 1)?;
    rig.open_with("n1", config)?;
    let mut reader = Reader::of(&rig)?;
    let client = rig.pod("a/client").ip(Family::V4);
    rig.explain((|| {
        let event = reader.wait("a refusal", |event| between(event, client, target))?;
        ensure!(event.verdict == EventVerdict::Deny, "{event:?}");
        // Another process's numbers say nothing to this one.
        ensure!(
            event.generation.is_none() && event.origin.is_none() && event.endpoint.is_none(),
            "{event:?}"
        );
        let second = rig.node("n1").events().err().context("two read the same events")?;
        ensure!(second.to_string().contains("another process"), "{second}");
        Ok(())
    })())
}
