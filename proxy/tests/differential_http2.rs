//! The relay against the path that builds every message anew: the same frames, written as no library would write them,
//! must come to the same verdicts, and to the same fields, framing and body at the server and at the client.

mod common;

use bytes::Bytes;
use common::script::{Script, Table, a_script, write};
use common::{CLIENT, Rules, World, http, shop, soon};
use h2::RecvStream;
use h2::ext::Protocol;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sluice_policy::{HostMatch, HttpMatch, NameMatch, PathMatch};
use sluice_proxy::http2::frame::code::{CANCEL, PROTOCOL_ERROR};
use sluice_proxy::http2::frame::{
    Frame, HEAD_BYTES, Head, MAX_WINDOW, PREFACE, flag, kind, setting, write_number, write_settings,
    write_settings_ack,
};
use sluice_proxy::http2::hpack::Decoder;
use sluice_proxy::proxy::Http2;
use sluice_proxy::record::Record;
use sluice_proxy::telemetry::sampler::Sampler;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

type Fields = Vec<(String, String)>;

/// What one end saw of a message: its fields but for their order among different names, its body, and how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    fields: Fields,
    interims: usize,
    body: Vec<u8>,
    trailers: Fields,
    end: String,
}

fn sorted(map: &HeaderMap) -> Fields {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut fields: Fields = map.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

type Log = Arc<Mutex<BTreeMap<String, Seen>>>;

/// A server that writes down what it gets, by `x-id`, and answers as `x-answer` asks.
async fn server() -> (SocketAddr, Log) {
    let listener = TcpListener::bind("127.0.0.3:0").await.expect("a free port");
    let at = listener.local_addr().expect("bound");
    let log = Log::default();
    let all = log.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let log = log.clone();
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                builder.enable_connect_protocol();
                let Ok(mut connection) = builder.handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(serve(request, respond, log.clone()));
                }
            });
        }
    });
    (at, all)
}

async fn serve(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, log: Log) {
    let (parts, mut body) = request.into_parts();
    let field =
        |name: &str| parts.headers.get(name).map_or("", |value| value.to_str().expect("text")).to_owned();
    let (id, wanted) = (field("x-id"), field("x-answer"));
    let mut seen = Seen { fields: sorted(&parts.headers), ..Seen::default() };
    seen.fields.push((parts.method.to_string(), parts.uri.to_string()));
    let protocol = parts.extensions.get::<Protocol>().map_or("", Protocol::as_str);
    seen.fields.push((":protocol".to_owned(), protocol.to_owned()));
    let connect = parts.method == Method::CONNECT;
    if connect {
        // What is for the tunnel comes only now.
        answer(&wanted, &mut respond);
    }
    seen.end = loop {
        match body.data().await {
            Some(Ok(data)) => {
                body.flow_control().release_capacity(data.len()).expect("capacity");
                seen.body.extend_from_slice(&data);
            }
            Some(Err(error)) => break format!("{:?}", error.reason()),
            None => match body.trailers().await {
                Ok(trailers) => {
                    seen.trailers = trailers.as_ref().map(sorted).unwrap_or_default();
                    break "whole".to_owned();
                }
                Err(error) => break format!("{:?}", error.reason()),
            },
        }
    };
    let whole = seen.end == "whole";
    assert!(log.lock().expect("whole").insert(id.clone(), seen).is_none(), "{id} came twice");
    if whole && !connect {
        answer(&wanted, &mut respond);
    }
}

fn answer(wanted: &str, respond: &mut SendResponse<Bytes>) {
    let head = |status: u16| Response::builder().status(status).header("x-served-by", "cart");
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("5"));
    // Whatever fails here fails because the client has gone.
    let mut send = |response: http::response::Builder, end| {
        respond.send_response(response.body(()).expect("a response"), end).ok()
    };
    match wanted {
        "empty" => drop(send(head(204), true)),
        "unchanged" => drop(send(head(304).header("content-length", "10"), true)),
        "long" => {
            let length = 150_000;
            if let Some(mut body) = send(head(200).header("content-length", length), false) {
                let _ = body.send_data(Bytes::from(vec![b'l'; length]), true);
            }
        }
        "trailers" => {
            if let Some(mut body) = send(head(200).header("content-type", "application/grpc"), false) {
                let _ = body.send_data(Bytes::from_static(b"answer"), false);
                let _ = body.send_trailers(trailers);
            }
        }
        "long-trailers" => {
            if let Some(mut body) = send(head(200), false) {
                let _ = body.send_data(Bytes::from(vec![b't'; 90_000]), false);
                let _ = body.send_trailers(trailers);
            }
        }
        "reset" => {
            if let Some(mut body) = send(head(200), false) {
                body.send_reset(h2::Reason::ENHANCE_YOUR_CALM);
            }
        }
        "interim" => {
            let early = Response::builder().status(103).header("link", "x").body(()).expect("a response");
            let _ = respond.send_informational(early);
            let _ = respond.send_response(head(200).body(()).expect("a response"), true);
        }
        _ => {
            if let Some(mut body) = send(head(200), false) {
                let _ = body.send_data(Bytes::from(wanted.to_owned()), true);
            }
        }
    }
}

/// Sends all of it at once, and reads until each stream has its end. `window`: what the client takes of a stream.
async fn play(world: &World, scripts: &[Script], window: u32) -> BTreeMap<u32, Seen> {
    let mut stream = world.connect_from(CLIENT).await;
    let mut out = PREFACE.to_vec();
    write_settings(&mut out, &[(setting::INITIAL_WINDOW_SIZE, window)]);
    write_number(&mut out, kind::WINDOW_UPDATE, 0, MAX_WINDOW / 2);
    stream.write_all(&out).await.expect("the proxy reads");
    // The window for all streams together, which is larger than the first.
    assert_eq!(common::http2::first(&mut stream, &[kind::WINDOW_UPDATE]).await, Some(kind::WINDOW_UPDATE));
    out.clear();
    write_settings_ack(&mut out);
    let mut table = Table::default();
    let mut open = BTreeMap::new();
    for (script, id) in scripts.iter().zip((1u32..).step_by(2)) {
        write(&mut out, &mut table, script, id);
        open.insert(id, Seen::default());
    }
    let (mut read, mut write) = stream.split();
    let mut decoder = Decoder::default();
    let mut done = BTreeMap::new();
    let mut buf = Vec::new();
    let mut written = 0;
    while !open.is_empty() {
        let mut piece = vec![0; 16 * 1024];
        tokio::select! {
            wrote = write.write(&out[written..]), if written < out.len() => written += wrote.expect("the proxy reads"),
            length = soon("frames", read.read(&mut piece)) => {
                let length = length.expect("no reset");
                assert_ne!(length, 0, "the connection ended; open: {open:?}, answered: {done:?}");
                buf.extend_from_slice(&piece[..length]);
            }
        }
        while let Some(head) =
            Head::read(&buf).expect("a frame").filter(|head| buf.len() >= HEAD_BYTES + head.length)
        {
            let payload: Vec<u8> = buf.drain(..HEAD_BYTES + head.length).skip(HEAD_BYTES).collect();
            hear(&head, &payload, &mut decoder, &mut open, &mut out);
            let ended: Vec<u32> =
                open.iter().filter(|(_, seen)| !seen.end.is_empty()).map(|(id, _)| *id).collect();
            done.extend(ended.into_iter().filter_map(|id| open.remove_entry(&id)));
        }
    }
    done
}

fn hear(
    head: &Head,
    payload: &[u8],
    decoder: &mut Decoder,
    open: &mut BTreeMap<u32, Seen>,
    out: &mut Vec<u8>,
) {
    let seen = open.get_mut(&head.stream);
    match Frame::read(head, payload).expect("a good frame") {
        Frame::Settings(_) => write_settings_ack(out),
        Frame::Headers(block) => {
            assert!(head.has(flag::END_HEADERS), "short blocks");
            // Always read: it may change the table.
            let block = decoder.decode(&payload[block], 1 << 20).expect("the table is in step");
            let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let mut fields: Fields =
                block.lines.iter().map(|line| (line.name.as_str().to_owned(), text(&line.value))).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            let Some(seen) = seen else { return };
            if fields.first().is_some_and(|(_, status)| status == "103") {
                seen.interims += 1;
            } else if seen.fields.is_empty() {
                seen.fields = fields;
            } else {
                seen.trailers = fields;
            }
        }
        Frame::Data(body) => {
            if head.length > 0 {
                write_number(out, kind::WINDOW_UPDATE, 0, u32::try_from(head.length).expect("24 bits"));
            }
            let Some(seen) = seen else { return };
            seen.body.extend_from_slice(&payload[body]);
            if head.length > 0 && !head.has(flag::END_STREAM) {
                write_number(
                    out,
                    kind::WINDOW_UPDATE,
                    head.stream,
                    u32::try_from(head.length).expect("24 bits"),
                );
            }
        }
        Frame::Reset(code) => {
            if let Some(seen) = seen {
                // What a reset overtakes is a matter of time. A broken request is told as either.
                seen.body.clear();
                seen.fields.clear();
                seen.end = format!("reset {}", if code == CANCEL { PROTOCOL_ERROR } else { code });
            }
            return;
        }
        Frame::GoAway(last, code) => panic!("GOAWAY {last} {code}; open: {open:?}"),
        _ => {}
    }
    if let (Some(seen), true) = (open.get_mut(&head.stream), head.kind < 2 && head.has(flag::END_STREAM)) {
        seen.end = "whole".to_owned();
    }
}

/// What a record says that does not depend on time.
fn told(record: &Record) -> (String, String, String, u32, Option<u32>, String) {
    let Record { path, verdict, reason, status, grpc_status, method, .. } = record;
    (method.clone(), path.clone(), format!("{verdict} {reason}"), *status, *grpc_status, record.host.clone())
}

type Outcome =
    (BTreeMap<u32, Seen>, BTreeMap<String, Seen>, Vec<(String, String, String, u32, Option<u32>, String)>);

/// The shop's, with WebSockets and tunnels.
fn rules() -> Rules {
    let chat =
        HttpMatch { upgrades: vec!["websocket".into()], ..http(&["GET"], Some(PathMatch::prefix("/api"))) };
    let names = vec![HostMatch::Name(NameMatch::Exact("cart".into()))];
    let mut rules = shop();
    rules.http.extend([chat, HttpMatch { hosts: names, ..http(&["CONNECT"], None) }]);
    rules
}

async fn outcome(scripts: &[Script], window: u32, http2: Http2) -> Outcome {
    let (at, log) = server().await;
    let mut world = World::on(&rules(), at, Sampler::OFF, http2).await;
    let client = play(&world, scripts, window).await;
    let mut records = Vec::new();
    // Each stream that was judged has one, but for those that are no message at all.
    soon("streams to end", async {
        while world.proxy.state.open_flows() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    while let Ok(record) = world.records.try_recv() {
        // What was broken off before it was answered is a matter of time.
        if record.error != "protocol_error" && record.status > 0 {
            records.push(told(&record));
        }
    }
    records.sort();
    let mut log = log.lock().expect("whole").clone();
    log.retain(|_, seen| seen.end == "whole");
    (client, log, records)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn both_paths_come_to_the_same(scripts in vec(a_script(), 1..12), window in select(vec![1u32 << 20, 65_535, 5000])) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let relayed = outcome(&scripts, window, Http2::Relayed).await;
            let rewritten = outcome(&scripts, window, Http2::Rewritten).await;
            let broken: Vec<u32> =
                scripts.iter().zip((1u32..).step_by(2)).filter(|(script, _)| script.is_broken()).map(|(_, id)| id).collect();
            assert!(broken.iter().all(|id| !relayed.1.contains_key(&id.to_string())), "{broken:?} of {:?}", relayed.1);
            for (id, seen) in relayed.0.iter().filter(|(id, _)| !broken.contains(id)) {
                assert_eq!(Some(seen), rewritten.0.get(id), "the client's end of {id}");
            }
            for (id, seen) in &relayed.1 {
                assert_eq!(Some(seen), rewritten.1.get(id), "the server's end of {id}");
            }
            // A pseudo-header field among trailers is left out by the h2 crate, and the rest goes on; here it is refused.
            let whole = |log: &BTreeMap<String, Seen>| {
                log.keys().filter(|id| !broken.iter().any(|broken| broken.to_string() == **id)).count()
            };
            assert_eq!(whole(&relayed.1), whole(&rewritten.1), "requests that reached the server whole");
            if broken.is_empty() {
                assert_eq!(relayed.2, rewritten.2, "records");
            }
        });
    }
}
