//! TCP and UDP servers that send back what they get, the TCP one with a greeting first if asked.
//!
//! They stand for every protocol that is not HTTP. Called by `sluice-peer` and by tests.

use crate::peer::ledger::Ledger;
use anyhow::{Context, Result};
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// One read; a UDP datagram is never longer.
const BUFFER: usize = 64 * 1024;

/// Echoes on TCP until the task is dropped.
///
/// # Errors
/// When the listener cannot be used.
pub async fn tcp(listener: TcpListener, greeting: String, ledger: Arc<Ledger>) -> Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let port = listener.local_addr()?.port();
    loop {
        let (mut stream, peer) = listener.accept().await.context("accept")?;
        ledger.connection(port, peer);
        let (ledger, greeting) = (Arc::clone(&ledger), greeting.clone());
        tokio::spawn(async move {
            stream.write_all(greeting.as_bytes()).await?;
            let mut buffer = vec![0; BUFFER];
            loop {
                let read = stream.read(&mut buffer).await?;
                if read == 0 {
                    return stream.shutdown().await;
                }
                ledger.bytes(port, peer, read);
                stream.write_all(&buffer[..read]).await?;
            }
        });
    }
}

/// Echoes on UDP until the task is dropped.
///
/// # Errors
/// When the socket cannot be used.
pub async fn udp(socket: UdpSocket, ledger: Arc<Ledger>) -> Result<()> {
    socket.set_nonblocking(true)?;
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    let port = socket.local_addr()?.port();
    let mut buffer = vec![0; BUFFER];
    loop {
        // An ICMP error of an earlier answer shows here as a failed read: the next datagram is none the worse.
        let Ok((read, peer)) = socket.recv_from(&mut buffer).await else { continue };
        ledger.connection(port, peer);
        ledger.bytes(port, peer, read);
        let _ = socket.send_to(&buffer[..read], peer).await;
    }
}
