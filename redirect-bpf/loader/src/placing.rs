//! Which device each endpoint has, where what pods say of themselves contradicts what is known.
//!
//! A pod's address is found inside its network namespace, where a pod that may change it (`CAP_NET_ADMIN`) says what it
//! likes. What it cannot change are the node's routes and the generation in force, so those are believed first. Then
//! a device that is somebody's is nobody else's. Where nothing decides, every device in question is closed, and none is
//! left without hooks. Knows nothing of maps or netlink. Called by `node` for each snapshot.

use crate::discover::Found;
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Behind this device.
    At(u32),
    /// Behind one of these, or behind none: nobody knows, so they are closed.
    Contested(Vec<u32>, String),
    /// Nowhere, and why.
    Missing(String),
}

/// What is known of addresses beside what the pods say.
pub(crate) trait Known {
    /// The device that the generation in force gives an address.
    fn in_force(&self, address: IpAddr) -> Option<u32>;
    /// The device that the node sends what is for an address to.
    fn routed(&self, address: IpAddr) -> Option<u32>;
}

/// The place of each endpoint, by its addresses.
pub(crate) fn place(endpoints: &[&[IpAddr]], found: &Found, known: &impl Known) -> Vec<Place> {
    let pods = found.devices();
    let mut places: Vec<Option<Place>> =
        endpoints.iter().map(|addresses| by_word(addresses, found, known, &pods).map(Place::At)).collect();
    let mut taken: HashSet<u32> = places.iter().flatten().filter_map(Place::device).collect();
    let mut left: Vec<(usize, BTreeSet<u32>)> = (0..endpoints.len())
        .filter(|at| places[*at].is_none())
        .map(|at| (at, found.candidates(endpoints[at])))
        .collect();
    // Each round but the last places somebody.
    for _ in 0..=left.len() {
        left.iter_mut().for_each(|(_, devices)| devices.retain(|device| !taken.contains(device)));
        let sole = |devices: &BTreeSet<u32>| devices.first().copied().filter(|_| devices.len() == 1);
        let sure: Vec<(usize, u32)> = left
            .iter()
            .filter_map(|(at, devices)| Some((*at, sole(devices)?)))
            .filter(|(at, device)| !left.iter().any(|(other, d)| other != at && sole(d) == Some(*device)))
            .collect();
        if sure.is_empty() {
            break;
        }
        for (at, device) in sure {
            places[at] = Some(Place::At(device));
            taken.insert(device);
        }
        left.retain(|(at, _)| places[*at].is_none());
    }
    for (at, devices) in left {
        let devices: Vec<u32> = devices.into_iter().collect();
        places[at] = Some(match devices.is_empty() {
            true => Place::Missing(found.none(endpoints[at])),
            false => {
                let why = found.several(&devices);
                Place::Contested(devices, why)
            }
        });
    }
    places.into_iter().map(|place| place.unwrap_or_else(|| Place::Missing(String::new()))).collect()
}

/// The device by the word of those whom a pod does not make believe.
fn by_word(addresses: &[IpAddr], found: &Found, known: &impl Known, pods: &HashSet<u32>) -> Option<u32> {
    let agreed = |said: &dyn Fn(IpAddr) -> Option<u32>| {
        let mut all = addresses.iter().map(|address| said(*address));
        let first = all.next().flatten()?;
        all.all(|other| other == Some(first)).then_some(first)
    };
    let in_force = agreed(&|address| known.in_force(address)).filter(|device| found.name(*device).is_some());
    let candidates = found.candidates(addresses);
    // What everybody says: most endpoints, most of the time.
    if in_force.is_some() && candidates.iter().copied().eq(in_force) {
        return in_force;
    }
    // A route to where no pod is says nothing: to a bridge, or out of the node.
    let is_pods = |device: &u32| pods.contains(device) || Some(*device) == in_force;
    agreed(&|address| known.routed(address)).filter(is_pods).or(in_force)
}

impl Place {
    const fn device(&self) -> Option<u32> {
        match self {
            Self::At(device) => Some(*device),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[derive(Default)]
    struct Word {
        in_force: HashMap<IpAddr, u32>,
        routed: HashMap<IpAddr, u32>,
    }

    impl Known for Word {
        fn in_force(&self, address: IpAddr) -> Option<u32> {
            self.in_force.get(&address).copied()
        }

        fn routed(&self, address: IpAddr) -> Option<u32> {
            self.routed.get(&address).copied()
        }
    }

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    /// Who has which address, device by device; endpoint n has address n. Devices 1 to 9 are there.
    fn places(claims: &[(u32, &[u8])], endpoints: u8, word: &Word) -> Vec<Place> {
        let claims = claims.iter().flat_map(|(device, all)| all.iter().map(|last| (address(*last), *device)));
        let found = Found::of(claims, 1..10);
        let addresses: Vec<[IpAddr; 1]> = (1..=endpoints).map(|last| [address(last)]).collect();
        let endpoints: Vec<&[IpAddr]> = addresses.iter().map(|one| &one[..]).collect();
        place(&endpoints, &found, word)
    }

    fn devices(places: &[Place]) -> Vec<Option<u32>> {
        places.iter().map(Place::device).collect()
    }

    fn word(pairs: &[(u8, u32)]) -> HashMap<IpAddr, u32> {
        pairs.iter().map(|(last, device)| (address(*last), *device)).collect()
    }

    const NOBODY: &[(u8, u32)] = &[];

    #[test]
    fn who_is_in_force_stays_whatever_others_claim() {
        let in_force = word(&[(1, 1), (2, 2), (3, 3)]);
        let word = Word { in_force, ..Word::default() };
        let all = vec![Some(1), Some(2), Some(3)];
        let claims: [&[(u32, &[u8])]; 5] = [
            &[(1, &[1]), (2, &[2]), (3, &[3])],
            // One takes another's, two swap, three in a ring, nobody has any.
            &[(1, &[1, 2]), (2, &[2]), (3, &[3])],
            &[(1, &[2]), (2, &[1]), (3, &[3])],
            &[(1, &[2]), (2, &[3]), (3, &[1])],
            &[],
        ];
        for claims in claims {
            assert_eq!(devices(&places(claims, 3, &word)), all, "{claims:?}");
        }
        // A new one's address that one of them has taken is the new one's.
        let claims: &[(u32, &[u8])] = &[(1, &[1, 4]), (2, &[2]), (3, &[3]), (4, &[4])];
        assert_eq!(devices(&places(claims, 4, &word)), [Some(1), Some(2), Some(3), Some(4)]);
        // And where that is not there yet, nobody's.
        let claims: &[(u32, &[u8])] = &[(1, &[1, 4]), (2, &[2]), (3, &[3])];
        assert!(matches!(places(claims, 4, &word)[3], Place::Missing(_)));
    }

    #[test]
    fn the_nodes_routes_are_believed_before_any_pod() {
        let word = Word { routed: word(&[(1, 1), (2, 2), (3, 3)]), ..Word::default() };
        for claims in [
            [(1, &[1, 2][..]), (2, &[1, 2]), (3, &[3])],
            [(1, &[2][..]), (2, &[1]), (3, &[3])],
            [(1, &[1, 2][..]), (2, &[2, 3]), (3, &[3, 1])],
        ] {
            assert_eq!(devices(&places(&claims, 3, &word)), [Some(1), Some(2), Some(3)], "{claims:?}");
        }
    }

    #[test]
    fn a_route_out_of_the_node_or_to_a_bridge_says_nothing() {
        let word = Word { routed: word(&[(1, 9), (2, 9)]), ..Word::default() };
        assert_eq!(devices(&places(&[(1, &[1]), (2, &[2])], 2, &word)), [Some(1), Some(2)]);
        assert!(matches!(places(&[], 1, &word)[0], Place::Missing(_)));
    }

    #[test]
    fn what_follows_is_found_and_what_does_not_is_closed() {
        let nothing = Word { in_force: word(NOBODY), ..Word::default() };
        // The first has one device alone, so that the other is left for the second.
        assert_eq!(devices(&places(&[(1, &[1, 2]), (2, &[2])], 2, &nothing)), [Some(1), Some(2)]);
        let closed = |claims: &[(u32, &[u8])], endpoints: u8, expected: &[&[u32]]| {
            let places = places(claims, endpoints, &nothing);
            let devices: Vec<&[u32]> = places
                .iter()
                .map(|place| match place {
                    Place::Contested(devices, _) => &devices[..],
                    other => panic!("{claims:?}: {other:?}"),
                })
                .collect();
            assert_eq!(devices, expected, "{claims:?}");
        };
        closed(&[(1, &[1, 2]), (2, &[1, 2])], 2, &[&[1, 2], &[1, 2]]);
        closed(&[(1, &[1, 2]), (2, &[2, 3]), (3, &[3, 1])], 3, &[&[1, 3], &[1, 2], &[2, 3]]);
        // Both are found behind the same.
        closed(&[(1, &[1, 2])], 2, &[&[1], &[1]]);
    }
}
