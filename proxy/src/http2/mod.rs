//! HTTP/2: one connection, stream by stream, each judged before a byte of it goes on.
//!
//! One connection to the server per connection of the client, dialled at the first allow. Its flow control and the
//! client's are joined by [`pump`], so no body is kept. Called by [`Proxy`].

mod pump;
mod rewound;
mod stream;

use crate::answer::Refusal;
use crate::judge::{self, Leg};
use crate::limits::{
    H2_CONNECTION_WINDOW, H2_HANDSHAKE_TIMEOUT, H2_HEADER_LIST_BYTES, H2_LOCAL_ERROR_RESETS,
    H2_PENDING_RESETS, H2_RESET_STREAMS, H2_SEND_BUFFER, H2_STREAM_WINDOW, H2_STREAMS,
};
use crate::proxy::{Accepted, Proxy};
use crate::record::Record;
use bytes::Bytes;
use h2::client::SendRequest;
use rewound::Rewound;
use sluice_policy::Reason;
use std::io;
use std::sync::Arc;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

/// What the streams of one connection share.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) leg: Leg,
    upstream: OnceCell<SendRequest<Bytes>>,
    /// The server's connection has ended, or wants to.
    gone: CancellationToken,
}

/// Serves the connection to its end.
pub async fn serve(proxy: Arc<Proxy>, client: Accepted) {
    let leg = client.leg;
    let io = Rewound::new(client.buf.freeze(), client.stream);
    let handshake = server().handshake::<_, Bytes>(io);
    let mut client = match tokio::time::timeout(H2_HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) if !error.is_io() => return unreadable(&proxy, &leg),
        // The client left, or never said its SETTINGS.
        _ => return,
    };
    let gone = CancellationToken::new();
    let connection = Arc::new(Connection { proxy, leg, upstream: OnceCell::new(), gone });
    let mut told = false;
    loop {
        let accepted = tokio::select! {
            accepted = client.accept() => accepted,
            () = connection.proxy.draining(), if !told => {
                told = true;
                client.graceful_shutdown();
                continue;
            }
            () = connection.gone.cancelled(), if !told => {
                told = true;
                client.graceful_shutdown();
                continue;
            }
        };
        match accepted {
            Some(Ok((request, respond))) => {
                let stream = stream::serve(connection.clone(), request, respond);
                // Boxed for its size. Ends with its connection: then every handle it waits on fails.
                connection.proxy.spawn_stream(Box::pin(stream));
            }
            Some(Err(error)) => {
                if !error.is_io() && !error.is_remote() {
                    unreadable(&connection.proxy, &leg);
                }
                return;
            }
            None => return,
        }
    }
}

fn server() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(H2_STREAMS)
        .max_header_list_size(H2_HEADER_LIST_BYTES)
        .max_pending_accept_reset_streams(H2_PENDING_RESETS)
        .max_concurrent_reset_streams(H2_RESET_STREAMS)
        .max_local_error_reset_streams(Some(H2_LOCAL_ERROR_RESETS))
        .initial_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_send_buffer_size(H2_SEND_BUFFER);
    builder
}

fn client() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .max_header_list_size(H2_HEADER_LIST_BYTES)
        .max_concurrent_reset_streams(H2_RESET_STREAMS)
        .max_local_error_reset_streams(Some(H2_LOCAL_ERROR_RESETS))
        .initial_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_send_buffer_size(H2_SEND_BUFFER);
    builder
}

fn unreadable(proxy: &Proxy, leg: &Leg) {
    let mut record = Record::begin(&proxy.state.view(), leg, "http/2");
    record.judged(&judge::refuse(Reason::ParseError));
    "protocol_error".clone_into(&mut record.error);
    proxy.records.finish(record);
}

impl Connection {
    /// The server's connection, dialled by whoever needs it first.
    async fn upstream(&self) -> Result<SendRequest<Bytes>, Refusal> {
        self.upstream.get_or_try_init(|| self.connect()).await.cloned()
    }

    /// Whether the server's connection has ended.
    fn is_gone(&self) -> bool {
        self.gone.is_cancelled()
    }

    async fn connect(&self) -> Result<SendRequest<Bytes>, Refusal> {
        let stream = self.proxy.dialer.dial(&self.leg).await.map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => Refusal::Timeout,
            _ => Refusal::Unreachable,
        })?;
        let handshake = client().handshake(stream);
        let (send, connection) = tokio::time::timeout(H2_HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| Refusal::Timeout)?
            .map_err(|_| Refusal::BadAnswer("no HTTP/2"))?;
        let gone = self.gone.clone();
        // Ends when the server's connection does, or when the last stream and the client's connection are gone.
        tokio::spawn(async move {
            let _ = connection.await;
            gone.cancel();
        });
        Ok(send)
    }
}
