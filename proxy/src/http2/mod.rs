//! HTTP/2: one connection, stream by stream, each judged before a byte of it goes on.
//!
//! One connection to the server per connection of the client, dialled at the first allow; of a Service one to each
//! backend that streams are sent to ([`upstreams`]). Its flow control and the client's are joined by [`pump`], so no
//! body is kept. Called by [`Proxy`].

pub mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub mod hpack;
mod pump;
pub(crate) mod relay;
mod rewound;
mod stream;
mod upstreams;

use crate::judge;
use crate::limits::{
    H2_CONNECTION_WINDOW, H2_HANDSHAKE_TIMEOUT, H2_HEADER_LIST_BYTES, H2_LOCAL_ERROR_RESETS,
    H2_PENDING_RESETS, H2_RESET_STREAMS, H2_SEND_BUFFER, H2_STREAM_WINDOW, H2_STREAMS,
};
use crate::proxy::{Accepted, Http2, Proxy};
use crate::service::route::{Client, Target};
use crate::share::{Crowd, Streams};
use bytes::Bytes;
use rewound::Rewound;
use sluice_policy::Reason;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;
use upstreams::{Server, Upstreams};

/// What the streams of one connection share.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) client: Client,
    upstreams: Upstreams,
    /// What its streams hold is charged here.
    crowd: Crowd,
    /// How many there are, and what they take of their endpoint's.
    open: Mutex<(usize, Streams)>,
    /// The only server's connection has ended, or wants to. One of a Service's does not end the client's.
    gone: CancellationToken,
}

/// Serves the connection to its end.
pub async fn serve(proxy: Arc<Proxy>, client: Accepted) {
    // A Service's streams are balanced one by one: they have no one connection to a server.
    if proxy.http2 == Http2::Relayed && !client.client.service {
        return Box::pin(relay::io::serve(proxy, client)).await;
    }
    let (from, crowd, streams) = (client.client, client.charge.crowd(), client.charge.streams());
    let seat = client.seat;
    let io = Rewound::new(client.buf.freeze(), client.stream);
    let handshake = server(proxy.offers_upgrades(&from)).handshake::<_, Bytes>(io);
    let mut client = match tokio::time::timeout(H2_HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) if !error.is_io() => return unreadable(&proxy, &from, Reason::ParseError),
        // The client left, or never said its SETTINGS.
        _ => return,
    };
    let gone = CancellationToken::new();
    let connection = Arc::new(Connection {
        proxy,
        client: from,
        upstreams: Upstreams::default(),
        crowd,
        open: Mutex::new((0, streams)),
        gone,
    });
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
            Some(Ok((_, mut respond))) if !connection.begin() => {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
                no_stream(&connection.proxy, &from);
            }
            Some(Ok((request, respond))) => {
                let begun = Begun(connection.clone());
                // Ends with its connection: then every handle it waits on fails.
                connection.proxy.spawn_stream(&seat, async move {
                    stream::serve(begun.0.clone(), request, respond).await;
                    drop(begun);
                });
            }
            Some(Err(error)) => {
                if !error.is_io() && !error.is_remote() {
                    unreadable(&connection.proxy, &from, Reason::ParseError);
                }
                return;
            }
            None => return,
        }
    }
}

fn server(offers_upgrades: bool) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    if offers_upgrades {
        builder.enable_connect_protocol();
    }
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

/// Its endpoint has as many streams as it may: nobody has looked at this one, and it may be sent again.
fn no_stream(proxy: &Proxy, client: &Client) {
    let mut record = client.record(&proxy.state.view(), "http/2");
    record.judged(&judge::refuse(Reason::Limit));
    "endpoint_streams".clone_into(&mut record.error);
    proxy.records.finish(record);
}

fn unreadable(proxy: &Proxy, client: &Client, reason: Reason) {
    let mut record = client.record(&proxy.state.view(), "http/2");
    record.judged(&judge::refuse(reason));
    "protocol_error".clone_into(&mut record.error);
    proxy.records.finish(record);
}

/// A stream that is open.
struct Begun(Arc<Connection>);

impl Drop for Begun {
    fn drop(&mut self) {
        let (open, streams) = &mut *self.0.open();
        *open -= 1;
        streams.set(*open);
    }
}

impl Connection {
    fn open(&self) -> MutexGuard<'_, (usize, Streams)> {
        // A panic elsewhere leaves it whole: each change is done before anything can fail.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more stream; `false`: there may be none.
    fn begin(&self) -> bool {
        let (open, streams) = &mut *self.open();
        let may = streams.set(*open + 1);
        *open += usize::from(may);
        may
    }

    /// The connection that a stream to this target goes over; `None` where there may be no more of them.
    fn server(&self, target: &Target) -> Option<Arc<Server>> {
        if self.client.service {
            self.upstreams.to(&self.proxy, target)
        } else {
            Some(self.upstreams.only(target.leg.destination, &self.gone))
        }
    }
}
