//! Raw tunnels: bytes that nobody reads, both ways, with half-close, for as long as policy lets them.
//!
//! Knows nothing of HTTP. Called for what is not HTTP, and for what only audited policies wanted to read.

use crate::limits::BUFFER_BYTES;
use crate::proxy::{Accepted, Proxy, reset};
use crate::record::Record;
use crate::state::Said;
use bytes::{Bytes, BytesMut};
use sluice_policy::Decision;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// A server that the connection had already, and what was read of it.
pub type Server = (TcpStream, Bytes);

/// Tunnels the connection if policy allows what is known of it, which is no request, else resets it.
pub async fn serve(proxy: &Proxy, mut client: Accepted, said: Said, server: Option<Server>) {
    let flow = proxy.state.open(client.leg, said.clone());
    let view = proxy.state.view();
    let verdict = said.judge(&view, &client.leg);
    let mut record = match &said {
        Said::Tls(name) => {
            let mut record = Record::begin(&view, &client.leg, "tls");
            record.host = name.as_deref().unwrap_or_default().to_owned();
            record
        }
        Said::Raw | Said::Request(_) => Record::begin(&view, &client.leg, "tcp"),
    };
    record.judged(&verdict);
    if verdict.decision() == Decision::Deny {
        reset(&client.stream);
        proxy.records.finish(record);
        return;
    }
    let server = match server {
        Some(server) => server,
        None => match proxy.dialer.dial(&client.leg).await {
            Ok(stream) => (stream, Bytes::new()),
            Err(_) => {
                reset(&client.stream);
                "unreachable".clone_into(&mut record.error);
                proxy.records.finish(record);
                return;
            }
        },
    };
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
    tokio::try_join!(
        one_way(client_read, server_write, from_client, up),
        one_way(server_read, client_write, from_server, down),
    )
    .map(|_| ())
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
