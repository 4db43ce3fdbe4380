//! Attacks by way of Services: backends that nobody may reach, addresses that lead elsewhere, changes in the middle.

mod common;

use common::service::{ONE, OTHER, Shop, TWO, address, below, everything, http1};
use common::{CLIENT, World, soon};
use sluice_policy::{ClassId, Reason};
use sluice_proxy::dial::Dialer;
use sluice_proxy::judge::Leg;
use sluice_proxy::limits::BACKEND_GROUPS;
use sluice_proxy::service::route::{Client, Target, Wish};
use sluice_proxy::state::{Said, View};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: cart\r\n\r\n")
}

/// What the rounds of the test below have in common: in the even ones the first backend is denied, else the second.
#[derive(Debug, Default)]
struct Rounds {
    /// The last whose swap has begun.
    begun: AtomicUsize,
    /// The last whose swap has returned.
    in_force: AtomicUsize,
    served: [AtomicUsize; 2],
    wrong: AtomicUsize,
}

impl Rounds {
    /// The backend with this place gets a request that was sent in a round.
    fn take(&self, place: usize, round: usize) {
        self.served[place].fetch_add(1, Ordering::SeqCst);
        // Sent after the swap that denies it, and no other has begun since.
        if round % 2 == place && self.begun.load(Ordering::SeqCst) == round {
            self.wrong.fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn backend(place: usize, rounds: Arc<Rounds>) -> (SocketAddr, Arc<AtomicUsize>) {
    let number = u8::try_from(place + 1).expect("few");
    let listener = TcpListener::bind(SocketAddr::new(address(number), 0)).await.expect("a port");
    let at = listener.local_addr().expect("bound");
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let rounds = rounds.clone();
            tokio::spawn(async move {
                let mut said = Vec::new();
                while let Ok(1..) = stream.read_buf(&mut said).await {
                    if !said.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    let text = String::from_utf8(std::mem::take(&mut said)).expect("text");
                    let round = text.split(['/', ' ']).nth(2).and_then(|round| round.parse().ok());
                    rounds.take(place, round.unwrap_or_else(|| panic!("no round: {text}")));
                    if stream.write_all(common::OK.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (at, accepted)
}

/// While policy moves the permission from one backend to the other and back under load, no request that is sent after a
/// swap has returned gets to the one that it denies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_not_allowed_gets_nothing_whatever_changes() {
    let rounds = Arc::new(Rounds::default());
    let (one, two) = (backend(0, rounds.clone()).await, backend(1, rounds.clone()).await);
    let mut shop = Shop::new(vec![(one.0, ONE), (two.0, TWO)], vec![below(&[TWO], "/")]);
    let world = Arc::new(shop.start().await);
    let over = Arc::new(AtomicBool::new(false));
    let client = async |world: Arc<World>, rounds: Arc<Rounds>, over: Arc<AtomicBool>| {
        while !over.load(Ordering::SeqCst) {
            let mut client = world.connect().await;
            for _ in 0..3 {
                client.send(get(&format!("/{}", rounds.in_force.load(Ordering::SeqCst)))).await;
                // A request in flight at a swap may be cut.
                if client.try_answer().await.is_err() {
                    break;
                }
            }
        }
    };
    let clients: Vec<_> =
        (0..4).map(|_| tokio::spawn(client(world.clone(), rounds.clone(), over.clone()))).collect();
    for round in 1..=100 {
        rounds.begun.store(round, Ordering::SeqCst);
        shop.egress = vec![below(&[if round % 2 == 0 { TWO } else { ONE }], "/")];
        shop.swap(&world);
        rounds.in_force.store(round, Ordering::SeqCst);
        let served = &rounds.served[1 - round % 2];
        let before = served.load(Ordering::SeqCst);
        soon("traffic", async {
            while served.load(Ordering::SeqCst) < before + 3 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(rounds.wrong.load(Ordering::SeqCst), 0, "round {round}");
    }
    over.store(true, Ordering::SeqCst);
    for client in clients {
        soon("a client", client).await.expect("no panic");
    }
    // Nothing is in flight any more. Round 100 denies the first: it is not so much as dialled.
    let before = one.1.load(Ordering::SeqCst);
    for _ in 0..20 {
        world.connect().await.ask(get("/100")).await;
    }
    assert_eq!(one.1.load(Ordering::SeqCst), before);
}

/// A tenant's `EndpointSlice` names another Service's address: whoever stands behind that was not judged.
#[tokio::test]
async fn a_backend_that_is_a_service_itself_is_none() {
    let victim = http1(1).await;
    let own = http1(2).await;
    let mut shop = Shop::new(vec![(victim.at, ONE), (own.at, ONE)], vec![everything(&[ONE])]);
    shop.others = vec![(victim.at, SocketAddr::new(address(9), 80))];
    let world = shop.start().await;
    for _ in 0..20 {
        assert!(world.connect().await.ask(get("/")).await.ends_with('2'));
    }
    assert_eq!(victim.accepted(), 0);
}

/// A Service that claims a pod's address, as `externalIPs` lets it, takes nothing that is meant for the pod.
#[tokio::test]
async fn a_service_that_claims_an_endpoints_address_gets_nothing() {
    let (pod, thief) = (http1(1).await, http1(2).await);
    let mut shop = Shop::new(vec![(pod.at, ONE), (thief.at, TWO)], vec![everything(&[ONE, TWO])]);
    shop.local = vec![0];
    shop.ingress = vec![everything(&[ClassId(1)])];
    shop.exists = false;
    shop.others = vec![(pod.at, thief.at)];
    let world = shop.start().await;
    let view = world.proxy.state.view();
    assert!(!view.is_service(pod.at) && view.vip(pod.at).is_none());
    // The same claim of an address that is nobody's here holds.
    shop.local.clear();
    shop.swap(&world);
    let view = world.proxy.state.view();
    assert!(view.is_service(pod.at) && view.vip(pod.at).is_some());
}

/// In the proxy's own namespace these would be the proxy, or everybody.
#[tokio::test]
async fn addresses_that_are_no_servers_are_not_dialled() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    for address in ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"] {
        let destination = SocketAddr::new(address.parse().expect("an address"), port);
        let target = Target::direct(Leg { source: SocketAddr::new(CLIENT, 1), destination });
        let error = Dialer::Transparent.dial(&target).await.expect_err(address);
        assert_eq!(error.kind(), std::io::ErrorKind::AddrNotAvailable, "{address}: {error}");
    }
}

/// Backends that each are a class of their own cost a bounded number of walks, and those beyond get nothing.
#[tokio::test]
async fn walks_for_one_request_are_bounded() {
    let many = u16::try_from(2 * BACKEND_GROUPS).expect("few");
    let all: Vec<_> = (0..many).map(|place| (SocketAddr::new(address(1), 1000 + place), OTHER)).collect();
    let mut shop = Shop::new(all, vec![everything(&[ONE])]);
    let world = shop.start().await;
    let vip = world.proxy.state.view().vip(shop.vip).expect("a Service");
    assert_eq!(vip.groups().len(), BACKEND_GROUPS);
    // A thousand that no rule tells apart are one.
    let alike = (0..1000_u32).map(|place| {
        let [_, _, high, low] = place.to_be_bytes();
        (SocketAddr::new([127, 1, high, low].into(), 80), ONE)
    });
    shop.backends = alike.collect();
    shop.serving = (0..1000).collect();
    shop.swap(&world);
    let vip = world.proxy.state.view().vip(shop.vip).expect("a Service");
    assert_eq!((vip.groups().len(), vip.groups()[0].len()), (1, 1000));
    // The largest groups are the ones that are kept.
    let first = (SocketAddr::new(address(1), 1), OTHER);
    shop.backends = (0..many).map(|place| (SocketAddr::new(address(2), 1000 + place), OTHER)).collect();
    shop.backends.insert(0, first);
    shop.backends.extend((0..10).map(|place| (SocketAddr::new(address(100 + place), 80), ONE)));
    shop.serving = (0..shop.backends.len()).collect();
    shop.swap(&world);
    let vip = world.proxy.state.view().vip(shop.vip).expect("a Service");
    assert_eq!(vip.groups().len(), BACKEND_GROUPS);
    assert!(vip.groups().iter().any(|group| group.len() == 10), "the largest is among them");
    assert!(vip.group_of(SocketAddr::new(address(105), 80)).is_some());
}

/// A swap between the judging and the registering would not find the flow: the choice is made again.
#[tokio::test]
async fn a_choice_that_a_swap_overtakes_is_made_again() {
    let backends = [1, 2].map(|number| SocketAddr::new(address(number), 80));
    let mut shop = Shop::new(vec![(backends[0], ONE), (backends[1], TWO)], vec![everything(&[ONE])]);
    let world = shop.start().await;
    let leg = Leg { source: SocketAddr::new(CLIENT, 1), destination: shop.vip };
    let client = Client::of(&world.proxy.state.view(), leg);
    shop.egress = vec![everything(&[TWO])];
    let next = shop.snapshot();
    let swapped = AtomicBool::new(false);
    let judge = |view: &View, leg: &Leg| {
        let judged = Said::Raw.judge(view, leg);
        if !judged.is_denied() && !swapped.swap(true, Ordering::SeqCst) {
            assert_eq!(leg.destination, backends[0], "the old snapshot allowed the first");
            assert_eq!(world.proxy.state.swap(next.clone()), 0, "the flow is not there yet");
        }
        judged
    };
    let route = world.proxy.route(&client, &Said::Raw, Wish::ANY, judge);
    assert!(swapped.load(Ordering::SeqCst) && !route.is_denied());
    assert_eq!(route.target.leg.destination, backends[1]);
    assert_eq!(world.proxy.state.open_flows(), 1, "what was given up is not open");
    // One that changes for ever is refused.
    let restless = |view: &View, leg: &Leg| {
        world.proxy.state.swap(next.clone());
        Said::Raw.judge(view, leg)
    };
    let route = world.proxy.route(&client, &Said::Raw, Wish::ANY, restless);
    assert_eq!(route.judged.verdict.deciding().reason, Reason::Limit);
}
