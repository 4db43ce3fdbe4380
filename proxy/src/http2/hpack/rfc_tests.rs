//! The examples of RFC 7541 appendix C, and what its text forbids.

use super::{Block, Decoder, Encoder, Error, Form, Line};
use crate::limits::{H2_HEADER_LIST_BYTES, H2_TABLE_BYTES};

const MOST: usize = H2_HEADER_LIST_BYTES as usize;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

pub(super) fn texts(block: &Block) -> Vec<(String, String)> {
    let text = |line: &Line| {
        (line.name.as_str().to_owned(), String::from_utf8_lossy(line.value.as_bytes()).into_owned())
    };
    block.lines.iter().map(text).collect()
}

/// The fields in a list of "name: value" lines.
fn fields(list: &str) -> Vec<(String, String)> {
    let field = |line: &str| {
        let at = line.trim().rfind(": ").map_or(line.trim().len() - 1, |at| at);
        // The only values with ": " in them are dates, which have none; names may begin with a colon.
        let (name, value) = line.trim().split_at(at);
        (name.to_owned(), value.trim_start_matches(':').trim_start().to_owned())
    };
    list.lines().filter(|line| !line.trim().is_empty()).map(field).collect()
}

struct Example {
    block: &'static str,
    list: &'static str,
    size: usize,
    entries: usize,
}

/// Decodes each, looks at the table, and decodes what the encoder makes of it with no table at all.
fn check(before: &str, examples: &[Example]) {
    let mut decoder = Decoder::default();
    let mut prefix = hex(before);
    for example in examples {
        let mut block = std::mem::take(&mut prefix);
        block.extend(hex(example.block));
        let read = decoder.decode(&block, MOST).expect(example.block);
        assert_eq!(texts(&read), fields(example.list), "{}", example.block);
        let (size, entries) = decoder.table();
        assert_eq!((size, entries.len()), (example.size, example.entries), "{}", example.block);
        let mut encoder = Encoder::default();
        read.lines.iter().for_each(|line| encoder.line(line, &block));
        let again = Decoder::default().decode(&encoder.finish(), MOST).expect("ours");
        assert_eq!(texts(&again), fields(example.list), "without a table");
        assert!(!again.changed, "nothing enters the receiver's table");
    }
}

const REQUESTS: [&str; 3] = [
    ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com",
    ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\ncache-control: no-cache",
    ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\ncustom-key: custom-value",
];

#[test]
fn c_2_literals() {
    let one = |block, list, size, entries| check("", &[Example { block, list, size, entries }]);
    one(
        "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
        "custom-key: custom-header",
        55,
        1,
    );
    one("040c 2f73 616d 706c 652f 7061 7468", ":path: /sample/path", 0, 0);
    one("1008 7061 7373 776f 7264 0673 6563 7265 74", "password: secret", 0, 0);
    one("82", ":method: GET", 0, 0);
}

#[test]
fn c_3_and_c_4_requests() {
    let sizes = [(57, 1), (110, 2), (164, 3)];
    for blocks in [
        [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ],
        [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ],
    ] {
        let examples: Vec<Example> = (0..3)
            .map(|at| Example {
                block: blocks[at],
                list: REQUESTS[at],
                size: sizes[at].0,
                entries: sizes[at].1,
            })
            .collect();
        check("", &examples);
    }
}

const RESPONSES: [&str; 3] = [
    ":status: 302\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\nlocation: https://www.example.com",
    ":status: 307\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\nlocation: https://www.example.com",
    ":status: 200\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:22 GMT\nlocation: https://www.example.com\n\
     content-encoding: gzip\nset-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
];

/// With a table of 256 bytes, as the RFC has it: entries are evicted.
#[test]
fn c_5_and_c_6_responses() {
    let sizes = [(222, 4), (222, 4), (215, 3)];
    for blocks in [
        [
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32
             3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970
             7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61
             6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
        ],
        [
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad
             1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2
             e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        ],
    ] {
        let examples: Vec<Example> = (0..3)
            .map(|at| Example { block: blocks[at], list: RESPONSES[at], size: sizes[at].0, entries: sizes[at].1 })
            .collect();
        // A change of the table's size to 256, before the first.
        check("3fe1 01", &examples);
    }
}

#[test]
fn what_is_no_block() {
    let long = [[0xff; 5].as_slice(), &[0]].concat();
    for (what, block, error) in [
        ("index 0", vec![0x80], Error::Index),
        ("index 62 of an empty table", vec![0xbe], Error::Index),
        ("a name of index 62", vec![0x7e, 0], Error::Index),
        ("an integer that does not end", vec![0xff], Error::Truncated),
        ("an integer of five octets", long, Error::Integer),
        ("a name without a value", hex("400161"), Error::Truncated),
        ("a name that is too short", hex("400a6162"), Error::Truncated),
        ("a length alone", hex("40"), Error::Truncated),
        ("EOS", hex("0001 6184 ffffffff"), Error::Huffman),
        ("padding of zeros", hex("0001 6181 18"), Error::Huffman),
        ("padding of a whole octet", hex("0001 6182 1fff"), Error::Huffman),
        ("a table of 4097", hex("3fe2 1f"), Error::TableSize),
        ("a change after a field", hex("82 20"), Error::TableSize),
        ("three changes", hex("20 20 20 82"), Error::TableSize),
    ] {
        assert_eq!(Decoder::default().decode(&block, MOST).map(|_| ()), Err(error), "{what}");
    }
    let read = Decoder::default().decode(&hex("20 3fe1 1f 82"), MOST).expect("two changes, to 0 and to 4096");
    assert!(read.changed && read.lines.len() == 1);
    assert_eq!(H2_TABLE_BYTES, 4096);
}

#[test]
fn what_is_no_field_spoils_no_table() {
    for literal in ["4001 410161", "4002 3a78 0161", "4000 0161", "4001 6101 0d", "4003 6120 62 0161"] {
        let mut decoder = Decoder::default();
        let read = decoder.decode(&hex(literal), MOST).expect("the block is one");
        assert_eq!(read.lines[0].name, super::Name::Bad, "{literal}");
        let (size, entries) = decoder.table();
        assert_eq!((size, entries.len()), (literal.replace(' ', "").len() / 2 - 3 + 32, 1), "{literal}");
        let again = decoder.decode(&[0xbe], MOST).expect("a reference to it");
        assert_eq!(again.lines[0].name, super::Name::Bad, "{literal}");
        let value = decoder.decode(&hex("7e 0162"), MOST).expect("its name, another value");
        assert!(value.lines[0].name == super::Name::Bad || literal == "4001 6101 0d", "{literal}");
    }
}

#[test]
fn a_list_that_is_too_large_is_read_and_not_kept() {
    let mut decoder = Decoder::default();
    let mut bomb = hex("4001 78 7f9d 1e");
    bomb.extend(vec![b'y'; 3996]);
    bomb.extend(vec![0xbe; 40_000]);
    bomb.extend(hex("4001 61 0162"));
    let read = decoder.decode(&bomb, MOST).expect("a block");
    assert!(read.over && read.changed);
    assert!(read.lines.len() <= MOST / 4029, "{} fields were kept", read.lines.len());
    let first = read.lines[0].value.as_bytes().as_ptr();
    assert!(read.lines.iter().all(|line| line.value.as_bytes().as_ptr() == first), "none is a copy");
    assert_eq!(decoder.table().1[0], ("a".to_owned(), "b".to_owned()), "the table is the sender's");
}

#[test]
fn a_field_that_must_never_be_indexed_is_not() {
    let block = hex("1008 7061 7373 776f 7264 0673 6563 7265 74");
    let read = Decoder::default().decode(&block, MOST).expect("a block");
    assert!(matches!(read.lines[0].form, Form::Literal { never: true, .. }));
    let mut encoder = Encoder::default();
    encoder.line(&read.lines[0], &block);
    assert_eq!(encoder.finish(), block, "as it came");
}
