//! The sockets of one pod: servers on every port, and what sees each opening packet that arrives.
//!
//! One thread holds those of all pods: a socket stays in the namespace that it was made in. Knows nothing of
//! verdicts. Called by the probes.

use crate::case::{MARKER, PORTS, Protocol};
use crate::sctp::{self, Chunk};
use anyhow::{Context, Result};
use rustix::net::{RecvFlags, recvfrom};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sluice_tests::world::Netns;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

const TCP: i32 = 6;
/// Room for what one round sends to one pod before anybody reads; the kernel grants twice its own limit at most.
const ROOM: usize = 1 << 20;
/// Connections that may wait to be accepted: more than one round opens.
const BACKLOG: i32 = 4_096;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;

/// An opening packet that came, or an answer to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Came {
    /// Of what.
    pub(crate) protocol: Protocol,
    /// An opening packet, or the answer to one. TCP's answers are the kernel's to tell.
    pub(crate) opens: bool,
    /// From.
    pub(crate) from: SocketAddr,
    /// The port that it came to.
    pub(crate) port: u16,
}

/// One pod's.
#[derive(Debug)]
pub(crate) struct Sockets {
    netns: File,
    listeners: Vec<TcpListener>,
    /// On the served ports, then on the marker's.
    udp: Vec<(u16, UdpSocket)>,
    tcp_seen: Vec<Socket>,
    sctp: Vec<(Domain, Socket)>,
}

impl Sockets {
    /// Opens them. The thread is in the pod's namespace after.
    pub(crate) fn open(netns: &Netns) -> Result<Self> {
        let netns = File::open(netns.path())?;
        enter(&netns)?;
        let any = |port: u16| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listen = |port: &u16| -> Result<TcpListener> {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            socket.bind(&any(*port).into())?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        };
        let udp = |port: u16| -> Result<(u16, UdpSocket)> {
            let socket = UdpSocket::bind(any(port))?;
            socket.set_nonblocking(true)?;
            Ok((port, socket))
        };
        let raw = |(domain, protocol): (Domain, i32)| -> Result<Socket> {
            let socket = Socket::new(domain, Type::RAW, Some(protocol.into()))?;
            socket.set_recv_buffer_size(ROOM)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let families = [Domain::IPV4, Domain::IPV6];
        let sctp = |domain| Ok((domain, raw((domain, sctp::PROTOCOL))?));
        Ok(Self {
            listeners: PORTS.iter().map(listen).collect::<Result<_>>()?,
            udp: PORTS.into_iter().chain([MARKER]).map(udp).collect::<Result<_>>()?,
            tcp_seen: families.into_iter().map(|domain| raw((domain, TCP))).collect::<Result<_>>()?,
            sctp: families.into_iter().map(sctp).collect::<Result<_>>()?,
            netns,
        })
    }

    /// Moves this thread into the pod's namespace.
    pub(crate) fn enter(&self) -> Result<()> {
        enter(&self.netns)
    }

    /// Reads everything that came, and answers what must be answered.
    pub(crate) fn drain(&self) -> Result<Vec<Came>> {
        let mut came = Vec::new();
        for (port, socket) in &self.udp {
            let mut buffer = [0; 64];
            while let Some((length, from)) = ready(socket.recv_from(&mut buffer))? {
                came.push(Came { protocol: Protocol::Udp, opens: true, from: canonical(from), port: *port });
                if *port != MARKER {
                    // That a full queue loses one shows as an answer that never came.
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        }
        for socket in &self.tcp_seen {
            drain_tcp(socket, &mut came)?;
        }
        for (_, socket) in &self.sctp {
            drain_sctp(socket, &mut came)?;
        }
        Ok(came)
    }

    /// Takes what was connected to this pod out of the queues, and ends it.
    pub(crate) fn accept_all(&self) -> Result<()> {
        for listener in &self.listeners {
            while let Some((stream, _)) = ready(listener.accept())? {
                end(stream)?;
            }
        }
        Ok(())
    }

    /// Sends an INIT.
    pub(crate) fn init(&self, to: SocketAddr, sport: u16, tag: u32) -> Result<()> {
        let domain = Domain::for_address(to);
        let (_, socket) =
            self.sctp.iter().find(|(of, _)| *of == domain).context("a socket of each family")?;
        let chunk = Chunk { sport, dport: to.port(), opens: true, tag };
        send(socket, &chunk.bytes(0), to.ip())
    }
}

/// A client's UDP socket in the namespace that this thread is in.
pub(crate) fn client(port: u16) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Begins a connection in the namespace that this thread is in.
pub(crate) fn connect(to: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
            Err(error).with_context(|| format!("connect to {to}"))
        }
        _ => Ok(socket.into()),
    }
}

/// Ends a connection with a reset: nothing of it stays, on either side.
pub(crate) fn end(stream: TcpStream) -> Result<()> {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// An IPv4 address that an IPv6 socket saw, as what it is.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The address as a socket of both families wants it.
pub(crate) fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// The result of a call that has nothing to say yet.
pub(crate) fn ready<T>(result: std::io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        // Word of an earlier packet's fate.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn enter(netns: &File) -> Result<()> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
        .context("cannot enter the pod's namespace (root is needed)")
}

/// One packet of a raw socket, without its IP header.
fn receive(socket: &Socket) -> Result<Option<(Vec<u8>, IpAddr)>> {
    let mut buffer = [0; 512];
    let received = recvfrom(socket, &mut buffer, RecvFlags::empty()).map_err(std::io::Error::from);
    let Some((length, _, from)) = ready(received)? else { return Ok(None) };
    let packet = &buffer[..length];
    let from = SocketAddr::try_from(from.context("a packet has a sender")?)?.ip();
    // IPv4 hands its header over, IPv6 does not.
    let at = if from.is_ipv4() { usize::from(packet[0] & 0x0f) * 4 } else { 0 };
    Ok(Some((packet.get(at..).unwrap_or_default().to_vec(), from)))
}

fn drain_tcp(socket: &Socket, came: &mut Vec<Came>) -> Result<()> {
    while let Some((bytes, from)) = receive(socket)? {
        if bytes.len() >= 14 && bytes[13] & SYN_ACK == SYN {
            let from = SocketAddr::new(from, u16::from_be_bytes([bytes[0], bytes[1]]));
            let port = u16::from_be_bytes([bytes[2], bytes[3]]);
            came.push(Came { protocol: Protocol::Tcp, opens: true, from, port });
        }
    }
    Ok(())
}

fn drain_sctp(socket: &Socket, came: &mut Vec<Came>) -> Result<()> {
    while let Some((bytes, from)) = receive(socket)? {
        let Some(chunk) = Chunk::read(&bytes) else { continue };
        let at = SocketAddr::new(from, chunk.sport);
        came.push(Came { protocol: Protocol::Sctp, opens: chunk.opens, from: at, port: chunk.dport });
        if chunk.opens && PORTS.contains(&chunk.dport) {
            let answer = Chunk { sport: chunk.dport, dport: chunk.sport, opens: false, tag: !chunk.tag };
            send(socket, &answer.bytes(chunk.tag), from)?;
        }
    }
    Ok(())
}

fn send(socket: &Socket, bytes: &[u8], to: IpAddr) -> Result<()> {
    // A refusal of the network shows as a packet that never came.
    match socket.send_to(bytes, &SockAddr::from(SocketAddr::new(to, 0))) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error.into()),
        _ => Ok(()),
    }
}
