//! What connections cost that do nothing: resident memory of a proxy that holds thousands of them.
//!
//! Each has had one answer before, so that its connection to the server is there as well. The ends here keep a socket
//! and nothing else.

use crate::client::inside;
use crate::http1;
use crate::http2::{self, Request};
use crate::peer::Peer;
use crate::usage::resident;
use crate::world::{CLIENT, SECOND, World};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// How many.
pub(crate) const CONNECTIONS: usize = 5000;
/// Until what was freed has been given back, and what follows an answer is done.
const REST: Duration = Duration::from_millis(1500);

/// Resident memory in MB.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) before: f64,
    pub(crate) http1: f64,
    pub(crate) http2: f64,
}

/// Measures one; `None` where there is no proxy.
pub(crate) async fn run(world: &World, peer: &Peer) -> Result<Option<Sizes>> {
    let Some(pid) = peer.pid else { return Ok(None) };
    let (one, two) = (peer.one, peer.two);
    let hold = async |two_too: bool| -> Result<f64> {
        inside(world, async move || {
            let mut all = Vec::new();
            for place in 0..CONNECTIONS {
                let from = if place % 2 == 0 { CLIENT } else { SECOND };
                let opened =
                    if two_too { ask_two(two, from.into()).await } else { ask_one(one, from.into()).await };
                all.push(opened.with_context(|| format!("after {place} connections"))?);
            }
            tokio::time::sleep(REST).await;
            Ok(resident(pid))
        })
        .await
    };
    let before = resident(pid);
    let http1 = hold(false).await?;
    tokio::time::sleep(REST).await;
    let http2 = hold(true).await?;
    tokio::time::sleep(REST).await;
    Ok(Some(Sizes { before, http1, http2 }))
}

async fn connect(to: SocketAddr, from: IpAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(SocketAddr::new(from, 0))?;
    Ok(socket.connect(to).await?)
}

async fn ask_one(to: SocketAddr, from: IpAddr) -> Result<TcpStream> {
    let mut stream = connect(to, from).await?;
    stream.write_all(&http1::request("GET", "/public/item", false)).await?;
    let mut answer = Vec::with_capacity(1024);
    while !answer.ends_with(b"[]}\r\n") {
        ensure!(stream.read_buf(&mut answer).await? > 0, "the connection ended");
    }
    Ok(stream)
}

async fn ask_two(to: SocketAddr, from: IpAddr) -> Result<TcpStream> {
    let (passed, stream) = http2::Connection::new(connect(to, from).await?, Request::Get).once().await?;
    ensure!(passed, "refused");
    Ok(stream)
}
