//! The two readings of one header block, the relay's and the library's: where the relay takes a request, the other path
//! takes the same one.

use super::hpack::Decoder;
use super::relay::message;
use super::stream::{said, settle_authority};
use crate::http2::frame::{self, Head, PREFACE, flag, kind};
use crate::judge;
use crate::limits::H2_HEADER_LIST_BYTES;
use bytes::Bytes;
use http::request::Parts;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest block: one frame.
const BLOCK_BYTES: usize = 16 * 1024;

/// A client that says this, and then nothing.
struct Script(Vec<u8>, usize);

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self(said, at) = &mut *self;
        let length = buf.remaining().min(said.len() - *at);
        if length == 0 {
            return Poll::Pending;
        }
        buf.put_slice(&said[*at..*at + length]);
        *at += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The request, as the library reads it, if it does.
fn library(block: &[u8], end: bool) -> Option<Parts> {
    let mut bytes = PREFACE.to_vec();
    frame::write_settings(&mut bytes, &[]);
    let flags = flag::END_HEADERS | if end { flag::END_STREAM } else { 0 };
    Head { length: block.len(), kind: kind::HEADERS, flags, stream: 1 }.write(&mut bytes);
    bytes.extend_from_slice(block);
    let mut cx = Context::from_waker(Waker::noop());
    let mut handshake = pin!(super::server(true).handshake::<_, Bytes>(Script(bytes, 0)));
    let Poll::Ready(Ok(mut connection)) = handshake.as_mut().poll(&mut cx) else { return None };
    match connection.poll_accept(&mut cx) {
        Poll::Ready(Some(Ok((request, _)))) => Some(request.into_parts().0),
        _ => None,
    }
}

fn shown(said: &judge::Said) -> impl PartialEq + std::fmt::Debug {
    let field = |(name, value): &judge::Field| (name.as_str().to_owned(), value.as_bytes().to_vec());
    let mut fields: Vec<_> = said.headers.iter().map(field).collect();
    // Among different names the library keeps no order.
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    let judge::Said { method, path, query, host, protocol, .. } = said.clone();
    (method, path, query, host, protocol, fields)
}

/// See the module. The first byte says whether the request has a body.
///
/// # Panics
/// If the two readings differ.
pub fn block(bytes: &[u8]) {
    let Some((first, block)) = bytes.split_first().filter(|(_, block)| block.len() <= BLOCK_BYTES) else {
        return;
    };
    let end = first & 1 == 0;
    // What the relay refuses, the library may take: changes of the table's size without end, say.
    let Ok(read) = Decoder::default().decode(block, H2_HEADER_LIST_BYTES as usize) else { return };
    let Some(asked) = message::request(&read.lines, end, true).ok().filter(|_| !read.over) else { return };
    let Some(mut parts) = library(block, end) else {
        panic!("only the relay takes it: {:?}", asked.said);
    };
    let other = said(&parts);
    assert_eq!(shown(&asked.said), shown(&other));
    let settled = settle_authority(&mut parts);
    // The library forgets a scheme where there is no authority.
    if parts.uri.authority().is_some() || asked.odd.is_none() {
        assert_eq!(asked.odd, settled.err(), "{:?}", asked.said);
    }
}
