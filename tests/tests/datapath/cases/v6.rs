//! The forged frames that only IPv6 has: extension headers, neighbour discovery. Called by `cases.rs`.

use super::{Case, Ends, FROM_POD, Want, case, drop, pass, with, with_bridge};
use crate::frames::{Mac, UDP, octets, sealed, udp};
use sluice_redirect::Counter;
use std::net::{IpAddr, SocketAddr};

/// An options header of eight bytes: what follows it, and padding.
const fn options_header(next: u8) -> [u8; 8] {
    [next, 0, 1, 4, 0, 0, 0, 0]
}

/// A fragment header of a packet in one piece.
const fn atomic(next: u8) -> [u8; 8] {
    [next, 0, 0, 0, 0, 0, 0, 9]
}

/// A datagram behind these headers, the first of which is of this kind.
fn behind(ends: &Ends, first: u8, headers: &[u8]) -> Vec<u8> {
    ends.carry(first, &[headers, &ends.udp()].concat())
}

pub(super) fn extensions() -> Vec<Case> {
    use Counter::{Extension, Fragment, Malformed, SourceRoute};
    let mut cases = vec![
        pass("hop-by-hop options", |ends| behind(ends, 0, &options_header(UDP))),
        pass("destination options", |ends| behind(ends, 60, &options_header(UDP))),
        pass("a packet in one fragment", |ends| behind(ends, 44, &atomic(UDP))),
        pass("as many headers as there may be", |ends| {
            let headers = [options_header(60), options_header(44), atomic(60), options_header(UDP)];
            behind(ends, 0, &headers.concat())
        }),
        drop("one header more", Extension, |ends| {
            let more = options_header(60);
            let headers = [options_header(60), more, more, more, options_header(UDP)];
            behind(ends, 0, &headers.concat())
        }),
        drop("hop-by-hop options in the second place", Extension, |ends| {
            behind(ends, 60, &[options_header(0), options_header(UDP)].concat())
        }),
        drop("a packet in one fragment, twice", Extension, |ends| {
            behind(ends, 44, &[atomic(44), atomic(UDP)].concat())
        }),
        drop("a closed port behind a header", Counter::Denied, |ends| {
            let closed = udp(ends.src, SocketAddr::new(ends.dst.ip(), 54), b"table");
            ends.carry(60, &[&options_header(UDP)[..], &closed].concat())
        }),
        drop("a later fragment alone", Fragment, |ends| behind(ends, 44, &[UDP, 0, 0, 64, 0, 0, 0, 77])),
        drop("a fragment too small for its headers", Counter::FragmentOverlap, |ends| {
            let headers = [&[60, 0, 0, 1, 0, 0, 0, 78], &[UDP, 4, 1, 4, 0, 0, 0, 0][..]].concat();
            ends.carry(44, &headers)
        }),
        drop("neighbours' talk in a fragment", Fragment, |ends| {
            let ask = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &octets(ends.dst.ip())].concat();
            let ask = sealed(ends.src.ip(), ends.dst.ip(), 58, 2, ask);
            with(ends.carry(44, &[&atomic(58)[..], &ask].concat()), 21, 255)
        }),
        drop("the home address option", SourceRoute, |ends| {
            let option = [&[UDP, 2, 1, 2, 0, 0, 0xc9, 16][..], &octets(ends.other)].concat();
            behind(ends, 60, &option)
        }),
        drop("a jumbogram", Malformed, |ends| behind(ends, 0, &[UDP, 0, 0xc2, 4, 0, 1, 0, 0])),
        drop("a packet of no length", Malformed, |ends| {
            let bytes = behind(ends, 0, &[UDP, 0, 0xc2, 4, 0, 0, 0, 21]);
            with(bytes, 19, 0)
        }),
    ];
    for (name, kind) in [("a type 0 route", 0), ("a mobile's route", 2), ("a segment route", 4)] {
        cases.push(drop(name, SourceRoute, move |ends| {
            behind(ends, 43, &[&[UDP, 2, kind, 1, 0, 0, 0, 0][..], &octets(ends.other)].concat())
        }));
    }
    cases
}

pub(super) fn more_extensions() -> Vec<Case> {
    use Counter::{Extension, Malformed};
    const REFUSED: [(&str, u8); 6] = [
        ("mobility", 135),
        ("host identity", 139),
        ("shim6", 140),
        ("an experiment", 253),
        ("another experiment", 254),
        ("nothing next", 59),
    ];
    let mut cases: Vec<Case> = REFUSED
        .map(|(name, next)| drop(name, Extension, move |ends| behind(ends, next, &options_header(UDP))))
        .into();
    cases.extend([
        drop("a header that ends behind the packet", Malformed, |ends| {
            behind(ends, 60, &[UDP, 200, 1, 4, 0, 0, 0, 0])
        }),
        drop("an option that ends behind its header", Malformed, |ends| {
            behind(ends, 60, &[UDP, 0, 1, 9, 0, 0, 0, 0])
        }),
        drop("more options than are read", Extension, |ends| {
            behind(ends, 60, &[UDP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        }),
    ]);
    cases
}

pub(super) fn neighbours() -> Vec<Case> {
    use Counter::{Malformed, Neighbour, Spoofed, SpoofedMac};
    /// A neighbour's message about an address, with these options.
    fn said(src: IpAddr, dst: IpAddr, ends: &Ends, kind: u8, about: IpAddr, options: &[u8]) -> Vec<u8> {
        let body = [&[kind, 0, 0, 0, 0x20, 0, 0, 0][..], &octets(about), options].concat();
        with(ends.between(src, dst, 58, &sealed(src, dst, 58, 2, body)), 21, 255)
    }
    fn hardware(kind: u8, mac: Mac) -> Vec<u8> {
        [&[kind, 1][..], &mac].concat()
    }
    fn asked(ends: &Ends, options: &[u8]) -> Vec<u8> {
        said(ends.src.ip(), ends.dst.ip(), ends, 135, ends.dst.ip(), options)
    }
    fn answered(ends: &Ends, about: IpAddr, options: &[u8]) -> Vec<u8> {
        said(ends.src.ip(), ends.dst.ip(), ends, 136, about, options)
    }
    vec![
        pass("who has it?", |ends| asked(ends, &hardware(1, ends.from))),
        pass("it is I", |ends| answered(ends, ends.src.ip(), &hardware(2, ends.from))),
        drop("I am another pod", Spoofed, |ends| answered(ends, ends.other, &hardware(2, ends.from))),
        drop("I am the node", Spoofed, |ends| answered(ends, ends.node, &hardware(2, ends.from)))
            .at(FROM_POD),
        drop("who has it, from another's hardware address", SpoofedMac, |ends| {
            asked(ends, &hardware(1, ends.bridge))
        })
        .at(FROM_POD),
        drop("I, at another's hardware address", SpoofedMac, |ends| {
            answered(ends, ends.src.ip(), &hardware(2, ends.bridge))
        })
        .at(FROM_POD),
        drop("a letter behind the question", Malformed, |ends| asked(ends, &[25, 3].repeat(12))).at(FROM_POD),
        drop("an option that is not a neighbour's", Malformed, |ends| asked(ends, &[5, 1, 0, 0, 0, 0, 5, 0]))
            .at(FROM_POD),
        drop("a question from beyond the link", Malformed, |ends| with(asked(ends, &[]), 21, 64)),
        drop("a question to the whole site", Malformed, |ends| {
            let site = "ff05::1".parse().expect("an address");
            said(ends.src.ip(), site, ends, 135, ends.dst.ip(), &[])
        }),
        drop("I am a router", Spoofed, |ends| {
            said(ends.src.ip(), ends.dst.ip(), ends, 134, ends.src.ip(), &[])
        })
        .at(FROM_POD),
        drop("there is a better way", Spoofed, |ends| {
            said(ends.src.ip(), ends.dst.ip(), ends, 137, ends.src.ip(), &[])
        })
        .at(FROM_POD),
        // A pod of another node on a stretched link, and the same by way of this node, which would forward it.
        case("are you there, remote pod?", Want::Counted(Neighbour), |ends| {
            let bytes = said(ends.src.ip(), ends.remote, ends, 135, ends.remote, &hardware(1, ends.from));
            [&[2, 0, 0, 0, 0, 0x77][..], &bytes[6..]].concat()
        })
        .at(FROM_POD),
        drop("are you there, remote pod, by way of the node?", Spoofed, |ends| {
            with_bridge(
                ends,
                said(ends.src.ip(), ends.remote, ends, 135, ends.remote, &hardware(1, ends.from)),
            )
        })
        .at(FROM_POD),
    ]
}
