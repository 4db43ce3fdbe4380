//! A process writes over what it has written two generations ago, and over nothing else.

use crate::peers::{SOON, Server, is_refused, reaches};
use crate::rig::Rig;
use crate::rules::{self, Line, ingress, tcp};
use anyhow::{Context, Result, bail, ensure};
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, ArrayOfMaps, IterableMap, Map, MapData};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use libtest_mimic::Trial;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use sluice_policy::Snapshot;
use sluice_redirect::{ABI_VERSION, Counter, Node, absent};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::Family;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Keys and values as long as those of a row.
type Rows = LpmTrie<MapData, [u8; 12], [u8; 8]>;
/// It runs until it is told to end, for ten seconds at most. See `slow.ll`.
static SLOW: &[u8] = aya::include_bytes_aligned!("slow.bpf.o");
/// Whether it has begun, whether it is done, and whether it is to end.
type Said = [u64; 3];
/// For so long an acknowledgement that must wait is waited for: many times what a generation takes.
const WAIT: Duration = Duration::from_millis(1500);
/// Generations of each of two that write at once: each is some milliseconds in which the other may.
const TURNS: usize = 25;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        harness::test("slots: what somebody else put into one is not put in force", [Need::Bpf], foreign),
        harness::test("slots: nor what somebody wrote to a map, or took out of it", [Need::Bpf], written),
        harness::test("slots: one that has lost a map gets another", [Need::Bpf], lost),
        harness::test(
            "slots: nothing is acknowledged while a program runs that began before",
            [Need::Bpf],
            settled,
        ),
        harness::test("slots: of two that write at once none mixes in the other's", [Need::Bpf], two),
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

fn pin(rig: &Rig, map: &str) -> PathBuf {
    rig.config("n1").bpffs.join(format!("v{ABI_VERSION}/maps/{map}"))
}

/// The slot in force.
fn slot(rig: &Rig) -> Result<u32> {
    Ok(u32::try_from(epoch(rig)? % 2)?)
}

fn epoch(rig: &Rig) -> Result<u64> {
    let epoch: Array<MapData, u64> = Map::from_map_data(MapData::from_pin(pin(rig, "EPOCH"))?)?.try_into()?;
    Ok(epoch.get(&0, 0)?)
}

/// The rows of both slots, as the kernel numbers them.
fn rows(rig: &Rig) -> Result<(ArrayOfMaps<MapData, Rows>, [u32; 2])> {
    let outer: ArrayOfMaps<MapData, Rows> =
        Map::from_map_data(MapData::from_pin(pin(rig, "ROWS"))?)?.try_into()?;
    let id = |slot| -> Result<u32> {
        let rows = outer.get(&slot, 0).with_context(|| format!("slot {slot}"))?;
        Ok(IterableMap::map(&rows).info()?.id())
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

fn written() -> Result<()> {
    let mut rig = Rig::routed()?;
    let _servers = [80, 81].map(|port| Server::start(&rig.pod("a/server").netns, port));
    let [at_80, at_81] = [80, 81].map(|port| rig.at("a/server", Family::V4, port));
    for _ in 0..2 {
        rig.apply(&lines([80, 81]))?;
    }
    reaches(rig.pod("a/client"), at_81)?;
    let both = rows(&rig)?.0.get(&slot(&rig)?, 0)?.iter().collect::<Result<Vec<_>, _>>()?;
    for _ in 0..2 {
        rig.apply(&lines([80]))?;
    }
    is_refused(rig.pod("a/client"), at_81)?;
    let other = || -> Result<Rows> { Ok(rows(&rig)?.0.get(&(1 - slot(&rig)?), 0)?) };
    let few = other()?.keys().count();
    let mut map = other()?;
    for (key, value) in &both {
        map.insert(key, *value, 0)?;
    }
    ensure!(map.keys().count() > few, "nothing was added");
    rig.apply(&lines([80]))?;
    reaches(rig.pod("a/client"), at_80)?;
    is_refused(rig.pod("a/client"), at_81)?;
    let mut map = rows(&rig)?.0.get(&(1 - slot(&rig)?), 0)?;
    for key in map.keys().collect::<Result<Vec<_>, _>>()? {
        map.remove(&key)?;
    }
    rig.apply(&lines([80]))?;
    reaches(rig.pod("a/client"), at_80)?;
    is_refused(rig.pod("a/client"), at_81)
}

fn lost() -> Result<()> {
    let mut rig = Rig::routed()?;
    let _servers = [80, 81].map(|port| Server::start(&rig.pod("a/server").netns, port));
    for map in ["ROWS", "CLASSES", "SERVICES", "ENDPOINTS", "LOCALS"] {
        rig.apply(&lines([80]))?;
        rig.apply(&lines([80]))?;
        for slot in [0, 1] {
            absent::inner_map(&pin(&rig, map), slot).with_context(|| format!("{map} of slot {slot}"))?;
        }
        // One that knows the slots, and one that does not.
        for again in [false, true] {
            if again {
                drop(rig.take("n1"));
                rig.open("n1")?;
            }
            rig.apply(&lines([80])).with_context(|| map.to_owned())?;
            reaches(rig.pod("a/client"), rig.at("a/server", Family::V4, 80)).context(map)?;
            is_refused(rig.pod("a/client"), rig.at("a/server", Family::V4, 81)).context(map)?;
        }
    }
    Ok(())
}

fn settled() -> Result<()> {
    let mut rig = Rig::routed()?;
    // Both slots are known: what is waited for is not that maps are exchanged.
    for _ in 0..3 {
        rig.apply(&lines([80]))?;
    }
    let mut slow: Ebpf = EbpfLoader::new().load(SLOW)?;
    let mut said: Array<MapData, Said> = slow.take_map(".bss").context("its map")?.try_into()?;
    let program: &mut SchedClassifier = slow.program_mut("slow").context("it")?.try_into()?;
    program.load()?;
    let program = &*program;
    // It has a CPU to itself, so that everything else goes on. Where there is but one nothing can be seen of this.
    let all = sched_getaffinity(None)?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu));
    let (Some(its), Some(ours)) = (cpus.next(), cpus.next()) else { return Ok(()) };
    let before = epoch(&rig)?;
    let pin = pin(&rig, "EPOCH");
    let flipped = || -> Result<bool> {
        let epoch: Array<MapData, u64> = Map::from_map_data(MapData::from_pin(&pin)?)?.try_into()?;
        Ok(epoch.get(&0, 0)? != before)
    };
    std::thread::scope(|scope| {
        let runs = scope.spawn(move || {
            stay_on(its)?;
            let options = TestRunOptions { data_in: Some(&[0; 64]), ..TestRunOptions::new() };
            program.test_run(options).map(drop).context("run it")
        });
        let seen = scope.spawn(move || -> Result<()> {
            stay_on(ours)?;
            let watch = || -> Result<()> {
                soon("the program does not begin", || Ok(said.get(&0, 0)?[0] == 1))?;
                // It may have read the epoch, and not yet asked a row.
                let applies = scope.spawn(move || {
                    stay_on(ours)?;
                    rig.apply(&lines([81])).map(drop)
                });
                soon("the rows do not come in force", flipped)?;
                let end = Instant::now() + WAIT;
                while Instant::now() < end && !applies.is_finished() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                ensure!(said.get(&0, 0)?[1] == 0, "the program ended by itself");
                ensure!(!applies.is_finished(), "acknowledged while a program runs that began before");
                said.set(0, [1, 0, 1], 0)?;
                applies.join().unwrap_or_else(|_| bail!("who applies panicked"))
            };
            let watched = watch();
            said.set(0, [1, 0, 1], 0)?;
            watched
        });
        [runs, seen]
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
    })
}

fn soon(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + SOON;
    while !done()? {
        ensure!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// This thread, and those that it starts.
fn stay_on(cpu: usize) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(cpu);
    Ok(sched_setaffinity(None, &one)?)
}

/// An agent that hands the node over and the one that takes it. The same rules, but what is one class or profile for
/// the one is another for the other: a slot with maps of both would show.
fn two() -> Result<()> {
    let mut rig = Rig::routed()?;
    let _server = Server::start(&rig.pod("a/server").netns, 80)?;
    let rules = lines([80]);
    rig.apply(&rules)?;
    let snapshots: Vec<Snapshot> = (0..2)
        .map(|number| {
            let mut snapshot = rules::snapshot(&rig.world, "n1", 2, &rules);
            if number == 1 {
                rules::renumber(&mut snapshot, 1);
            }
            snapshot
        })
        .collect();
    let (config, listeners) = (rig.config("n1"), rig.node("n1").listeners()?);
    let netns = rig.node("n1").proxy_netns().try_clone_to_owned()?;
    let n1 = rig.world.node("n1").netns.clone();
    let old = rig.take("n1");
    let new = n1.inside(|| Node::adopt(config, netns, &listeners))??;
    let (over, before, first) = (AtomicBool::new(false), new.counters()?, epoch(&rig)?);
    let nodes = std::thread::scope(|scope| -> Result<Vec<Node>> {
        let writers: Vec<_> = [old, new]
            .into_iter()
            .zip(&snapshots)
            .map(|(mut node, snapshot)| {
                scope.spawn(move || -> Result<Node> {
                    for _ in 0..TURNS {
                        node.apply(snapshot)?;
                    }
                    Ok(node)
                })
            })
            .collect();
        let looks = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::SeqCst) {
                reaches(rig.pod("a/client"), rig.at("a/server", Family::V4, 80))?;
                reaches(rig.pod("a/client"), rig.at("a/server", Family::V6, 80))?;
            }
            Ok(())
        });
        let join = |writer: std::thread::ScopedJoinHandle<'_, Result<Node>>| {
            writer.join().unwrap_or_else(|_| bail!("a writer panicked"))
        };
        let nodes: Result<Vec<Node>> = writers.into_iter().map(join).collect();
        over.store(true, Ordering::SeqCst);
        looks.join().unwrap_or_else(|_| bail!("who looked panicked"))?;
        nodes
    })?;
    let epochs = usize::try_from(epoch(&rig)? - first)?;
    ensure!(epochs == 2 * TURNS, "{epochs} epochs for {} generations", 2 * TURNS);
    // A SYN that is dropped is sent again, and gets through then: what counts is that none was.
    let grown = nodes[0].counters()?.since(&before);
    let refused = grown.iter().find(|(counter, _)| [Counter::NoRow, Counter::Denied].contains(counter));
    ensure!(refused.is_none(), "a packet was judged by rows of one and classes of the other: {grown:?}");
    Ok(())
}

fn room() -> Result<()> {
    let mut rig = Rig::routed()?;
    let _servers = [80, 1999].map(|port| Server::start(&rig.pod("a/server").netns, port));
    // Whoever reads the events all the time, as an agent does, holds nobody up.
    let _events = rig.node("n1").events()?;
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
