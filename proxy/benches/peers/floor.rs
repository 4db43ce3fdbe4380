//! The floor: a proxy that accepts, connects and copies, and does nothing else. What two sockets cost in Rust.
//!
//! It is this binary, started again with its ports as arguments.

use crate::world::CLIENT;
use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};
use std::net::{IpAddr, SocketAddr};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// What is copied at once.
const BUFFER: usize = 64 * 1024;

/// Serves the ports that it was started with.
pub(crate) fn run() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut last = None;
        for port in std::env::args().skip(2) {
            let listener = TcpListener::from_std(crate::world::listener(port.parse()?)?)?;
            last = Some(tokio::spawn(accept(listener)));
        }
        last.context("no port")?.await??;
        Ok(())
    })
}

async fn accept(listener: TcpListener) -> std::io::Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(async move {
            let _ = serve(client).await;
        });
    }
}

async fn serve(mut client: TcpStream) -> std::io::Result<()> {
    let to = client.local_addr()?;
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
    socket.set_ip_transparent_v4(true)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(IpAddr::V4(CLIENT), 0).into())?;
    socket.set_tcp_nodelay(true)?;
    client.set_nodelay(true)?;
    let mut server = TcpSocket::from_std_stream(socket.into()).connect(to).await?;
    tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await?;
    Ok(())
}
