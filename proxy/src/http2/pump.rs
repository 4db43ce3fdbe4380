//! Moves one body from stream to stream, no faster than the receiver takes it.
//!
//! The sender's window opens by what the receiver's window took: nothing is kept but what is on its way. Knows
//! nothing of requests or of policy.

use crate::limits::H2_STREAM_WINDOW;
use crate::share::Crowd;
use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

/// How a body ended too early.
#[derive(Debug)]
pub(super) enum Broken {
    /// The sender reset the stream, or its connection failed.
    Sender(h2::Error),
    /// The receiver reset the stream, or its connection failed.
    Receiver(Option<Reason>),
}

/// Moves the body and its trailers; returns the trailers.
pub(super) async fn run(
    from: &mut RecvStream,
    to: &mut SendStream<Bytes>,
    (count, crowd): (&AtomicU64, &Crowd),
    admits: impl Fn(&HeaderMap) -> bool,
) -> Result<Option<HeaderMap>, Broken> {
    while let Some(data) = next(from, to).await? {
        let length = data.len();
        let last = from.is_end_stream();
        send(to, data, last, crowd).await?;
        count.fetch_add(length as u64, Ordering::Relaxed);
        from.flow_control().release_capacity(length).map_err(Broken::Sender)?;
        if last {
            return Ok(None);
        }
    }
    let trailers = from.trailers().await.map_err(Broken::Sender)?;
    if trailers.as_ref().is_some_and(|trailers| !admits(trailers)) {
        return Err(Broken::Sender(Reason::PROTOCOL_ERROR.into()));
    }
    let sent = match &trailers {
        Some(trailers) => to.send_trailers(trailers.clone()),
        None => to.send_data(Bytes::new(), true),
    };
    sent.map_err(|error| Broken::Receiver(error.reason()))?;
    Ok(trailers)
}

/// The next piece; or that the receiver wants no more, which no sender would tell.
async fn next(from: &mut RecvStream, to: &mut SendStream<Bytes>) -> Result<Option<Bytes>, Broken> {
    poll_fn(|cx| {
        if let Poll::Ready(data) = from.poll_data(cx) {
            return Poll::Ready(data.transpose().map_err(Broken::Sender));
        }
        poll_left(to, cx).map(Err)
    })
    .await
}

fn poll_left(to: &mut SendStream<Bytes>, cx: &mut std::task::Context<'_>) -> Poll<Broken> {
    to.poll_reset(cx).map(|reset| Broken::Receiver(reset.map_or_else(|error| error.reason(), Some)))
}

/// Sends one piece as the window opens.
async fn send(to: &mut SendStream<Bytes>, mut data: Bytes, last: bool, crowd: &Crowd) -> Result<(), Broken> {
    // The rest of the sender's window may wait in the library as well.
    let mut held = None;
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        if to.capacity() == 0 && held.is_none() {
            held = crowd.hold(H2_STREAM_WINDOW as usize);
            if held.is_none() {
                return Err(Broken::Sender(Reason::ENHANCE_YOUR_CALM.into()));
            }
        }
        let room = poll_fn(|cx| {
            if to.capacity() > 0 {
                return Poll::Ready(Ok(to.capacity()));
            }
            match to.poll_capacity(cx) {
                Poll::Ready(Some(Ok(0))) => {
                    // Nothing was assigned: asked again at once, so that the waker is registered.
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Ready(Some(Ok(room))) => Poll::Ready(Ok(room)),
                Poll::Ready(Some(Err(error))) => Poll::Ready(Err(Broken::Receiver(error.reason()))),
                Poll::Ready(None) => Poll::Ready(Err(Broken::Receiver(None))),
                Poll::Pending => poll_left(to, cx).map(Err),
            }
        })
        .await?;
        let piece = data.split_to(room.min(data.len()));
        let end = last && data.is_empty();
        to.send_data(piece, end).map_err(|error| Broken::Receiver(error.reason()))?;
        if end {
            return Ok(());
        }
    }
    if last {
        to.send_data(Bytes::new(), true).map_err(|error| Broken::Receiver(error.reason()))?;
    }
    Ok(())
}
