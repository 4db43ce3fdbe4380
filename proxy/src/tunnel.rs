//! Raw tunnels: bytes that nobody reads, both ways, with half-close, for as long as policy lets them.
//!
//! Knows nothing of HTTP. Called for what is not HTTP, and for what only audited policies wanted to read.

use crate::answer::{Denial, Refusal};
use crate::judge::Leg;
use crate::limits::{BUFFER_BYTES, TUNNEL_IDLE_TIMEOUT};
use crate::proxy::{Accepted, Proxy, reset};
use crate::service::route::{Route, Wish};
use crate::state::{Said, View};
use bytes::{Bytes, BytesMut};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// A server that the connection had already, by its address, and what was read of it.
pub type Server = (SocketAddr, TcpStream, Bytes);

/// Tunnels the connection if policy allows what is known of it, which is no request, else resets it. `servers`: those
/// that it had; the last is the one it used last. A tunnel goes to one of them if it may, and to none of the others.
pub async fn serve(proxy: &Proxy, mut client: Accepted, said: Said, mut servers: Vec<Server>) {
    let open: Vec<SocketAddr> = servers.iter().rev().map(|(at, ..)| *at).collect();
    let judge = |view: &View, leg: &Leg| said.judge(view, leg);
    let Route { target, judged, flow, view, load } =
        proxy.route(&client.client, &said, Wish::Keep(&open), judge);
    let mut record = match &said {
        Said::Tls(name) => {
            let mut record = target.record(&view, "tls");
            record.server_name(name.as_ref());
            record
        }
        Said::Raw | Said::Request(_) => target.record(&view, "tcp"),
    };
    drop(view);
    record.judged(&judged.verdict);
    if judged.is_denied() {
        reset(&client.stream);
        proxy.records.finish(record);
        return;
    }
    let open = servers.iter().position(|(at, ..)| *at == target.leg.destination);
    let server = match open.map(|place| servers.swap_remove(place)) {
        Some((_, stream, read)) => Ok((stream, read)),
        None => tokio::select! {
            // First: nobody is dialled who may not be reached any more.
            biased;
            verdict = flow.revoked() => Err(Refusal::Denied(Denial::of(verdict))),
            dialled = proxy.dial(&target) => dialled.map(|stream| (stream, Bytes::new())),
        },
    };
    let server = match server {
        Ok(server) => server,
        Err(refusal) => {
            reset(&client.stream);
            refusal.error().clone_into(&mut record.error);
            if let Refusal::Denied(_) = refusal {
                record.judged(flow.revoked().await);
                "revoked".clone_into(&mut record.error);
            }
            proxy.records.finish(record);
            return;
        }
    };
    drop(servers);
    let (mut server, from_server) = server;
    let (up, down) = (AtomicU64::new(0), AtomicU64::new(0));
    let from_client = client.buf.split().freeze();
    let both = both((&mut client.stream, from_client, &up), (&mut server, from_server, &down));
    let ended = tokio::select! {
        ended = both => ended.map(|()| None),
        verdict = flow.revoked() => Ok(Some(verdict.clone())),
    };
    match ended {
        Ok(None) => {}
        Ok(Some(verdict)) => {
            reset(&client.stream);
            reset(&server);
            record.judged(&verdict);
            "revoked".clone_into(&mut record.error);
        }
        Err(error) => {
            reset(&client.stream);
            reset(&server);
            error.kind().to_string().clone_into(&mut record.error);
        }
    }
    drop(load);
    record.bytes_up = up.load(Ordering::Relaxed);
    record.bytes_down = down.load(Ordering::Relaxed);
    proxy.records.finish(record);
}

/// One end of a tunnel: its socket, what was read of it already, and how much of what it says has gone on.
type End<'a> = (&'a mut TcpStream, Bytes, &'a AtomicU64);

/// Copies both ways until both ends have closed their half.
pub(crate) async fn both(client: End<'_>, server: End<'_>) -> io::Result<()> {
    let ((client, from_client, up), (server, from_server, down)) = (client, server);
    let (client_read, client_write) = client.split();
    let (server_read, server_write) = server.split();
    let copying = async {
        tokio::try_join!(
            one_way(client_read, server_write, from_client, up),
            one_way(server_read, client_write, from_server, down),
        )
        .map(|_| ())
    };
    tokio::select! {
        ended = copying => ended,
        () = silent(up, down) => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was said for too long")),
    }
}

/// Ends when nothing has gone either way for [`TUNNEL_IDLE_TIMEOUT`], or up to twice that.
async fn silent(up: &AtomicU64, down: &AtomicU64) {
    let said = || (up.load(Ordering::Relaxed), down.load(Ordering::Relaxed));
    let mut before = said();
    loop {
        tokio::time::sleep(TUNNEL_IDLE_TIMEOUT).await;
        let now = said();
        if now == before {
            return;
        }
        before = now;
    }
}

/// Copies until the sender closes its half, then closes the receiver's.
async fn one_way(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    first: Bytes,
    count: &AtomicU64,
) -> io::Result<()> {
    to.write_all(&first).await?;
    count.fetch_add(first.len() as u64, Ordering::Relaxed);
    drop(first);
    let mut buf = BytesMut::with_capacity(BUFFER_BYTES);
    loop {
        buf.clear();
        buf.reserve(BUFFER_BYTES);
        let length = from.read_buf(&mut buf).await?;
        if length == 0 {
            // The other end may have closed already: then there is nothing left to say.
            let _ = to.shutdown().await;
            return Ok(());
        }
        to.write_all(&buf).await?;
        count.fetch_add(length as u64, Ordering::Relaxed);
    }
}
