//! What nodes say, made safe to keep, to log and to show: bounded, and without characters that do something.
//!
//! A node may lie; what it says of itself it says of itself alone, and it must neither fill control's memory nor write
//! to an operator's terminal. Nothing here is refused: what a report has too much of is left out, and counted. Called
//! by the feed, before anything waits for the controller's loop.

use sluice_wire::{limits, pb};
use std::collections::BTreeMap;

/// What a node knows of its kernel, as it said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// The generation that the programs judge by.
    pub generation: u64,
    /// Packets by reason.
    pub packets: BTreeMap<String, u64>,
    /// Maps by name.
    pub maps: BTreeMap<String, Fill>,
    /// What was changed behind the agent's back, the latest first.
    pub drift: Vec<pb::Drift>,
    /// How many changes were put right.
    pub repaired: u64,
    /// Why the numbers are older than it; empty if they are not.
    pub trouble: String,
    /// What was left out of this: names that are none, and more than there can be.
    pub left_out: u64,
}

/// How full a map is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Entries in force.
    pub used: u64,
    /// Entries that there is room for.
    pub max: u64,
    /// That it is nearly full, and what to do; empty if it is not.
    pub warning: String,
}

/// The name that a node gives itself, if it can be one.
#[must_use]
pub fn is_node_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= limits::NAME_BYTES && !name.chars().any(acts)
}

/// An ack.
#[must_use]
pub fn ack(mut ack: pb::Ack) -> pb::Ack {
    ack.rejected = text(&ack.rejected, limits::SENTENCE_BYTES);
    ack.attached.truncate(limits::ENDPOINTS);
    ack.missing.truncate(limits::ENDPOINTS);
    for endpoint in &mut ack.attached {
        *endpoint = text(endpoint, limits::NAME_BYTES);
    }
    for missing in &mut ack.missing {
        missing.endpoint = text(&missing.endpoint, limits::NAME_BYTES);
        missing.reason = text(&missing.reason, limits::SENTENCE_BYTES);
    }
    ack.drift = drift(ack.drift);
    ack
}

/// What a node knows of its kernel.
#[must_use]
pub fn kernel(said: pb::Kernel) -> Kernel {
    let given = said.packets.len() + said.maps.len() + said.drift.len();
    let packets = said.packets.into_iter().filter(|packets| is_name(&packets.reason));
    let packets: BTreeMap<_, _> =
        packets.take(limits::COUNTERS).map(|packets| (packets.reason, packets.count)).collect();
    let maps = said.maps.into_iter().filter(|fill| is_name(&fill.map)).take(limits::MAPS);
    let fill = |fill: pb::MapFill| {
        let warning = text(&fill.warning, limits::SENTENCE_BYTES);
        (fill.map, Fill { used: fill.used, max: fill.max, warning })
    };
    let maps: BTreeMap<_, _> = maps.map(fill).collect();
    let drift = drift(said.drift);
    let kept = packets.len() + maps.len() + drift.len();
    Kernel {
        generation: said.generation,
        packets,
        maps,
        drift,
        repaired: said.repaired,
        trouble: text(&said.trouble, limits::SENTENCE_BYTES),
        left_out: (given - kept) as u64,
    }
}

fn drift(mut said: Vec<pb::Drift>) -> Vec<pb::Drift> {
    said.truncate(limits::DRIFTS);
    for drift in &mut said {
        drift.what = text(&drift.what, limits::SENTENCE_BYTES);
        drift.stays = text(&drift.stays, limits::SENTENCE_BYTES);
    }
    said
}

/// Counters and maps are named by words of the code.
fn is_name(name: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !name.is_empty() && name.len() <= limits::COUNTER_BYTES && name.bytes().all(fine)
}

/// Without what acts on a terminal, and no longer than so many bytes.
fn text(said: &str, most: usize) -> String {
    let mut clean = String::new();
    for character in said.chars().map(|c| if acts(c) { char::REPLACEMENT_CHARACTER } else { c }) {
        if clean.len() + character.len_utf8() > most {
            break;
        }
        clean.push(character);
    }
    clean
}

/// Control characters, and those of Unicode that turn the line round (UAX 9) or end it.
fn acts(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_does_is_left_of_a_text() {
        let said = "a\u{1b}[2J\u{7}\r\nb\u{202e}c\u{9b}31m\0ü";
        assert_eq!(text(said, 100), "a\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}b\u{fffd}c\u{fffd}31m\u{fffd}ü");
        assert_eq!(text("aüü", 4), "aü", "cut between characters");
        assert!(text(&"\0".repeat(100), 10).len() <= 10, "what replaces is counted");
        assert!(is_node_name("node-a.example") && !is_node_name("node\u{1b}c") && !is_node_name(""));
    }

    #[test]
    fn a_kernel_that_says_too_much_is_cut_and_counted() {
        let packets = |at: u64| pb::Packets { reason: format!("reason_{at}"), count: u64::MAX };
        let map = |at: u64| pb::MapFill {
            map: format!("MAP_{at}"),
            used: u64::MAX,
            max: 0,
            warning: "\u{1b}".repeat(100_000),
        };
        let drift =
            pb::Drift { what: "\n".repeat(100_000), stays: "\r".repeat(100_000), ..pb::Drift::default() };
        let said = pb::Kernel {
            packets: (0..1000).map(packets).collect(),
            maps: (0..1000).map(map).collect(),
            drift: vec![drift; 1000],
            trouble: "\u{7}".repeat(100_000),
            ..pb::Kernel::default()
        };
        let kernel = kernel(said);
        assert_eq!((kernel.packets.len(), kernel.maps.len()), (limits::COUNTERS, limits::MAPS));
        assert_eq!(kernel.drift.len(), limits::DRIFTS);
        assert_eq!(kernel.left_out as usize, 3000 - limits::COUNTERS - limits::MAPS - limits::DRIFTS);
        let texts = kernel.drift.iter().flat_map(|drift| [&drift.what, &drift.stays]);
        for text in texts.chain(kernel.maps.values().map(|fill| &fill.warning)).chain([&kernel.trouble]) {
            assert!(text.len() <= limits::SENTENCE_BYTES && !text.contains(char::is_control));
        }
    }

    #[test]
    fn what_is_no_name_is_left_out() {
        let names = ["denied", "de\u{1b}nied", "", "a b", &"n".repeat(limits::COUNTER_BYTES + 1), "denied"];
        let packets = names.map(|name| pb::Packets { reason: name.to_owned(), count: 1 });
        let kernel = kernel(pb::Kernel { packets: packets.into(), ..pb::Kernel::default() });
        assert_eq!(kernel.packets.keys().collect::<Vec<_>>(), ["denied"]);
        assert_eq!(kernel.left_out, 5);
    }

    #[test]
    fn an_ack_is_cleaned_too() {
        let missing = pb::MissingEndpoint { endpoint: "shop/c\u{1b}art".into(), reason: "no\ndevice".into() };
        let said = pb::Ack {
            rejected: "\u{1b}]0;title\u{7}".into(),
            attached: vec!["a\tb".into(); limits::ENDPOINTS + 1],
            missing: vec![missing],
            drift: vec![pb::Drift { what: "\u{8}".into(), ..pb::Drift::default() }],
            ..pb::Ack::default()
        };
        let clean = ack(said);
        assert_eq!(clean.attached.len(), limits::ENDPOINTS);
        assert!(!format!("{clean:?}").contains("\\u{1b}"), "{clean:?}");
        assert_eq!(clean.missing[0].reason, "no\u{fffd}device");
        assert_eq!(clean.drift[0].what, "\u{fffd}");
    }
}
