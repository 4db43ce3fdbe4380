//! Flows that the kernel decides, as the agent records them.

use crate::NEEDS;
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use sluice_tests::cluster::is_of_the_kernel;
use sluice_tests::harness;
use sluice_tests::scene::{CART, Scene};
use sluice_tests::world::Family;
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    vec![harness::test("what the kernel decides is recorded with its rule", NEEDS, recorded)]
}

/// Long enough for anything that must come.
const SOON: Duration = Duration::from_secs(5);
/// Long enough for what must not come.
const NEVER: Duration = Duration::from_millis(400);
const POLICY: &str = "L7NetworkPolicy/shop/cart";

fn recorded() -> Result<()> {
    let scene = Scene::start(&[], CART)?;
    for family in Family::BOTH {
        let mark = scene.cluster.mark();
        let target = scene.address("shop/cart", family, 5353);
        let of = |record: &Value, from: &str, to: &str, protocol: &str| {
            is_of_the_kernel(record)
                && record["protocol"] == protocol
                && record["source"]["ip"] == scene.world().pod(from).ip(family).to_string().as_str()
                && record["destination"]["ip"] == scene.world().pod(to).ip(family).to_string().as_str()
        };

        ensure!(!scene.udp("shop/intruder", target, NEVER)?, "the intruder's datagram passes");
        let refused = scene.cluster.wait_record(&mark, "a refused datagram", |record| {
            of(record, "shop/intruder", "shop/cart", "udp") && record["verdict"] == "deny"
        })?;
        ensure!(refused["policy"] == POLICY && refused["reason"] == "default_deny", "{refused:#}");
        ensure!(refused["nearestMiss"].as_str().is_some_and(|miss| !miss.is_empty()), "{refused:#}");
        ensure!(refused["direction"] == "ingress" && refused["destination"]["port"] == 5353, "{refused:#}");
        ensure!(
            refused["destination"]["pod"] == "cart" && refused["source"]["pod"] == "intruder",
            "{refused:#}"
        );
        ensure!(refused["error"] == "" && refused["generation"] != 0, "{refused:#}");

        ensure!(scene.udp("shop/frontend", target, SOON)?, "the frontend's datagram does not pass");
        let passed = scene.cluster.wait_record(&mark, "a datagram", |record| {
            of(record, "shop/frontend", "shop/cart", "udp") && record["direction"] == "ingress"
        })?;
        ensure!(passed["verdict"] == "allow" && passed["reason"] == "rule_matched", "{passed:#}");
        ensure!(passed["policy"] == POLICY && passed["rule"] == "database", "{passed:#}");
        // The other node has its own end's.
        let left = scene.cluster.wait_record(&mark, "its way out", |record| {
            of(record, "shop/frontend", "shop/cart", "udp") && record["direction"] == "egress"
        })?;
        ensure!(left["verdict"] == "allow" && left["reason"] == "not_isolated", "{left:#}");

        // Two pods of one node: the hook of the destination tells it, alone.
        let billing = scene.address("shop/billing", family, 5353);
        ensure!(scene.udp("shop/cart", billing, SOON)?, "a datagram to the neighbour does not pass");
        scene.cluster.wait_record(&mark, "the neighbour's datagram", |record| {
            of(record, "shop/cart", "shop/billing", "udp") && record["direction"] == "ingress"
        })?;
        let all = scene.cluster.records_since(&mark);
        let twice = all.iter().filter(|record| of(record, "shop/cart", "shop/billing", "udp")).count();
        ensure!(twice == 1, "told {twice} times: {all:#?}");
    }
    Ok(())
}
