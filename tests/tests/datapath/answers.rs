//! What a refused packet's sender is told, and both ends of a connection that is cut; that it is right to the last bit,
//! and that it is no way in.

use crate::forge::{self, SECRET, Segment};
use crate::peers::{Connection, SILENCE, SOON, Server, UdpServer, datagram, eventually};
use crate::rig::Rig;
use crate::rules::{closed, egress, ingress, tcp, udp};
use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use sluice_policy::Direction;
use sluice_redirect::{Counter, DEFAULT_MARK, EndpointLimits, NodeConfig};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::{Family, Netns};
use sluice_tests::{NodeSpec, Pod};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| harness::test(name, [Need::Bpf], run);
    vec![
        test("answers: a connection that is cut is reset to both sides, and no other", cut),
        test("answers: a side that does not believe it gets nothing through", cut_for_good),
        test("answers: a policy that rejects tells so, one that drops does not", rejected),
        test("answers: every checksum is right, whoever has to make it", checksums),
        test("answers: the numbers of a reset are those that are believed", numbers),
        test("answers: as many in a second as there may be", bounded),
        test("answers: never about an answer, a group or a part", never),
        test("answers: what a pod marks as an answer is none", forged),
    ]
}

fn within(at: &Pod, open: impl FnOnce() -> std::io::Result<TcpStream> + Send) -> Result<TcpStream> {
    let stream = at.netns.inside(open)??;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

/// A connection with both of its ends.
fn pair(client: &Pod, server: &Pod, family: Family, port: u16) -> Result<(TcpStream, TcpStream)> {
    let target = SocketAddr::new(server.ip(family), port);
    let listener = server.netns.inside(|| TcpListener::bind(target))??;
    let there = within(client, || TcpStream::connect_timeout(&target, SOON))?;
    let (here, _) = listener.accept()?;
    here.set_read_timeout(Some(SOON))?;
    Ok((there, here))
}

/// That an end is reset soon after it has sent something.
fn is_reset(mut stream: &TcpStream, what: &str) -> Result<()> {
    let start = Instant::now();
    // More than one packet: the device is given them uncut.
    let sent = stream.write_all(&[7; 40_000]);
    match sent.and_then(|()| stream.read(&mut [0; 16])) {
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {}
        other => bail!("{what}: {other:?} after {:?}", start.elapsed()),
    }
    ensure!(start.elapsed() < SOON, "{what}: only after {:?}", start.elapsed());
    Ok(())
}

fn cut() -> Result<()> {
    for node in [NodeSpec::routed("n1"), NodeSpec::bridged("n1")] {
        let mut rig = Rig::with(node)?;
        let lines = |port: u16| {
            [
                egress("a/client", "b/remote", tcp(80, port)),
                egress("a/client", "a/server", tcp(80, port)),
                ingress("a/other", "b/remote", tcp(80, port)),
                ingress("a/other", "a/server", tcp(80, port)),
            ]
        };
        for family in Family::BOTH {
            rig.apply(&lines(90))?;
            let ways = [
                ("a/client", "b/remote"),
                ("a/client", "a/server"),
                ("b/remote", "a/other"),
                ("a/server", "a/other"),
            ];
            let open = |port: u16| -> Result<Vec<_>> {
                ways.iter().map(|(from, to)| pair(rig.pod(from), rig.pod(to), family, port)).collect()
            };
            let (going, first, second) = (open(80)?, open(85)?, open(90)?);
            rig.apply(&lines(80))?;
            rig.explain((|| {
                for ((client, server), way) in first.iter().zip(ways) {
                    is_reset(client, &format!("{way:?} {family:?}, the client first"))?;
                    is_reset(server, &format!("{way:?} {family:?}, the server second"))?;
                }
                for ((client, server), way) in second.iter().zip(ways) {
                    is_reset(server, &format!("{way:?} {family:?}, the server first"))?;
                    is_reset(client, &format!("{way:?} {family:?}, the client second"))?;
                }
                for (mut client, mut server) in going.iter().map(|(client, server)| (client, server)) {
                    let mut byte = [0];
                    client.write_all(b"x")?;
                    server.read_exact(&mut byte)?;
                    server.write_all(&byte)?;
                    client.read_exact(&mut byte).context("a flow whose row is still there")?;
                }
                Ok(())
            })())?;
        }
    }
    Ok(())
}

/// The far end goes on as if nothing had been said, and the near one has heard nothing: not a byte reaches it.
fn cut_for_good() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[egress("a/client", "b/remote", tcp(80, 80))])?;
    let server = Server::start(&rig.pod("b/remote").netns, 80)?;
    let sniffer = forge::sniffer(&rig.pod("b/remote").netns)?;
    let client = rig.pod("a/client").clone();
    let mut connection = Connection::open(&client.netns, rig.at("b/remote", Family::V4, 80))?;
    connection.echo("before", SOON)?;
    let SocketAddr::V4(from) = connection.local()? else { bail!("not IPv4") };
    let last = forge::last_acknowledgement(&sniffer, client.v4, from.port(), 80)?;
    rig.apply(&[closed("a/client", Direction::Egress)])?;
    let arriving = Capture::start(&client.netns)?;
    let segment = Segment {
        source: SocketAddrV4::new(rig.pod("b/remote").v4, 80),
        target: from,
        sequence: last.acknowledged,
        acknowledgement: last.sequence,
        payload: SECRET,
    };
    let before = rig.counters()?;
    for _ in 0..5 {
        rig.pod("b/remote").netns.inside(|| segment.send())??;
        std::thread::sleep(Duration::from_millis(50));
    }
    let seen = arriving.wait(SILENCE, |frame| frame.windows(SECRET.len()).any(|part| part == SECRET));
    ensure!(seen.is_none(), "what was sent on a connection that was cut arrived");
    rig.grew(&before, Counter::ResetSent)?;
    drop(server);
    Ok(())
}

fn connect(from: &Pod, target: SocketAddr) -> Result<(ErrorKind, Duration)> {
    let start = Instant::now();
    match from.netns.inside(|| TcpStream::connect_timeout(&target, SILENCE))? {
        Ok(_) => bail!("{} reaches {target}", from.name),
        Err(error) => Ok((error.kind(), start.elapsed())),
    }
}

/// What a datagram's sender is told.
fn told(from: &Pod, target: SocketAddr) -> Result<ErrorKind> {
    from.netns.inside(|| -> Result<ErrorKind> {
        let any: IpAddr =
            if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(SILENCE))?;
        socket.send(b"ping")?;
        match socket.recv(&mut [0; 16]) {
            Ok(_) => bail!("{} gets an answer from {target}", from.name),
            Err(error) => Ok(error.kind()),
        }
    })?
}

fn rejected() -> Result<()> {
    for node in [NodeSpec::routed("n1"), NodeSpec::bridged("n1")] {
        let mut rig = Rig::with(node)?;
        rig.apply(&[
            closed("a/client", Direction::Egress).rejecting(),
            closed("a/server", Direction::Ingress).rejecting(),
            closed("a/other", Direction::Egress),
        ])?;
        rig.explain((|| {
            for family in Family::BOTH {
                // EHOSTUNREACH of IPv4's code 13, EACCES of IPv6's code 1.
                let prohibited = if family == Family::V4 {
                    ErrorKind::HostUnreachable
                } else {
                    ErrorKind::PermissionDenied
                };
                // At the sender's own hook, and at the receiver's for one from elsewhere and for one of this node.
                for (from, to) in [("a/client", "b/remote"), ("b/remote", "a/server")] {
                    let target = rig.at(to, family, 80);
                    let refused = connect(rig.pod(from), target)?;
                    ensure!(refused.0 == ErrorKind::ConnectionRefused, "{from} to {target}: {refused:?}");
                    let said = told(rig.pod(from), target)?;
                    ensure!(said == prohibited, "{from} to {target}: {said:?}");
                    ensure!(!crate::peers::ping(rig.pod(from), target.ip())?, "a ping passes");
                }
                let silent = connect(rig.pod("a/other"), rig.at("b/remote", family, 80))?;
                ensure!(silent.0 == ErrorKind::TimedOut, "dropped: {silent:?}");
            }
            Ok(())
        })())?;
        // The receiver's word reaches a pod of this node past that one's own hook.
        rig.apply(&[closed("a/server", Direction::Ingress).rejecting()])?;
        for family in Family::BOTH {
            let refused = connect(rig.pod("a/client"), rig.at("a/server", family, 80))?;
            rig.explain(match refused.0 {
                ErrorKind::ConnectionRefused => Ok(()),
                _ => Err(anyhow::anyhow!("within the node: {refused:?}")),
            })?;
        }
    }
    Ok(())
}

/// Sees every frame of a namespace.
struct Capture(Socket);

impl Capture {
    fn start(netns: &Netns) -> Result<Self> {
        // ETH_P_ALL, in network order.
        let all = Protocol::from(i32::from(0x0003_u16.to_be()));
        let socket = netns.inside(|| Socket::new(Domain::PACKET, Type::RAW, Some(all)))??;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self(socket))
    }

    fn wait(&self, within: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let (end, mut buffer) = (Instant::now() + within, [0; 4096]);
        while Instant::now() < end {
            if let Ok(length) = (&self.0).read(&mut buffer)
                && wanted(&buffer[..length])
            {
                return Some(buffer[..length].to_vec());
            }
        }
        None
    }
}

const ETH: usize = 14;

/// The IP protocol and what is behind the IP header, if a frame is from this address.
fn transport(frame: &[u8], from: IpAddr) -> Option<(u8, &[u8])> {
    let ip = frame.get(ETH..)?;
    match (ip.first()? >> 4, from) {
        (4, IpAddr::V4(from)) if ip.get(12..16)? == from.octets() => Some((ip[9], ip.get(20..)?)),
        (6, IpAddr::V6(from)) if ip.get(8..24)? == from.octets() => Some((ip[6], ip.get(40..)?)),
        _ => None,
    }
}

/// That every checksum of an answer is right.
fn is_right(frame: &[u8], from: IpAddr) -> Result<()> {
    let ip = &frame[ETH..];
    let (protocol, body) = transport(frame, from).context("not from there")?;
    let length = u16::try_from(body.len())?.to_be_bytes();
    let pseudo = match from {
        IpAddr::V4(_) => {
            ensure!(forge::checksum(&ip[..20]) == 0, "the IP header's: {frame:02x?}");
            ensure!(usize::from(u16::from_be_bytes([ip[2], ip[3]])) == ip.len(), "the length: {frame:02x?}");
            if protocol == 1 { Vec::new() } else { [&ip[12..20], &[0, protocol], &length].concat() }
        }
        IpAddr::V6(_) => {
            ensure!(
                usize::from(u16::from_be_bytes([ip[4], ip[5]])) == body.len(),
                "the length: {frame:02x?}"
            );
            [&ip[8..40], &[0, 0], &length, &[0, 0, 0, protocol]].concat()
        }
    };
    let sum = forge::checksum(&[&pseudo[..], body].concat());
    ensure!(sum == 0, "the checksum is off by {sum:#06x}: {frame:02x?}");
    Ok(())
}

fn is_answer(frame: &[u8], from: IpAddr, stream: bool) -> bool {
    match transport(frame, from) {
        Some((6, tcp)) => stream && tcp.get(13).is_some_and(|flags| flags & 4 != 0),
        Some((1, icmp)) => !stream && icmp.get(..2) == Some(&[3, 13]),
        Some((58, icmp)) => !stream && icmp.get(..2) == Some(&[1, 1]),
        _ => false,
    }
}

/// The kernel that sends the refused packet leaves its checksum to the device or not, and the device that the answer
/// leaves by makes it or not: the answer is right on the wire every time. Only where nobody has made it (a veth that
/// says it would) there is none to look at.
fn checksums() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[
        closed("a/client", Direction::Egress).rejecting(),
        closed("a/server", Direction::Ingress).rejecting(),
    ])?;
    let node = rig.world.node("n1").netns.clone();
    let veth = rig.pod("a/client").veth.clone();
    for (from, to, out) in [("a/client", "b/remote", veth.as_str()), ("b/remote", "a/server", "eth0")] {
        let sender = rig.pod(from).clone();
        for (device, left) in [("off", true), ("on", false), ("off", false)] {
            node.run(&["ethtool", "-K", out, "tx", device])?;
            let own = if left { "on" } else { "off" };
            sender.netns.run(&["ethtool", "-K", "eth0", "tx", own])?;
            for family in Family::BOTH {
                let target = rig.at(to, family, 80);
                let capture = Capture::start(&sender.netns)?;
                for stream in [true, false] {
                    let what = format!("{from} to {target}, stream {stream}, sender {own}, device {device}");
                    let start = Instant::now();
                    match stream {
                        true => drop(connect(&sender, target)?),
                        false => drop(told(&sender, target)?),
                    }
                    ensure!(start.elapsed() < SILENCE, "{what}: the sender does not believe it");
                    let frame = capture.wait(SOON, |frame| is_answer(frame, target.ip(), stream));
                    let frame = frame.with_context(|| format!("{what}: no answer"))?;
                    is_right(&frame, target.ip()).context(what)?;
                }
            }
        }
    }
    Ok(())
}

/// RFC 9293, section 3.10.7.1.
fn numbers() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[closed("a/client", Direction::Egress).rejecting()])?;
    let (client, remote) = (rig.pod("a/client").clone(), rig.pod("b/remote").v4);
    let answer = |flags: u8, payload: &[u8]| -> Result<[u32; 3]> {
        let capture = Capture::start(&client.netns)?;
        let mut body = [4000_u16.to_be_bytes(), 80_u16.to_be_bytes()].concat();
        body.extend(1000_u32.to_be_bytes());
        body.extend(5000_u32.to_be_bytes());
        body.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        body.extend(payload);
        let length = u16::try_from(body.len())?.to_be_bytes();
        let pseudo = [&client.v4.octets()[..], &remote.octets(), &[0, 6], &length, &body].concat();
        body[16..18].copy_from_slice(&forge::checksum(&pseudo).to_be_bytes());
        let packet = forge::ipv4(client.v4, remote, 6, 64, &body);
        client.netns.inside(|| forge::raw(remote.into(), &packet))??;
        let frame = capture.wait(SOON, |frame| is_answer(frame, remote.into(), true)).context("no reset")?;
        is_right(&frame, remote.into())?;
        let tcp = &frame[ETH + 20..];
        ensure!(tcp[..4] == [0, 80, 0x0f, 0xa0], "the ports: {tcp:02x?}");
        let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        Ok([number(4), number(8), u32::from(tcp[13])])
    };
    let (rst, rst_ack) = (0x04, 0x14);
    for (flags, payload, expected) in [
        (0x02, &b""[..], [0, 1001, rst_ack]),
        (0x02, b"fast open", [0, 1010, rst_ack]),
        (0x10, b"", [5000, 0, rst]),
        (0x18, b"data", [5000, 0, rst]),
        (0x12, b"", [5000, 0, rst]),
        (0x11, b"", [5000, 0, rst]),
    ] {
        let found = answer(flags, payload)?;
        ensure!(found == expected, "to flags {flags:#x} with {} bytes: {found:?}", payload.len());
    }
    Ok(())
}

fn bounded() -> Result<()> {
    const RATE: u32 = 20;
    const SENT: u64 = 400;
    let mut rig = Rig::routed()?;
    let before = rig.config("n1");
    drop(rig.take("n1"));
    let limits = EndpointLimits { answers: RATE, ..EndpointLimits::default() };
    rig.open_with("n1", NodeConfig { limits, ..before })?;
    rig.apply(&[closed("a/client", Direction::Egress).rejecting()])?;
    let (client, target) = (rig.pod("a/client").clone(), rig.at("b/remote", Family::V4, 53));
    let (counted, start) = (rig.counters()?, Instant::now());
    client.netns.inside(|| -> Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        for _ in 0..SENT {
            socket.send_to(b"ping", target)?;
        }
        Ok(())
    })??;
    let seconds = start.elapsed().as_secs() + 2;
    let grown = |counter| -> Result<u64> { Ok(rig.counters()?.get(counter) - counted.get(counter)) };
    eventually("each was answered or not", || {
        Ok(grown(Counter::UnreachableSent)? + grown(Counter::AnswerLimit)? == SENT)
    })?;
    let answered = grown(Counter::UnreachableSent)?;
    ensure!(answered >= u64::from(RATE), "only {answered} were answered");
    ensure!(answered <= u64::from(RATE) * seconds + 4, "{answered} were answered in {seconds} s");
    Ok(())
}

/// Each is refused, and nothing comes back.
fn never() -> Result<()> {
    let mut rig = Rig::routed()?;
    // Both ways: a reset in the middle may be of a connection that somebody opened to the pod.
    rig.apply(&[Direction::Egress, Direction::Ingress].map(|way| closed("a/client", way).rejecting()))?;
    let (client, remote) = (rig.pod("a/client").clone(), rig.pod("b/remote").v4);
    let inner = forge::ipv4(remote, client.v4, 17, 60, &[0, 53, 0x0f, 0xa0, 0, 8, 0, 0]);
    let error = forge::icmp4([&[3, 3, 0, 0, 0, 0, 0, 0][..], &inner].concat());
    let reply = forge::icmp4(vec![0, 0, 0, 0, 0, 7, 0, 1]);
    let mut reset = [0x0f, 0xa0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 4, 0, 0, 0, 0, 0, 0];
    let pseudo = [&client.v4.octets()[..], &remote.octets(), &[0, 6, 0, 20], &reset].concat();
    reset[16..18].copy_from_slice(&forge::checksum(&pseudo).to_be_bytes());
    let group = Ipv4Addr::new(224, 0, 0, 251);
    let datagram = [0x0f, 0xa0, 0, 53, 0, 8, 0, 0];
    for (what, target, packet) in [
        ("an ICMP error", remote, forge::ipv4(client.v4, remote, 1, 64, &error)),
        ("an echo reply", remote, forge::ipv4(client.v4, remote, 1, 64, &reply)),
        ("a reset", remote, forge::ipv4(client.v4, remote, 6, 64, &reset)),
        ("a datagram to a group", group, forge::ipv4(client.v4, group, 17, 64, &datagram)),
        ("a fragment", remote, forge::fragment(client.v4, remote, 0x2000)),
    ] {
        let before = rig.counters()?;
        let refused = |since: &sluice_redirect::Counters| -> Result<u64> {
            let now = rig.counters()?;
            let reasons = [Counter::Denied, Counter::NoRow, Counter::Fragment];
            Ok(reasons.iter().map(|reason| now.get(*reason) - since.get(*reason)).sum())
        };
        client.netns.inside(|| forge::raw(target.into(), &packet))??;
        rig.explain(eventually(&format!("{what} is refused"), || Ok(refused(&before)? > 0)))?;
        rig.same(&before, Counter::ResetSent).context(what)?;
        rig.same(&before, Counter::UnreachableSent).context(what)?;
    }
    // The same without what forbids an answer.
    let before = rig.counters()?;
    let packet = forge::ipv4(client.v4, remote, 17, 64, &datagram);
    client.netns.inside(|| forge::raw(remote.into(), &packet))??;
    rig.grew(&before, Counter::UnreachableSent)
}

/// The mark that answers pass by is not a pod's to set.
fn forged() -> Result<()> {
    let mut rig = Rig::routed()?;
    rig.apply(&[
        closed("a/client", Direction::Egress),
        closed("a/server", Direction::Ingress),
        egress("a/other", "b/remote", udp(53)),
    ])?;
    let dns = rig.at("b/remote", Family::V4, 53);
    let server = UdpServer::start(&rig.pod("b/remote").netns, dns)?;
    let marked = |from: &Pod, target: SocketAddr| -> Result<bool> {
        from.netns.inside(|| -> Result<bool> {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            socket.set_mark(DEFAULT_MARK)?;
            socket.set_read_timeout(Some(SILENCE))?;
            socket.send_to(b"ping", &target.into())?;
            Ok((&socket).read(&mut [0; 16]).is_ok())
        })?
    };
    ensure!(!marked(rig.pod("a/client"), dns)?, "a marked datagram leaves a closed pod");
    let inner = rig.at("a/server", Family::V4, 53);
    let closed = UdpServer::start(&rig.pod("a/server").netns, inner)?;
    ensure!(!marked(rig.pod("a/other"), inner)?, "a marked datagram reaches a closed pod");
    ensure!(!marked(rig.pod("b/remote"), inner)?, "a marked datagram reaches a closed pod from elsewhere");
    let count = |server: &UdpServer| server.datagrams.load(std::sync::atomic::Ordering::SeqCst);
    ensure!(count(&server) + count(&closed) == 0, "a marked datagram arrived");
    ensure!(marked(rig.pod("a/other"), dns)?, "what is allowed passes with a mark, too");
    let local = rig.at("a/other", Family::V4, 0);
    ensure!(datagram(&rig.pod("a/other").netns, local, dns, SOON)?, "and without");
    Ok(())
}
