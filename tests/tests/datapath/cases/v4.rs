//! The forged frames that only IPv4 has: options, fragments, ARP. Called by `cases.rs`.

use super::{Case, Ends, FROM_POD, Want, case, drop, pass, with};
use crate::frames::{ARP, BROADCAST, Mac, Place, TCP, UDP, frame, octets, packet, part, summed};
use sluice_redirect::Counter;
use std::net::{IpAddr, Ipv4Addr};

pub(super) fn options() -> Vec<Case> {
    use Counter::{Extension, Malformed, SourceRoute};
    fn optioned(ends: &Ends, options: &[u8]) -> Vec<u8> {
        let mut bytes = packet(ends.src.ip(), ends.dst.ip(), UDP, &ends.udp());
        bytes.splice(20..20, options.iter().copied());
        bytes[0] = 0x45 + u8::try_from(options.len() / 4).expect("short");
        let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
        bytes[2..4].copy_from_slice(&length);
        ends.wrap(&summed(bytes))
    }
    fn headed(ends: &Ends, at: usize, value: u8) -> Vec<u8> {
        ends.wrap(&with(packet(ends.src.ip(), ends.dst.ip(), UDP, &ends.udp()), at, value))
    }
    vec![
        pass("options that mean nothing", |ends| optioned(ends, &[1, 1, 1, 0])),
        pass("a router alert", |ends| optioned(ends, &[148, 4, 0, 0])),
        drop("a loose source route", SourceRoute, |ends| optioned(ends, &[131, 7, 4, 10, 77, 2, 10, 0])),
        drop("a strict source route", SourceRoute, |ends| optioned(ends, &[1, 137, 7, 4, 10, 77, 2, 10])),
        drop("a record of the route", Extension, |ends| optioned(ends, &[7, 7, 4, 0, 0, 0, 0, 0])),
        drop("a timestamp", Extension, |ends| optioned(ends, &[68, 8, 5, 0, 0, 0, 0, 0])),
        drop("a label", Extension, |ends| optioned(ends, &[134, 6, 0, 0, 0, 1, 0, 0])),
        drop("more options than are read", Extension, |ends| optioned(ends, &[1; 12])),
        drop("a header of four words", Malformed, |ends| headed(ends, 0, 0x44)),
        drop("a header longer than the packet", Malformed, |ends| headed(ends, 0, 0x4f)),
        drop("a packet shorter than its header", Malformed, |ends| headed(ends, 3, 19)),
        drop("a packet of no length", Malformed, |ends| headed(ends, 3, 0)),
        drop("the reserved bit", Malformed, |ends| headed(ends, 6, 0x80)),
    ]
}

pub(super) fn parts_v4() -> Vec<Case> {
    vec![
        drop("a later fragment alone", Counter::Fragment, |ends| {
            let place = Place { id: 77, offset: 64, more: false };
            ends.wrap(&part(ends.src.ip(), ends.dst.ip(), UDP, place, b"later"))
        }),
        drop("a fragment too small for its header", Counter::FragmentOverlap, |ends| {
            let place = Place { id: 78, offset: 0, more: true };
            ends.wrap(&part(ends.src.ip(), ends.dst.ip(), TCP, place, &ends.tcp(2)[..8]))
        }),
        drop("an ICMP error in fragments", Counter::Fragment, |ends| {
            let place = Place { id: 79, offset: 0, more: true };
            ends.wrap(&part(ends.src.ip(), ends.dst.ip(), 1, place, &[3; 32]))
        }),
    ]
}

pub(super) fn arp() -> Vec<Case> {
    use Counter::{Malformed, Neighbour, NotIp, Spoofed, SpoofedMac};
    fn said(ends: &Ends, operation: u8, hardware: Mac, sender: IpAddr, target: IpAddr) -> Vec<u8> {
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        let body = [&head[..], &hardware, &octets(sender), &[0; 6], &octets(target)].concat();
        frame(BROADCAST, ends.from, ARP, &body)
    }
    const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    vec![
        pass("who has it?", |ends| said(ends, 1, ends.from, ends.src.ip(), ends.dst.ip())),
        pass("it is I (gratuitous)", |ends| said(ends, 1, ends.from, ends.src.ip(), ends.src.ip())),
        pass("it is I (a reply that nobody asked for)", |ends| {
            said(ends, 2, ends.from, ends.src.ip(), ends.src.ip())
        }),
        case("does anybody have mine?", Want::Counted(Neighbour), |ends| {
            said(ends, 1, ends.from, NOBODY, ends.src.ip())
        }),
        drop("I am another pod", Spoofed, |ends| said(ends, 2, ends.from, ends.other, ends.dst.ip())),
        drop("I am you", Spoofed, |ends| said(ends, 1, ends.from, ends.dst.ip(), ends.dst.ip())),
        drop("I am the node", Spoofed, |ends| said(ends, 2, ends.from, ends.node, ends.dst.ip()))
            .at(FROM_POD),
        drop("nobody answers", Malformed, |ends| said(ends, 2, ends.from, NOBODY, ends.dst.ip()))
            .at(FROM_POD),
        drop("I, at another's hardware address", SpoofedMac, |ends| {
            said(ends, 2, ends.bridge, ends.src.ip(), ends.dst.ip())
        })
        .at(FROM_POD),
        drop("a letter behind the question", Malformed, |ends| {
            [said(ends, 1, ends.from, ends.src.ip(), ends.dst.ip()), vec![0x42; 100]].concat()
        })
        .at(FROM_POD),
        drop("which address have I? (RARP)", NotIp, |ends| {
            said(ends, 3, ends.from, ends.src.ip(), ends.dst.ip())
        }),
        drop("ARP of other lengths", NotIp, |ends| {
            with(said(ends, 1, ends.from, ends.src.ip(), ends.dst.ip()), 19, 16)
        }),
    ]
}
