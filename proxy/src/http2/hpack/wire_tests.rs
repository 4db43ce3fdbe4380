//! Against the `h2` crate, over its wire: what its encoder writes is read here, and what is written here is read
//! there; and bytes that nobody made on purpose.

use super::rfc_tests::texts;
use super::{Decoder, Encoder, Name};
use crate::http2::frame::{HEAD_BYTES, Head, PREFACE, flag, kind, write_block, write_settings};
use crate::limits::{H2_HEADER_LIST_BYTES, H2_TABLE_BYTES};
use http::{HeaderName, HeaderValue, Request};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

const MOST: usize = H2_HEADER_LIST_BYTES as usize;

type Fields = Vec<(String, Vec<u8>)>;

/// Names that come again and again, so that tables are used; values of all kinds.
fn a_request() -> impl Strategy<Value = (String, Fields)> {
    let name = prop_oneof!["[a-c]", "x-[a-z_]{1,12}", Just("cookie".to_owned()), Just("accept".to_owned())];
    let value = prop_oneof![
        vec(prop_oneof![0x21u8..0x7f, 0x80u8..], 0..40),
        "[a-z]{0,3}".prop_map(String::into_bytes),
        vec(Just(b'x'), 200..400),
    ];
    ("/[a-c]{0,2}(\\?q=[0-9]{1,3})?", vec((name, value), 0..8))
}

fn requests(list: &[(String, Fields)]) -> Vec<Request<()>> {
    let request = |(path, fields): &(String, Fields)| {
        let mut request = Request::builder().uri(format!("http://cart{path}")).body(()).expect("a request");
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            let mut value = HeaderValue::from_bytes(value).expect("a value");
            value.set_sensitive(value.len() % 7 == 3);
            request.headers_mut().append(name, value);
        }
        request
    };
    list.iter().map(request).collect()
}

/// What a request is made of, in the order of names: `http` groups them.
fn expected(request: &Request<()>) -> Vec<(String, String)> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let mut all: Vec<_> = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "cart"),
        (":path", request.uri().path_and_query().map_or("", |path| path.as_str())),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    all.extend(request.headers().iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))));
    all.sort();
    all
}

async fn next(stream: &mut DuplexStream) -> (Head, Vec<u8>) {
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head).await.expect("a head");
    let head = Head::read(&head).expect("a frame").expect("whole");
    let mut payload = vec![0; head.length];
    stream.read_exact(&mut payload).await.expect("a payload");
    (head, payload)
}

/// The blocks that an `h2` client writes.
async fn blocks_of(requests: Vec<Request<()>>) -> Vec<Vec<u8>> {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let count = requests.len();
    let (send, connection) = h2::client::handshake(near).await.expect("a handshake");
    let driving = tokio::spawn(connection);
    let mut preface = [0; PREFACE.len()];
    far.read_exact(&mut preface).await.expect("a preface");
    let mut hello = Vec::new();
    write_settings(&mut hello, &[]);
    far.write_all(&hello).await.expect("sent");
    let mut blocks = Vec::new();
    let mut answers = Vec::new();
    for request in requests {
        let mut ready = send.clone().ready().await.expect("ready");
        answers.push(ready.send_request(request, true).expect("sent"));
    }
    while blocks.len() < count {
        let (head, mut payload) = next(&mut far).await;
        if head.kind == kind::HEADERS {
            let mut last = head;
            while !last.has(flag::END_HEADERS) {
                let (head, more) = next(&mut far).await;
                payload.extend(more);
                last = head;
            }
            blocks.push(payload);
        }
    }
    driving.abort();
    blocks
}

/// What an `h2` server reads of these blocks.
async fn read_by_h2(blocks: &[Vec<u8>]) -> Vec<Request<()>> {
    let (mut near, far) = tokio::io::duplex(1 << 22);
    let mut bytes = PREFACE.to_vec();
    write_settings(&mut bytes, &[]);
    for (number, block) in blocks.iter().enumerate() {
        let stream = u32::try_from(number * 2 + 1).expect("few");
        write_block(&mut bytes, stream, true, block);
    }
    near.write_all(&bytes).await.expect("sent");
    let mut server = h2::server::handshake(far).await.expect("a handshake");
    let mut read = Vec::new();
    while read.len() < blocks.len() {
        let (request, _) = server.accept().await.expect("a request").expect("a good one");
        read.push(request.map(drop));
    }
    read
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn what_h2_writes_is_read_and_what_is_written_h2_reads(list in vec(a_request(), 1..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let requests = requests(&list);
            let wanted: Vec<_> = requests.iter().map(expected).collect();
            let blocks = blocks_of(requests).await;
            let mut decoder = Decoder::default();
            let mut ours = Vec::new();
            for (block, wanted) in blocks.iter().zip(&wanted) {
                let read = decoder.decode(block, MOST).expect("a block of h2's");
                let mut got = texts(&read);
                got.sort();
                assert_eq!(&got, wanted);
                let mut encoder = Encoder::default();
                read.lines.iter().for_each(|line| encoder.line(line, block));
                ours.push(encoder.finish());
            }
            let got: Vec<_> = read_by_h2(&ours).await.iter().map(expected).collect();
            assert_eq!(got, wanted);
        });
    }

    /// No bytes make the decoder panic, keep more than its bounds, or read its own writing otherwise.
    #[test]
    fn no_bytes_break_it(blocks in vec(vec(prop_oneof![any::<u8>(), Just(0x40), Just(0xbe), 0x82u8..0xc4], 0..200), 0..8)) {
        let mut decoder = Decoder::default();
        for block in blocks {
            let Ok(read) = decoder.decode(&block, MOST) else { return Ok(()) };
            let (size, entries) = decoder.table();
            prop_assert!(size <= H2_TABLE_BYTES && entries.len() * 32 <= size);
            if read.lines.iter().any(|line| line.name == Name::Bad) {
                continue;
            }
            let mut encoder = Encoder::default();
            read.lines.iter().for_each(|line| encoder.line(line, &block));
            let again = Decoder::default().decode(&encoder.finish(), MOST).expect("ours");
            prop_assert!(!again.changed);
            prop_assert_eq!(texts(&again), texts(&read));
        }
    }
}
