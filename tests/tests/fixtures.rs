//! The fixtures through the engine alone: read, compiled and judged, without a packet.
//!
//! `e2e.rs` runs the same files through the real datapath.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use sluice_tests::engine::Engine;
use sluice_tests::fixture::{Fixture, OUTSIDE, Placed};
use sluice_tests::harness;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut tests: Vec<Trial> = vec![
        harness::test("there are at least 20", [], || {
            let count = Fixture::all()?.len();
            ensure!(count >= 20, "there are {count}");
            Ok(())
        }),
        harness::test("a wrong expectation is found", [], wrong_expectation_is_found),
    ];
    match Fixture::all() {
        Ok(fixtures) => {
            tests.extend(fixtures.into_iter().map(|fixture| {
                harness::test(format!("engine: {}", fixture.name), [], move || check(&fixture))
            }));
        }
        Err(error) => tests.push(harness::test("fixtures are read", [], move || Err(error))),
    }
    harness::main(4, tests)
}

/// Some address for every pod: the n-th of a node's range.
fn addresses(fixture: &Fixture) -> BTreeMap<String, Placed> {
    let pods = (10..).zip(fixture.pods.keys()).map(|(number, name): (u8, _)| {
        let (v4, v6) =
            (Ipv4Addr::new(10, 77, 1, number), Ipv6Addr::new(0xfd77, 0, 0, 1, 0, 0, 0, number.into()));
        (name.clone(), Placed { node: "n1".to_owned(), v4, v6 })
    });
    pods.collect()
}

fn check(fixture: &Fixture) -> Result<()> {
    let pods = addresses(fixture);
    let place = |name: &str| pods.get(name).cloned().with_context(|| format!("{name} has no place"));
    let engine = Engine::new(&fixture.manifests(place)?)?;
    let both = |name: &str| -> Result<[IpAddr; 2]> {
        if let Some((_, v4, v6)) = OUTSIDE.iter().find(|(outside, ..)| *outside == name) {
            return Ok([(*v4).into(), (*v6).into()]);
        }
        place(name).map(|Placed { v4, v6, .. }| [v4.into(), v6.into()])
    };
    let mut wrong = Vec::new();
    for request in &fixture.requests {
        let (from, to) = (both(&request.from)?, both(&request.to)?);
        // An address block of IPv4 says nothing of the same host's IPv6 address.
        let outside = |name: &String| fixture.outside.contains(name);
        let families = if outside(&request.from) || outside(&request.to) { 1 } else { 2 };
        for family in 0..families {
            wrong.extend(engine.judge(from[family], to[family], request).differs_from(request));
        }
    }
    ensure!(wrong.is_empty(), "{}\n    {}", fixture.about, wrong.join("\n    "));
    Ok(())
}

/// The check itself can fail: each part of an expectation, turned round, is found.
fn wrong_expectation_is_found() -> Result<()> {
    let all = Fixture::all()?;
    let good =
        all.into_iter().find(|fixture| fixture.name == "http-methods").context("http-methods is gone")?;
    check(&good)?;
    let spoil: [fn(&mut sluice_tests::fixture::Request); 4] = [
        |request| request.expect = sluice_tests::fixture::Expect::Deny,
        |request| request.rule = Some("another".to_owned()),
        |request| request.policy = Some("NetworkPolicy/shop/cart".to_owned()),
        |request| request.reason = Some("not_isolated".to_owned()),
    ];
    for (number, spoil) in spoil.into_iter().enumerate() {
        let mut bad = good.clone();
        spoil(&mut bad.requests[0]);
        ensure!(check(&bad).is_err(), "wrong expectation {number} was not found");
    }
    Ok(())
}
