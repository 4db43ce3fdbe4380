//! A process writes over what it has written two generations ago, and over nothing else.

use crate::peers::{Server, is_refused, reaches};
use crate::rig::Rig;
use crate::rules::{Line, ingress, tcp};
use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{ArrayOfMaps, Map, MapData};
use libtest_mimic::Trial;
use sluice_redirect::ABI_VERSION;
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;

/// Keys and values as long as those of a row.
type Rows = LpmTrie<MapData, [u8; 12], [u8; 8]>;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("slots: what somebody else put into one is not put in force", [Need::Bpf], foreign),
        harness::test(
            "slots: maps are kept while there is room, and made anew where there is none",
            [Need::Bpf],
            room,
        ),
    ]
}

fn lines(ports: impl IntoIterator<Item = u16>) -> Vec<Line> {
    ports.into_iter().map(|port| ingress("a/server", "a/client", tcp(port, port))).collect()
}

/// The rows of both slots, as the kernel numbers them.
fn rows(rig: &Rig) -> Result<(ArrayOfMaps<MapData, Rows>, [u32; 2])> {
    let pin = rig.config("n1").bpffs.join(format!("v{ABI_VERSION}/maps/ROWS"));
    let outer: ArrayOfMaps<MapData, Rows> = Map::from_map_data(MapData::from_pin(pin)?)?.try_into()?;
    let id = |slot| -> Result<u32> {
        let rows = outer.get(&slot, 0).with_context(|| format!("slot {slot}"))?;
        Ok(aya::maps::IterableMap::map(&rows).info()?.id())
    };
    let ids = [id(0)?, id(1)?];
    Ok((outer, ids))
}

fn foreign() -> Result<()> {
    let mut rig = Rig::routed()?;
    let _servers = [80, 81].map(|port| Server::start(&rig.pod("a/server").netns, port));
    for _ in 0..3 {
        rig.apply(&lines([80]))?;
    }
    let [at_80, at_81] = [80, 81].map(|port| rig.at("a/server", Family::V4, port));
    reaches(rig.pod("a/client"), at_80)?;
    is_refused(rig.pod("a/client"), at_81)?;
    // One that denies everything, into both slots: into the one in force it comes at once.
    let (mut outer, _) = rows(&rig)?;
    let nothing = Rows::create(1, 1)?;
    for slot in [0, 1] {
        outer.set(slot, &nothing, 0)?;
    }
    is_refused(rig.pod("a/client"), at_80)?;
    // Whoever wrote to the maps that he remembers would put nothing in force, twice.
    for _ in 0..2 {
        rig.apply(&lines([80]))?;
        reaches(rig.pod("a/client"), at_80)?;
        is_refused(rig.pod("a/client"), at_81)?;
    }
    Ok(())
}

fn room() -> Result<()> {
    let mut rig = Rig::routed()?;
    let _servers = [80, 1999].map(|port| Server::start(&rig.pod("a/server").netns, port));
    let few = || lines([80]);
    // Ports apart, so that no prefix stands for two.
    let many = || lines((1001..3000).step_by(2));
    for _ in 0..2 {
        rig.apply(&few())?;
    }
    let (_, kept) = rows(&rig)?;
    for _ in 0..2 {
        rig.apply(&lines([81]))?;
        rig.apply(&few())?;
    }
    ensure!(rows(&rig)?.1 == kept, "the maps were made anew for one port");
    for _ in 0..2 {
        rig.apply(&many())?;
        reaches(rig.pod("a/client"), rig.at("a/server", Family::V4, 1999))?;
        is_refused(rig.pod("a/client"), rig.at("a/server", Family::V4, 80))?;
    }
    let (_, grown) = rows(&rig)?;
    ensure!(kept.iter().all(|id| !grown.contains(id)), "2,000 rows in the room of few: {kept:?}, {grown:?}");
    for _ in 0..2 {
        rig.apply(&few())?;
        reaches(rig.pod("a/client"), rig.at("a/server", Family::V4, 80))?;
        is_refused(rig.pod("a/client"), rig.at("a/server", Family::V4, 1999))?;
    }
    ensure!(rows(&rig)?.1 == grown, "room that is not needed is thrown away");
    Ok(())
}
