//! Dials the server that a connection was meant for, in the client's name.
//!
//! Knows nothing of HTTP or of policy. Must be called in the network namespace whose routes lead on.

use crate::judge::Leg;
use crate::limits::{DIAL_TIMEOUT, KEEPALIVE};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use tokio::net::{TcpSocket, TcpStream};

/// Probes that tell a peer that vanished from one that says nothing.
#[must_use]
pub fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE)
}

/// How servers are reached.
#[derive(Clone, Copy, Debug)]
pub enum Dialer {
    /// From the client's own address (`IP_TRANSPARENT`), so that the server sees who calls. Needs `CAP_NET_ADMIN`.
    Transparent,
    /// From the client's own address, but to this server: for tests on loopback, where nothing redirects and every
    /// address is local.
    Loopback(SocketAddr),
}

impl Dialer {
    /// Connects to the leg's destination from the client's address and a free port.
    ///
    /// # Errors
    /// What the kernel says, or that it took longer than [`DIAL_TIMEOUT`].
    pub async fn dial(self, leg: &Leg) -> io::Result<TcpStream> {
        let to = match self {
            Self::Transparent => leg.destination,
            Self::Loopback(server) => server,
        };
        let socket = TcpSocket::from_std_stream(self.socket(leg.source.ip(), to)?.into());
        match tokio::time::timeout(DIAL_TIMEOUT, socket.connect(to)).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the server did not answer")),
        }
    }

    fn socket(self, client: IpAddr, to: SocketAddr) -> io::Result<Socket> {
        let domain = Domain::for_address(to);
        let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        match self {
            Self::Transparent if domain == Domain::IPV6 => socket.set_ip_transparent_v6(true)?,
            Self::Transparent => socket.set_ip_transparent_v4(true)?,
            Self::Loopback(_) => {}
        }
        // The port is the kernel's to choose (the client's own may still be in use by the other leg), and not before
        // it knows the server: chosen at bind, it would be unique among all connections of the client, and a busy
        // pod would run out of ports (IP_BIND_ADDRESS_NO_PORT; IPv6 sockets take it at the same level).
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(client, 0).into())?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&keepalive())?;
        Ok(socket)
    }
}
