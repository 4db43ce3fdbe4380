//! Services and `EndpointSlices`: what a node translates, and who stands behind each port, as kube-proxy has it.

#![allow(clippy::needless_pass_by_value, reason = "test helpers take what json! makes")]
#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use serde_json::{Value, json};
use sluice_compile::{Compiled, Compiler, NodeScope, Options, Rollout};
use sluice_crd::{Category, Problem};
use sluice_policy::{Protocol, Services};

fn service(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

fn web(extra: Value) -> Value {
    let mut spec = json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
        "ports": [{"name": "http", "port": 80, "targetPort": "web"}]});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    service("shop", "web", spec)
}

fn slice(service: &str, name: &str, ports: Value, endpoints: Value) -> Value {
    let family = if endpoints[0]["addresses"][0].as_str().is_some_and(|text| text.contains(':')) {
        "IPv6"
    } else {
        "IPv4"
    };
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "ports": ports, "endpoints": endpoints})
}

fn http(endpoints: Value) -> Value {
    slice("web", "web-1", json!([{"name": "http", "port": 8080, "protocol": "TCP"}]), endpoints)
}

fn compile(compiler: &mut Compiler, objects: &[Value], node: &str) -> (Services, Vec<Problem>) {
    let loaded = sluice_crd::load_value(objects);
    assert!(loaded.problems.is_empty(), "{}", loaded.problems[0]);
    let node = if node.is_empty() { NodeScope::All } else { NodeScope::Named(node.into()) };
    let options = Options { node, rollout: Rollout::AsIfEnforced, generation: 1 };
    let Compiled { snapshot, problems, .. } = compiler.compile(&loaded.objects, &options);
    (snapshot.services, problems)
}

fn on(node: &str, objects: &[Value]) -> (Services, Vec<Problem>) {
    compile(&mut Compiler::new(), objects, node)
}

/// The backends of a port, as `address:port`, without problems.
fn behind(node: &str, objects: &[Value], address: &str, port: u16) -> Option<Vec<String>> {
    let (services, problems) = on(node, objects);
    assert!(problems.is_empty(), "{}", problems[0]);
    text(&services, address, port)
}

fn text(services: &Services, address: &str, port: u16) -> Option<Vec<String>> {
    let address = address.parse().unwrap();
    let (_, port) = services.at(address, Protocol::Tcp, port)?;
    let backends = port.of_family(address);
    Some(backends.map(|b| std::net::SocketAddr::new(b.address, b.port).to_string()).collect())
}

fn some(backends: &[&str]) -> Option<Vec<String>> {
    Some(backends.iter().map(ToString::to_string).collect())
}

#[test]
fn slices_say_which_port_is_meant_by_its_name_and_protocol() {
    let ports = json!([{"name": "http", "port": 80, "targetPort": "web"}, {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]);
    let objects = [
        web(json!({"ports": ports})),
        // One pod has its named port on another number than the others: another slice.
        http(json!([{"addresses": ["10.1.0.1"]}, {"addresses": ["10.1.0.2"]}])),
        slice("web", "web-2", json!([{"name": "http", "port": 9090}]), json!([{"addresses": ["10.1.0.3"]}])),
        slice(
            "web",
            "web-3",
            json!([{"name": "dns", "port": 5353, "protocol": "UDP"}, {"name": "dns-tcp", "port": 5354}]),
            json!([{"addresses": ["10.1.0.4"]}]),
        ),
        // Of another Service, and of none.
        slice("cart", "cart-1", json!([{"name": "http", "port": 1}]), json!([{"addresses": ["10.1.0.9"]}])),
    ];
    let (services, problems) = on("n", &objects);
    assert!(problems.is_empty());
    assert_eq!(text(&services, "10.96.0.10", 80), some(&["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:9090"]));
    assert_eq!(text(&services, "10.96.0.10", 53), some(&["10.1.0.4:5354"]));
    let dns = services.at("10.96.0.10".parse().unwrap(), Protocol::Udp, 53).unwrap().1;
    assert_eq!((dns.backends.len(), dns.backends[0].port), (1, 5353));
    assert_eq!(text(&services, "10.96.0.10", 81), None);
    assert_eq!(services.len(), 1);
}

#[test]
fn ready_endpoints_or_where_there_is_none_those_that_serve_while_they_end() {
    let ready = json!({"addresses": ["10.1.0.1"], "conditions": {"ready": true}});
    let unsaid = json!({"addresses": ["10.1.0.2"]});
    let unready = json!({"addresses": ["10.1.0.3"], "conditions": {"ready": false}});
    let starting = json!({"addresses": ["10.1.0.4"], "conditions": {"ready": false, "serving": true}});
    let ending = json!({"addresses": ["10.1.0.5"], "conditions": {"ready": false, "serving": true, "terminating": true}});
    let failing = json!({"addresses": ["10.1.0.6"], "conditions": {"ready": false, "serving": false, "terminating": true}});
    // publishNotReadyAddresses: the slice says ready while it ends.
    let published = json!({"addresses": ["10.1.0.7"], "conditions": {"ready": true, "serving": true, "terminating": true}});
    let of = |endpoints: &[&Value]| behind("n", &[web(json!({})), http(json!(endpoints))], "10.96.0.10", 80);
    assert_eq!(of(&[&ready, &unsaid, &unready, &ending]), some(&["10.1.0.1:8080", "10.1.0.2:8080"]));
    assert_eq!(of(&[&unready, &starting, &ending, &failing]), some(&["10.1.0.5:8080"]));
    assert_eq!(of(&[&ending, &published]), some(&["10.1.0.7:8080"]));
    assert_eq!(of(&[&unready, &failing]), some(&[]));
    assert_eq!(behind("n", &[web(json!({}))], "10.96.0.10", 80), some(&[]), "no slice at all");
}

#[test]
fn internal_traffic_stays_on_the_node_where_it_must_and_external_does_not() {
    let local = json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "type": "LoadBalancer",
        "externalIPs": ["203.0.113.7"]});
    let objects = [
        web(local),
        http(
            json!([{"addresses": ["10.1.0.1"], "nodeName": "a"}, {"addresses": ["10.1.0.2"], "nodeName": "b"},
            {"addresses": ["10.1.0.3"]},
            {"addresses": ["10.1.0.4"], "nodeName": "c", "conditions": {"ready": false, "serving": true, "terminating": true}}]),
        ),
    ];
    let own = |node| behind(node, &objects, "10.96.0.10", 80);
    assert_eq!(own("a"), some(&["10.1.0.1:8080"]));
    assert_eq!(own("b"), some(&["10.1.0.2:8080"]));
    // On this node nobody is ready, whoever is elsewhere.
    assert_eq!(own("c"), some(&["10.1.0.4:8080"]));
    assert_eq!(own("d"), some(&[]));
    let everybody = ["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080"];
    assert_eq!(own(""), some(&everybody));
    assert_eq!(behind("a", &objects, "203.0.113.7", 80), some(&everybody));
}

#[test]
fn every_address_that_a_node_translates_and_no_other() {
    let dual = json!({"clusterIPs": ["10.96.0.10", "fd00:96::a"], "externalIPs": ["203.0.113.7", "10.96.0.10"],
        "type": "LoadBalancer", "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    let mut balanced = web(dual);
    balanced["status"] = json!({"loadBalancer": {"ingress": [
        {"ip": "203.0.113.8"}, {"ip": "203.0.113.9", "ipMode": "Proxy"}, {"hostname": "lb.example"}]}});
    let objects = [
        balanced,
        http(json!([{"addresses": ["10.1.0.1"]}])),
        slice("web", "web-6", json!([{"name": "http", "port": 8080}]), json!([{"addresses": ["fd00:1::1"]}])),
        service(
            "shop",
            "headless",
            json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]}),
        ),
        service(
            "shop",
            "name",
            json!({"type": "ExternalName", "externalName": "example.com", "ports": [{"port": 80}]}),
        ),
        service("shop", "pending", json!({"ports": [{"port": 80}], "externalIPs": ["203.0.113.99"]})),
    ];
    let (services, problems) = on("n", &objects);
    assert!(problems.is_empty(), "{}", problems[0]);
    let mut addresses: Vec<_> = services.keys().map(|(address, ..)| address.to_string()).collect();
    addresses.sort();
    assert_eq!(addresses, ["10.96.0.10", "203.0.113.7", "203.0.113.8", "fd00:96::a"]);
    assert_eq!(text(&services, "10.96.0.10", 80), some(&["10.1.0.1:8080"]));
    assert_eq!(text(&services, "fd00:96::a", 80), some(&["[fd00:1::1]:8080"]));
    assert_eq!(text(&services, "203.0.113.8", 80), some(&["10.1.0.1:8080"]));
    assert!(services.iter().all(|service| service.affinity == Some(60)));
    let usual = on("n", &[web(json!({"sessionAffinity": "ClientIP"}))]).0;
    assert_eq!(usual[0].affinity, Some(10_800));
    assert_eq!(on("n", &[web(json!({"sessionAffinity": "None"}))]).0[0].affinity, None);
}

/// Whoever may write a Service may write any address into `externalIPs` (CVE-2020-8554).
#[test]
fn nobody_takes_the_address_of_another_service() {
    let objects = [
        service(
            "aaa",
            "trap",
            json!({"clusterIP": "10.96.0.66", "externalIPs": ["10.96.0.10"], "ports": [{"port": 80}]}),
        ),
        web(json!({})),
        http(json!([{"addresses": ["10.1.0.1"]}])),
    ];
    let (services, problems) = on("n", &objects);
    let vip = "10.96.0.10".parse().unwrap();
    assert_eq!(&*services.at(vip, Protocol::Tcp, 80).unwrap().0.name, "web");
    let claims: Vec<_> =
        services.claims(vip, Protocol::Tcp, 80).map(|(service, _)| service.name.to_string()).collect();
    assert_eq!(claims, ["web", "trap"]);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].object.as_deref(), Some("Service/aaa/trap"));
    assert_eq!(problems[0].category, Category::Cluster);
    assert!(problems[0].reason.contains("shop/web"), "{}", problems[0]);
}

#[test]
fn what_nobody_can_be_sent_to_is_told_with_its_place() {
    let objects = [
        web(
            json!({"externalIPs": ["somewhere"], "ports": [{"name": "http", "port": 80}, {"name": "no", "port": 99999},
            {"name": "icmp", "port": 7, "protocol": "ICMP"}]}),
        ),
        http(json!([{"addresses": ["10.1.0.1"]}, {"addresses": ["127.0.0.1"]}, {"addresses": ["fd00::1"]},
            {"addresses": ["host.example"]}, {"addresses": ["169.254.169.254"]}])),
        slice(
            "web",
            "web-2",
            json!([{"name": "http"}, {"name": "http", "port": 70000}]),
            json!([{"addresses": ["10.1.0.2"]}]),
        ),
        // Nobody asks a Service without an address for its slices.
        slice("headless", "h-1", json!([{"port": 0}]), json!([{"addresses": ["nonsense"]}])),
    ];
    let (services, problems) = on("n", &objects);
    assert_eq!(text(&services, "10.96.0.10", 80), some(&["10.1.0.1:8080"]));
    let places: Vec<String> =
        problems.iter().map(|p| format!("{} {}", p.object.as_deref().unwrap_or_default(), p.path)).collect();
    let expected = [
        "EndpointSlice/shop/web-1 endpoints[1].addresses",
        "EndpointSlice/shop/web-1 endpoints[2].addresses",
        "EndpointSlice/shop/web-1 endpoints[3].addresses",
        "EndpointSlice/shop/web-1 endpoints[4].addresses",
        "EndpointSlice/shop/web-2 ports[0]",
        "EndpointSlice/shop/web-2 ports[1]",
        "Service/shop/web spec.externalIPs",
        "Service/shop/web spec.ports[1]",
        "Service/shop/web spec.ports[2]",
    ];
    assert_eq!(places, expected);
}

#[test]
fn services_that_stay_are_not_made_again() {
    let mut compiler = Compiler::new();
    let mut objects = vec![web(json!({})), http(json!([{"addresses": ["10.1.0.1"]}]))];
    let (first, _) = compile(&mut compiler, &objects, "a");
    let (again, _) = compile(&mut compiler, &objects, "a");
    assert!(std::ptr::eq(&*first, &*again), "nothing has changed");
    let (other, _) = compile(&mut compiler, &objects, "b");
    assert!(std::ptr::eq(&*first, &*other), "nothing depends on the node");
    objects[1] = http(json!([{"addresses": ["10.1.0.2"]}]));
    let (changed, _) = compile(&mut compiler, &objects, "a");
    assert_eq!(text(&changed, "10.96.0.10", 80), some(&["10.1.0.2:8080"]));
    objects[0] = web(json!({"internalTrafficPolicy": "Local"}));
    let (local, _) = compile(&mut compiler, &objects, "a");
    assert_eq!(text(&local, "10.96.0.10", 80), some(&[]));
    let (again, _) = compile(&mut compiler, &objects, "a");
    assert!(std::ptr::eq(&*local, &*again), "nothing has changed on this node");
}

mod asked {
    use super::{Value, http, json, slice, web};
    use sluice_compile::Rollout;
    use sluice_compile::query::{Cluster, Port, Query, Said};
    use sluice_policy::{Decision, Protocol, Reason};

    fn pod(name: &str, app: &str, ip: &str, node: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": name, "labels": {"app": app}},
            "spec": {"nodeName": node, "containers": []}, "status": {"podIP": ip}})
    }

    /// The client may reach `web` on 8080 with TCP and UDP, and with GET alone on 9090.
    fn cluster(endpoints: &[&str], extra: Value, more: &[Value]) -> Cluster {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|ip| json!({"addresses": [ip], "nodeName": format!("n{}", &ip[7..])}))
            .collect();
        let mut objects = vec![
            pod("client", "client", "10.1.0.9", "n1"),
            pod("web-1", "web", "10.1.0.1", "n1"),
            pod("web-2", "web", "10.1.0.2", "n2"),
            pod("old-3", "old", "10.1.0.3", "n3"),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": "shop", "name": "client"},
                "spec": {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
                    "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "web"}}}],
                        "ports": [{"port": 8080}, {"port": 8080, "protocol": "UDP"}]}]}}),
            web(extra),
            http(json!(endpoints)),
            slice(
                "web",
                "web-dns",
                json!([{"name": "dns", "port": 8080, "protocol": "UDP"}]),
                json!(endpoints),
            ),
        ];
        objects.extend_from_slice(more);
        let loaded = sluice_crd::load_value(&objects);
        assert!(loaded.problems.is_empty(), "{}", loaded.problems[0]);
        Cluster::new(&loaded.objects, Rollout::AsIfEnforced)
    }

    fn query(protocol: Protocol, port: u16) -> Query {
        Query {
            from: "shop/client".into(),
            to: "10.96.0.10".into(),
            protocol,
            port: Port::Number(port),
            said: Said::Nothing,
        }
    }

    fn ports() -> Value {
        json!({"ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]})
    }

    /// The decision, and the backend that decides.
    fn asked(cluster: &Cluster, query: &Query) -> (Decision, Option<String>) {
        let verdict = cluster.ask(query).unwrap();
        assert_eq!(cluster.trace(query).unwrap().verdict, verdict);
        let behind = cluster.behind(query).unwrap().unwrap();
        assert_eq!(behind.service, "shop/web");
        (verdict.decision(), behind.deciding().map(|judged| judged.backend.address.to_string()))
    }

    #[test]
    fn a_service_is_asked_for_by_its_backends() {
        let tcp = query(Protocol::Tcp, 80);
        let udp = query(Protocol::Udp, 53);
        let (allow, deny) = (Decision::Allow, Decision::Deny);
        let some = |ip: &str| Some(ip.to_owned());
        let all = cluster(&["10.1.0.1", "10.1.0.2"], ports(), &[]);
        assert_eq!(asked(&all, &tcp), (allow, some("10.1.0.1")));
        assert_eq!(asked(&all, &udp), (allow, some("10.1.0.1")));
        // Of TCP the proxy chooses; of UDP nobody can say whom it will reach.
        let mixed = cluster(&["10.1.0.1", "10.1.0.3"], ports(), &[]);
        assert_eq!(asked(&mixed, &tcp), (allow, some("10.1.0.1")));
        assert_eq!(asked(&mixed, &udp), (deny, some("10.1.0.3")));
        let none = cluster(&["10.1.0.3"], ports(), &[]);
        assert_eq!(asked(&none, &tcp), (deny, some("10.1.0.3")));
        let empty = cluster(&[], ports(), &[]);
        assert_eq!(asked(&empty, &tcp), (deny, None));
        // Another port of the address is an address as any.
        assert!(all.behind(&query(Protocol::Tcp, 81)).unwrap().is_none());
        assert_eq!(all.ask(&query(Protocol::Tcp, 81)).unwrap().decision(), deny);
    }

    #[test]
    fn what_a_chosen_backend_refuses_itself_is_refused() {
        let closed = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "shop", "name": "web-2"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}});
        let cluster = cluster(&["10.1.0.1", "10.1.0.3"], ports(), &[closed]);
        let verdict = cluster.ask(&query(Protocol::Tcp, 80)).unwrap();
        assert_eq!((verdict.egress.decision, verdict.ingress.decision), (Decision::Allow, Decision::Deny));
    }

    #[test]
    fn local_traffic_is_asked_for_from_the_clients_node() {
        let mut spec = ports();
        spec["internalTrafficPolicy"] = json!("Local");
        let here = cluster(&["10.1.0.1", "10.1.0.3"], spec.clone(), &[]);
        assert_eq!(asked(&here, &query(Protocol::Udp, 53)), (Decision::Allow, Some("10.1.0.1".into())));
        let elsewhere = cluster(&["10.1.0.2"], spec, &[]);
        assert_eq!(asked(&elsewhere, &query(Protocol::Tcp, 80)), (Decision::Deny, None));
    }

    #[test]
    fn nobody_there_is_the_nodes_to_refuse_where_nothing_is_judged() {
        let cluster = cluster(&[], ports(), &[]);
        let free = Query { from: "shop/web-1".into(), ..query(Protocol::Tcp, 80) };
        assert_eq!(asked(&cluster, &free), (Decision::Allow, None));
        let judged = cluster.ask(&query(Protocol::Tcp, 80)).unwrap();
        assert_eq!(judged.egress.reason, Reason::IdentityMissing);
    }

    /// A Service whose only backend is its own address: whoever asks gets an answer.
    #[test]
    fn a_service_of_itself_is_asked_once() {
        let trap = super::service(
            "shop",
            "trap",
            json!({"clusterIP": "10.96.0.66", "externalIPs": ["10.1.0.3"],
            "ports": [{"port": 7}]}),
        );
        let own = slice("trap", "trap-1", json!([{"port": 7}]), json!([{"addresses": ["10.1.0.3"]}]));
        let cluster = cluster(&["10.1.0.1"], ports(), &[trap, own]);
        let query = Query { to: "10.1.0.3".into(), ..query(Protocol::Tcp, 7) };
        assert_eq!(cluster.trace(&query).unwrap().verdict.decision(), Decision::Deny);
        assert!(!cluster.judged_by_request(&query));
    }
}
