//! Writes and reads that a peer may hold up, but not for ever.
//!
//! A timer is made only where a peer does hold up: what goes on at once pays nothing. Knows nothing of protocols.

use crate::limits::STALL_TIMEOUT;
use bytes::BytesMut;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// The timer of a peer that holds up.
#[derive(Debug, Default)]
struct Stall(Option<Pin<Box<Sleep>>>);

impl Stall {
    /// Nothing moved now; an error when that has gone on for too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep(STALL_TIMEOUT)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the peer takes or says nothing"))
    }

    /// Something moved.
    fn moved(&mut self) {
        if let Some(timer) = &mut self.0 {
            timer.as_mut().reset(Instant::now() + STALL_TIMEOUT);
        }
    }
}

/// The timer of what follows one another, each with a time of its own: it is moved on only when it comes, which is
/// hardly ever.
#[derive(Debug, Default)]
pub struct Deadline(Option<Pin<Box<Sleep>>>);

impl Deadline {
    /// Ends then.
    pub async fn at(&mut self, then: Instant) {
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(then)));
        if timer.deadline() > then {
            timer.as_mut().reset(then);
        }
        poll_fn(|cx| {
            loop {
                ready!(timer.as_mut().poll(cx));
                if Instant::now() >= then {
                    return Poll::Ready(());
                }
                timer.as_mut().reset(then);
            }
        })
        .await;
    }
}

/// Writes all of it, as long as the peer takes something every [`STALL_TIMEOUT`].
///
/// # Errors
/// The socket's; `TimedOut` if the peer does not.
pub async fn write_all(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    let (mut at, mut stall) = (0, Stall::default());
    poll_fn(|cx| {
        while at < bytes.len() {
            match Pin::new(&mut *writer).poll_write(cx, &bytes[at..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(length)) => {
                    at += length;
                    stall.moved();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return stall.poll(cx).map(Err),
            }
        }
        Poll::Ready(Ok(()))
    })
    .await
}

/// Reads more, if it comes within [`STALL_TIMEOUT`].
///
/// # Errors
/// The socket's; `TimedOut` if nothing comes.
pub async fn read_more(reader: &mut (impl AsyncRead + Unpin), buf: &mut BytesMut) -> io::Result<usize> {
    match tokio::time::timeout(STALL_TIMEOUT, crate::http1::body::read_body(reader, buf)).await {
        Ok(read) => read,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
