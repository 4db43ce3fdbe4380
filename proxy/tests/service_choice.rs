//! Choosing alone, without a socket: who gets what, and what is remembered for how long.

mod common;

use common::CLIENT;
use common::service::{ONE, Shop, everything};
use sluice_proxy::limits::{AFFINITIES, REFUSED_FOR};
use sluice_proxy::service::balance::{Allowed, Balance};
use sluice_proxy::service::vip::Vip;
use sluice_proxy::state::State;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

fn backends(count: u8) -> Vec<SocketAddr> {
    (1..=count).map(|number| SocketAddr::new([10, 0, 0, number].into(), 80)).collect()
}

/// The port of a Service with this affinity.
fn vip(affinity: Option<u32>) -> Arc<Vip> {
    let mut shop = Shop::new(backends(3).into_iter().map(|at| (at, ONE)).collect(), vec![everything(&[ONE])]);
    shop.affinity = affinity;
    shop.vip.set_port(80);
    let state = State::default();
    state.swap(shop.snapshot());
    state.view().vip(shop.vip).expect("a Service")
}

#[tokio::test(start_paused = true)]
async fn a_client_is_remembered_for_its_timeout_from_its_last_visit() {
    let balance = Balance::default();
    let (vip, none) = (vip(Some(100)), vip(None));
    let at = backends(1)[0];
    balance.remember(CLIENT, &none, at);
    assert_eq!(balance.remembered(CLIENT, &none), None);
    balance.remember(CLIENT, &vip, at);
    tokio::time::advance(Duration::from_secs(99)).await;
    assert_eq!(balance.remembered(CLIENT, &vip), Some(at));
    balance.remember(CLIENT, &vip, at);
    tokio::time::advance(Duration::from_secs(99)).await;
    assert_eq!(balance.remembered(CLIENT, &vip), Some(at));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(balance.remembered(CLIENT, &vip), None);
}

/// A flood of clients fills the table and costs nobody the place that he has; what is old makes room.
#[tokio::test(start_paused = true)]
async fn the_table_of_clients_is_bounded() {
    let balance = Balance::default();
    let (vip, at) = (vip(Some(100)), backends(1)[0]);
    let client =
        |number: usize| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number).expect("few")));
    for number in 0..AFFINITIES + 10 {
        balance.remember(client(number), &vip, at);
    }
    assert_eq!(balance.remembered(client(0), &vip), Some(at));
    assert_eq!(balance.remembered(client(AFFINITIES), &vip), None, "full");
    tokio::time::advance(Duration::from_secs(101)).await;
    balance.remember(client(AFFINITIES), &vip, at);
    assert_eq!(balance.remembered(client(AFFINITIES), &vip), Some(at));
}

#[tokio::test(start_paused = true)]
async fn who_refuses_is_passed_over_for_a_moment_where_others_are() {
    let balance = Balance::default();
    let all = backends(3);
    let allowed = Allowed::of(vec![&all[..1], &all[1..]]);
    balance.refused(all[0]);
    for _ in 0..100 {
        assert_ne!(balance.by_load(&allowed), Some(all[0]));
    }
    balance.refused(all[1]);
    for _ in 0..100 {
        assert_eq!(balance.by_load(&allowed), Some(all[2]));
    }
    // Where all refuse, somebody is asked all the same.
    balance.refused(all[2]);
    assert!(balance.by_load(&allowed).is_some());
    tokio::time::advance(REFUSED_FOR).await;
    let again: std::collections::BTreeSet<_> = (0..100).filter_map(|_| balance.by_load(&allowed)).collect();
    assert_eq!(again.len(), 3);
}

#[test]
fn load_weighs_and_nobody_is_left_out() {
    let balance = Arc::new(Balance::default());
    let all = backends(3);
    let allowed = Allowed::of(vec![&all]);
    let mut got = BTreeMap::new();
    for _ in 0..3000 {
        *got.entry(balance.by_load(&allowed).expect("one")).or_insert(0) += 1;
    }
    assert!(got.len() == 3 && got.values().all(|count| (800..1200).contains(count)), "{got:?}");
    // Of two, the idle one.
    let _busy = balance.open(all[0]);
    for _ in 0..100 {
        assert_eq!(balance.by_load(&Allowed::of(vec![&all[..2]])), Some(all[1]));
    }
    // The busiest of three is never the better of two.
    let _busier = (balance.open(all[0]), balance.open(all[1]));
    for _ in 0..100 {
        assert_ne!(balance.by_load(&allowed), Some(all[0]));
    }
    assert_eq!(balance.by_load(&Allowed::of(vec![&all[..1]])), Some(all[0]), "but if it is alone");
    assert_eq!(balance.by_load(&Allowed::of(Vec::new())), None);
}

/// By hash each has its share of clients, and a backend that goes moves its own clients alone.
#[test]
fn hashed_clients_stay_where_they_are() {
    let all = backends(4);
    let mut got = BTreeMap::new();
    for number in 0..4000_u32 {
        let client = IpAddr::V4(Ipv4Addr::from_bits(0x0a01_0000 + number));
        let before = Balance::by_hash(client, &Allowed::of(vec![&all])).expect("one");
        *got.entry(before).or_insert(0) += 1;
        let after = Balance::by_hash(client, &Allowed::of(vec![&all[..1], &all[2..]])).expect("one");
        assert!(before == all[1] || after == before);
    }
    assert!(got.len() == 4 && got.values().all(|count| (800..1200).contains(count)), "{got:?}");
}
