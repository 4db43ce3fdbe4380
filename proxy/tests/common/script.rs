//! Requests in frames, written as no library would write them: every field in some form of HPACK, padding, priority,
//! blocks in pieces, and heads that servers may not take.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sluice_proxy::http2::frame::{Head, flag, kind};
use std::collections::VecDeque;

type Fields = Vec<(String, String)>;

/// One request, with the ways in which its frames are written.
#[derive(Clone, Debug)]
pub struct Script {
    fields: Fields,
    /// How each field is written: in the table, beside it, or never in one; by an index where there is one.
    forms: Vec<u8>,
    /// Lengths of its DATA, and of their padding.
    body: Vec<(u16, u8)>,
    trailers: Option<Fields>,
    padding: Option<u8>,
    priority: bool,
    cut: bool,
}

pub fn field(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

impl Script {
    /// Its body is not what its head says, or ends as none may: whether it was answered before that was seen is a
    /// matter of time, but no server gets it whole.
    pub fn is_broken(&self) -> bool {
        let length: usize = self.body.iter().map(|(length, _)| usize::from(*length)).sum();
        let other =
            |(name, value): &(String, String)| name == "content-length" && *value != length.to_string();
        let odd = |(name, value): &(String, String)| {
            name == "host" || name.starts_with(':') || value.ends_with(' ')
        };
        // A tunnel has data alone.
        let trailed = self.fields.contains(&field(":method", "CONNECT")) && self.trailers.is_some();
        trailed || self.fields.iter().any(other) || self.trailers.iter().flatten().any(odd)
    }
}

/// In the place of a method: CONNECT, extended (RFC 8441).
const WEBSOCKET: &str = "websocket";

fn a_path() -> impl Strategy<Value = &'static str> {
    select(vec![
        "/api/x",
        "/api/y?q=1&r=/../z",
        "/admin",
        "/api/../admin",
        "/x/../api/%61?q",
        "/api//y",
        "*",
        "",
        "api",
        "/api/f#part",
        "/api/\u{e9}",
        "/shop.v1.Cart/GetCart",
        "/shop.v1.Cart/Empty",
        "/api/v1/checkout",
        "/api/a b",
    ])
}

fn an_authority() -> impl Strategy<Value = Option<&'static str>> {
    select(vec![
        Some("cart"),
        Some("cart"),
        Some("cart"),
        Some("CART:80"),
        Some(""),
        Some("a@b"),
        Some("a b"),
        None,
    ])
}

fn an_extra() -> impl Strategy<Value = (String, String)> {
    select(vec![
        field("host", "cart"),
        field("host", "other"),
        field("te", "trailers"),
        field("te", "gzip"),
        field("connection", "close"),
        field("transfer-encoding", "chunked"),
        field("cookie", "a=b"),
        field("cookie", "c=d"),
        field("x-long", &"v".repeat(300)),
        field("content-type", "application/grpc"),
        field("content-length", "0"),
        field("content-length", "40"),
        field("content-length", "4x"),
        field("x-a", ""),
        field("x-a", "b"),
        field(":path", "/api/twice"),
        field(":status", "200"),
        field(":protocol", "websocket"),
        field("authorization", "secret"),
        field("traceparent", "none"),
        field("keep-alive", "1"),
        field("x-a", " b"),
        field("x-a", "b\t"),
        field("content_length", "7"),
        field("transfer_encoding", "chunked"),
    ])
}

pub fn a_script() -> impl Strategy<Value = Script> {
    let method = select(vec!["GET", "GET", "POST", "HEAD", "DELETE", "BREW", "CONNECT", WEBSOCKET]);
    let path = a_path();
    let authority = an_authority();
    let scheme = select(vec![
        Some("http"),
        Some("http"),
        Some("http"),
        Some("https"),
        Some("ht tp"),
        Some("ftp"),
        None,
    ]);
    let extra = an_extra();
    let trailer = select(vec![
        field("x-sum", "1"),
        field("x-sum", "2"),
        field("host", "cart"),
        field(":path", "/"),
        field("x-sum", "1 "),
    ]);
    let wanted =
        select(vec!["short", "empty", "unchanged", "long", "trailers", "long-trailers", "reset", "interim"]);
    let body = vec((select(vec![0u16, 1, 20, 40, 1000, 16_000]), select(vec![0u8, 0, 0, 7, 255])), 0..4);
    let framing = (proptest::option::of(0u8..40), any::<bool>(), any::<bool>(), vec(any::<u8>(), 16));
    let extras = (vec(extra, 0..4), any::<bool>());
    let head = (method, path, authority, scheme, extras, wanted);
    (head, body, proptest::option::of(vec(trailer, 0..3)), framing).prop_map(
        |(head, body, trailers, framing)| {
            let (method, path, authority, scheme, (extras, odd), wanted) = head;
            let (padding, priority, cut, forms) = framing;
            let mut fields = match method {
                WEBSOCKET => vec![field(":method", "CONNECT"), field(":protocol", method)],
                _ => vec![field(":method", method)],
            };
            if method != "CONNECT" || odd {
                // The h2 crate forgets the scheme where there is no authority, and another one goes on.
                let scheme = scheme.map(|scheme| if authority.is_none() { "http" } else { scheme });
                fields.extend(scheme.map(|scheme| field(":scheme", scheme)));
                fields.push(field(":path", path));
            }
            fields.extend(authority.map(|authority| field(":authority", authority)));
            fields.push(field("x-answer", wanted));
            fields.extend(extras.into_iter().filter(|(name, _)| odd || !name.starts_with(':')));
            // The h2 crate forgets that a block is malformed where its next frame begins, and leaves the field out.
            let malformed = |(name, value): &(String, String)| {
                let named = ["connection", "keep-alive", "transfer-encoding"].contains(&name.as_str());
                named
                    || value == "gzip"
                    || [":status", ":protocol"].contains(&name.as_str())
                    || value == "/api/twice"
            };
            let cut = cut && !fields.iter().any(malformed);
            Script { fields, forms, body, trailers, padding, priority, cut }
        },
    )
}

/// An encoder that uses its table as it is told to.
#[derive(Default)]
pub struct Table(VecDeque<(String, String)>);

impl Table {
    fn write(&mut self, out: &mut Vec<u8>, (name, value): &(String, String), form: u8) {
        let index = |at: usize| u8::try_from(62 + at).ok().filter(|index| *index < 127);
        let known = self.0.iter().position(|(n, v)| n == name && v == value).and_then(index);
        if let Some(index) = known.filter(|_| form < 128) {
            return out.push(0x80 | index);
        }
        let by_name = self.0.iter().position(|(n, _)| n == name).and_then(index).filter(|_| form & 8 == 0);
        let (kind, most) = match form % 3 {
            0 => (0x40u8, 63u8),
            1 => (0x00, 15),
            _ => (0x10, 15),
        };
        match by_name {
            None => {
                out.push(kind);
                string(out, name);
            }
            Some(index) if index < most => out.push(kind | index),
            Some(index) => out.extend([kind | most, index - most]),
        }
        string(out, value);
        let size = |(n, v): &(String, String)| n.len() + v.len() + 32;
        if kind == 0x40 {
            self.0.push_front((name.clone(), value.clone()));
            while self.0.iter().map(size).sum::<usize>() > 4096 {
                self.0.pop_back();
            }
        }
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    match text.len() {
        length @ 0..127 => out.push(u8::try_from(length).expect("short")),
        length => {
            let rest = length - 127;
            out.extend([
                127,
                u8::try_from(rest & 127).expect("7 bits") | 128,
                u8::try_from(rest >> 7).expect("short"),
            ]);
        }
    }
    out.extend_from_slice(text.as_bytes());
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    Head { length: payload.len(), kind, flags, stream }.write(out);
    out.extend_from_slice(payload);
}

fn padded(padding: Option<u8>, front: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut whole: Vec<u8> = padding.into_iter().collect();
    whole.extend_from_slice(front);
    whole.extend_from_slice(payload);
    whole.extend(vec![0; usize::from(padding.unwrap_or(0))]);
    whole
}

pub fn write(out: &mut Vec<u8>, table: &mut Table, script: &Script, id: u32) {
    let mut block = Vec::new();
    let mut fields = script.fields.clone();
    fields.push(field("x-id", &id.to_string()));
    for (field, form) in fields.iter().zip(script.forms.iter().cycle()) {
        table.write(&mut block, field, *form);
    }
    let whole = script.body.is_empty() && script.trailers.is_none();
    let padding_flag = |padding: Option<u8>| if padding.is_some() { flag::PADDED } else { 0 };
    let mut flags = if whole { flag::END_STREAM } else { 0 } | padding_flag(script.padding);
    let front: &[u8] = if script.priority { &[0x80, 0, 0, 0, 7] } else { &[] };
    if script.priority {
        flags |= flag::PRIORITY;
    }
    let (first, rest) = block.split_at(if script.cut { block.len() / 2 } else { block.len() });
    let last = if script.cut { 0 } else { flag::END_HEADERS };
    frame(out, kind::HEADERS, flags | last, id, &padded(script.padding, front, first));
    if script.cut {
        frame(out, kind::CONTINUATION, flag::END_HEADERS, id, rest);
    }
    for (at, (length, padding)) in script.body.iter().enumerate() {
        let last = at + 1 == script.body.len() && script.trailers.is_none();
        let padding = Some(*padding).filter(|padding| *padding > 0);
        let flags = if last { flag::END_STREAM } else { 0 } | padding_flag(padding);
        frame(out, kind::DATA, flags, id, &padded(padding, &[], &vec![b'd'; usize::from(*length)]));
    }
    if let Some(trailers) = &script.trailers {
        let mut block = Vec::new();
        for (field, form) in trailers.iter().zip(script.forms.iter().rev()) {
            table.write(&mut block, field, *form);
        }
        frame(out, kind::HEADERS, flag::END_STREAM | flag::END_HEADERS, id, &block);
    }
}
