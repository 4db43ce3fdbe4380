//! Dials the server that a connection was meant for, in the client's name.
//!
//! Knows nothing of HTTP or of policy. Must be called in the network namespace whose routes lead on.

use crate::judge::Leg;
use crate::limits::{DIAL_TIMEOUT, KEEPALIVE};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
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
    /// From the client's own address, but to this server: for tests on loopback, where nothing redirects.
    TransparentTo(SocketAddr),
}

impl Dialer {
    /// Connects to the leg's destination from the client's address and a free port.
    ///
    /// # Errors
    /// What the kernel says, or that it took longer than [`DIAL_TIMEOUT`].
    pub async fn dial(self, leg: &Leg) -> io::Result<TcpStream> {
        let to = match self {
            Self::Transparent => leg.destination,
            Self::TransparentTo(server) => server,
        };
        let domain = Domain::for_address(to);
        let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        if domain == Domain::IPV6 {
            socket.set_ip_transparent_v6(true)?;
        } else {
            socket.set_ip_transparent_v4(true)?;
        }
        // The port is the kernel's to choose: the client's own may still be in use by the other leg.
        socket.bind(&SocketAddr::new(leg.source.ip(), 0).into())?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&keepalive())?;
        let socket = TcpSocket::from_std_stream(socket.into());
        match tokio::time::timeout(DIAL_TIMEOUT, socket.connect(to)).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the server did not answer")),
        }
    }
}
