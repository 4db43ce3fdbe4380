//! What nodes say: what is sent is what is read, by a control of another age too, and nothing that is read can panic it.

use proptest::prelude::*;
use prost::Message as _;
use sluice_wire::{codec, kernel, limits, pb};

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-z/ ]{1,20}", ".{1,8}"]
}

prop_compose! {
    fn drift()(what in text(), stays in text(), (times, age_seconds) in any::<(u64, u64)>()) -> pb::Drift {
        pb::Drift { what, stays, times, age_seconds }
    }
}

prop_compose! {
    fn said()(
        (generation, repaired) in any::<(u64, u64)>(),
        packets in prop::collection::vec((text(), any::<u64>()), 0..8),
        maps in prop::collection::vec((text(), any::<u64>(), any::<u64>(), text()), 0..4),
        drift in prop::collection::vec(drift(), 0..4),
        trouble in text(),
    ) -> pb::FromNode {
        let packets = packets.into_iter().map(|(reason, count)| pb::Packets { reason, count }).collect();
        let maps = maps
            .into_iter()
            .map(|(map, used, max, warning)| pb::MapFill { map, used, max, warning })
            .collect();
        kernel(pb::Kernel { generation, packets, maps, drift, repaired, trouble })
    }
}

prop_compose! {
    fn acked()(
        (generation, applied) in any::<(u64, bool)>(), rejected in text(),
        attached in prop::collection::vec(text(), 0..4),
        missing in prop::collection::vec((text(), text()), 0..4),
        drift in prop::collection::vec(drift(), 0..4),
    ) -> pb::FromNode {
        let missing =
            missing.into_iter().map(|(endpoint, reason)| pb::MissingEndpoint { endpoint, reason }).collect();
        sluice_wire::ack(pb::Ack { generation, applied, rejected, attached, missing, drift })
    }
}

fn any_message() -> impl Strategy<Value = pb::FromNode> {
    prop_oneof![
        said(),
        acked(),
        (text(), any::<u64>()).prop_map(|(node, last)| sluice_wire::hello(&node, last))
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_said_is_what_is_heard(message in any_message()) {
        let bytes = message.encode_to_vec();
        prop_assert!(codec::entries(&bytes, limits::FROM_NODE_ENTRIES).is_some());
        prop_assert_eq!(pb::FromNode::decode(&*bytes).expect("a message"), message);
    }

    /// Whatever is taken to be a message has no more elements than were counted before.
    #[test]
    fn a_changed_message_is_read_or_refused_within_its_bound(
        message in any_message(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let mut bytes = message.encode_to_vec();
        prop_assume!(!bytes.is_empty());
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let counted = codec::entries(&bytes, usize::MAX).expect("no bound");
        if let Ok(message) = pb::FromNode::decode(&*bytes) {
            prop_assert!(elements(&message) <= counted, "{} of {counted}: {message:?}", elements(&message));
        }
    }

    #[test]
    fn noise_is_counted_and_does_no_harm(noise in prop::collection::vec(any::<u8>(), 0..256)) {
        let counted = codec::entries(&noise, usize::MAX).expect("no bound");
        if let Ok(message) = pb::FromNode::decode(&*noise) {
            prop_assert!(elements(&message) <= counted);
        }
    }
}

fn elements(message: &pb::FromNode) -> usize {
    match &message.message {
        Some(pb::from_node::Message::Ack(ack)) => ack.attached.len() + ack.missing.len() + ack.drift.len(),
        Some(pb::from_node::Message::Report(report)) => {
            let kernel = report.kernel.as_ref();
            let lists = |kernel: &pb::Kernel| kernel.packets.len() + kernel.maps.len() + kernel.drift.len();
            report.records.len() + kernel.map_or(0, lists)
        }
        _ => 0,
    }
}

/// As the messages were before there was `Ack.drift` and `Report.kernel`.
#[derive(Clone, PartialEq, prost::Message)]
struct OldAck {
    #[prost(uint64, tag = "1")]
    generation: u64,
    #[prost(bool, tag = "2")]
    applied: bool,
    #[prost(string, repeated, tag = "4")]
    attached: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OldReport {
    #[prost(uint64, tag = "2")]
    dropped: u64,
}

#[test]
fn control_and_nodes_of_different_ages_understand_each_other() {
    let attached = vec!["shop/cart".to_owned()];
    let drift = vec![pb::Drift { what: "a hook was gone".into(), ..pb::Drift::default() }];
    let ack = pb::Ack { generation: 7, applied: true, attached, drift, ..pb::Ack::default() };
    let old = OldAck::decode(&*ack.encode_to_vec()).expect("an older control reads it");
    assert_eq!((old.generation, old.applied, old.attached.len()), (7, true, 1));
    let new = pb::Ack::decode(&*old.encode_to_vec()).expect("a newer control reads an older node's");
    assert_eq!(new, pb::Ack { drift: Vec::new(), ..ack });

    let kernel = Some(pb::Kernel { generation: 7, ..pb::Kernel::default() });
    let report = pb::Report { dropped: 2, kernel, ..pb::Report::default() };
    let old = OldReport::decode(&*report.encode_to_vec()).expect("an older control reads it");
    let new = pb::Report::decode(&*old.encode_to_vec()).expect("a newer control reads an older node's");
    // Nothing is not the same as no numbers: control can tell that the node does not speak of its kernel.
    assert_eq!(new, pb::Report { kernel: None, ..report });
}
