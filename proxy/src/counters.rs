//! `sluice-proxy counters`: prints what the kernel of this node counts, for people and for programs.
//!
//! Reads nothing itself; docs/datapath-drops.md says what each counter means. Called by `cli`.

use crate::check::Output;
use serde_json::{Value, json};
use sluice_redirect::{ABI_VERSION, Fill, Reading};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// Of `--help`.
pub const ABOUT: &str = "Packets are counted since the maps were made, once each by what became of them; \
    docs/datapath-drops.md says what each counter means and what to do.\nExit code: 0 printed, 1 nothing could be read \
    (nothing pinned, another version's, not root).";
/// The version of the JSON. A field may come to it without another number; none changes its meaning or goes.
const SCHEMA: u32 = 1;

/// Reads and prints.
///
/// # Errors
/// If there is nothing to read, or it may not be read.
pub fn run(bpffs: &Path, all: bool, output: Output) -> anyhow::Result<()> {
    let reading = Reading::take(bpffs)?;
    let text = match output {
        Output::Table => table(&Shown::of(bpffs, &reading, all)),
        Output::Json => format!("{:#}\n", json(&reading)),
    };
    let mut out = std::io::stdout().lock();
    // Whoever has read enough may go.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    Ok(())
}

/// What the table is made of.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    place: String,
    epoch: u64,
    others: Vec<u32>,
    packets: Vec<(String, u64)>,
    fill: Vec<Fill>,
}

impl Shown {
    fn of(bpffs: &Path, reading: &Reading, all: bool) -> Self {
        let packets = reading.counters.iter().filter(|(_, count)| all || *count > 0);
        Self {
            place: bpffs.display().to_string(),
            epoch: reading.epoch,
            others: reading.others.clone(),
            packets: packets.map(|(counter, count)| (counter.as_str().to_owned(), count)).collect(),
            fill: reading.fill.clone(),
        }
    }
}

fn table(shown: &Shown) -> String {
    let Shown { place, epoch, others, packets, fill } = shown;
    let mut text = format!("BPF ABI {ABI_VERSION} at {place}, swap {epoch}\n");
    if *epoch == 0 {
        text.push_str("nothing is in force yet: every packet of a pod with hooks is dropped\n");
    }
    if !others.is_empty() {
        let _ = writeln!(text, "beside it BPF ABI {others:?}: one of them is taking the node over");
    }
    let _ = writeln!(text, "\n{:<20}{:>14}", "REASON", "PACKETS");
    for (reason, count) in packets {
        let _ = writeln!(text, "{reason:<20}{count:>14}");
    }
    let _ = writeln!(text, "\n{:<20}{:>14}{:>14}{:>6}", "MAP", "ENTRIES", "ROOM", "%");
    for full in fill {
        let Fill { map, used, max } = full;
        let _ = writeln!(text, "{map:<20}{used:>14}{max:>14}{:>6}", full.hundredths());
    }
    for full in fill.iter().filter(|full| full.is_nearly_full(false)) {
        let _ = writeln!(text, "\nwarning: {}", full.warning());
    }
    text
}

fn json(reading: &Reading) -> Value {
    let packets: serde_json::Map<String, Value> =
        reading.counters.iter().map(|(counter, count)| (counter.as_str().to_owned(), count.into())).collect();
    let fill = |fill: &Fill| {
        let warning = fill.is_nearly_full(false).then(|| fill.warning());
        (fill.map.to_owned(), json!({ "used": fill.used, "max": fill.max, "warning": warning }))
    };
    json!({
        "schema": SCHEMA,
        "version": env!("CARGO_PKG_VERSION"),
        "abi": ABI_VERSION,
        "otherAbis": reading.others,
        "epoch": reading.epoch,
        "packets": packets,
        "maps": reading.fill.iter().map(fill).collect::<serde_json::Map<String, Value>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_redirect::Counter;

    /// The numbers that a table shows.
    fn parse(text: &str) -> Shown {
        let (first, rest) = text.split_once("\n\n").expect("a head");
        let (place, epoch) =
            first.split_once(" at ").and_then(|(_, rest)| rest.split_once(", swap ")).expect("both");
        let (packets, maps) = rest.split_once("\n\n").expect("two tables");
        let number = |word: &str| word.parse::<u64>().expect("a number");
        let packets = packets.lines().skip(1).map(|line| {
            let (reason, count) = line.split_once(' ').expect("two columns");
            (reason.to_owned(), number(count.trim()))
        });
        let fill = maps.lines().skip(1).take_while(|line| !line.is_empty()).map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (used, max) = (number(words[1]) as usize, number(words[2]) as u32);
            Fill { map: String::leak(words[0].to_owned()), used, max }
        });
        Shown {
            place: place.to_owned(),
            epoch: number(epoch),
            others: Vec::new(),
            packets: packets.collect(),
            fill: fill.collect(),
        }
    }

    /// What the document shows is what is printed of the same numbers, and all of it means something.
    #[test]
    fn the_document_shows_what_is_printed() {
        let text = include_str!("../../docs/operations.md");
        let (_, after) = text.split_once("$ sudo sluice-proxy counters\n").expect("the command");
        let (shown, _) = after.split_once("```").expect("its end");
        let parsed = parse(shown);
        assert_eq!(table(&parsed), shown);
        assert!(parsed.packets.len() > 3 && parsed.fill.len() == 6, "{parsed:?}");
        for (reason, _) in &parsed.packets {
            assert!(Counter::ALL.iter().any(|counter| counter.as_str() == reason), "{reason} is no counter");
        }
    }

    #[test]
    fn what_is_not_well_is_said() {
        let fill = vec![Fill { map: "FLOWS", used: 95, max: 100 }, Fill { map: "ROWS", used: 89, max: 100 }];
        let shown = Shown {
            place: "/bpf".into(),
            epoch: 0,
            others: vec![3],
            packets: vec![("denied".into(), u64::MAX)],
            fill,
        };
        let text = table(&shown);
        for part in
            ["nothing is in force yet", "beside it BPF ABI [3]", "denied ", "warning: map FLOWS is 95 % full"]
        {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("map ROWS"), "{text}");
    }
}
