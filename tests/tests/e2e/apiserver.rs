//! From `kubectl apply` to a verdict on another node: a real API server, control under the role that we ship, real
//! nodes, real packets.

use crate::NEEDS;
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use sluice_tests::apiserver::{ApiServer, CONTROL_ACCOUNT, NAMESPACE};
use sluice_tests::cluster::{Cluster, IN_FORCE};
use sluice_tests::harness::{Need, test};
use sluice_tests::manifests;
use sluice_tests::peer::Ask;
use sluice_tests::scene::{CART, PODS, Scene};
use sluice_tests::world::{Family, Process, eventually};
use std::time::Duration;

/// What is not answered by then is dropped.
const DROPPED: Duration = Duration::from_millis(700);
/// What is answered is answered far sooner.
const ANSWERED: Duration = Duration::from_secs(5);

/// The database is the billing service's alone, for layer K.
const DATABASE: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: database, namespace: shop }
spec:
  podSelector: { matchLabels: { app: cart } }
  ingress:
  - from: [ { podSelector: { matchLabels: { app: billing } } } ]
    ports: [ { port: 5432 } ]
";

pub(crate) fn tests() -> Vec<Trial> {
    let needs = [&NEEDS[..], &[Need::ApiServer]].concat();
    vec![test("apiserver: kubectl apply is a verdict on another node", needs, applied)]
}

/// The shop's nodes and pods, as kubelets would tell an API server of them.
fn populate(server: &ApiServer, scene: &Scene) -> Result<()> {
    for node in &scene.world().nodes {
        server.apply_with_status(&manifests::node(node))?;
    }
    for object in scene.objects() {
        server.apply_with_status(&object)?;
    }
    Ok(())
}

fn applied() -> Result<()> {
    let server = ApiServer::start()?;
    server.install()?;
    let world = Scene::build()?;
    let serve = |(_, pod): &(_, &str)| world.serve(pod, &["--http", "[::]:8080", "--tcp", "[::]:5432"]);
    let servers = PODS.iter().map(serve).collect::<Result<Vec<Process>>>()?;
    let kubeconfig = server.account(NAMESPACE, CONTROL_ACCOUNT)?;
    let mut scene = Scene { servers, cluster: Cluster::over(world, &[], &kubeconfig)? };
    populate(&server, &scene)?;
    server.apply(CART)?;
    scene.cluster.wait_in_force("L7NetworkPolicy/shop/cart")?;

    let cart = scene.address("shop/cart", Family::V4, 8080);
    let asks =
        |from: &str, method: &str, path: &str| scene.status(from, cart, Ask::new(method, path), ANSWERED);
    ensure!(asks("shop/frontend", "GET", "/items/1")? == Some(200), "what the policy allows");
    ensure!(asks("shop/frontend", "GET", "/admin")? == Some(403), "what it does not");
    let dropped = scene.status("shop/intruder", cart, Ask::new("GET", "/items/1"), DROPPED)?;
    ensure!(dropped.is_none(), "whom it does not: {dropped:?}");

    // In the kernel of the other node: no request is read for it.
    let database = scene.address("shop/cart", Family::V4, 5432);
    ensure!(scene.tcp("shop/frontend", database, ANSWERED)?, "the frontend reaches the database");
    server.apply(DATABASE)?;
    eventually("the kernel refuses the frontend", IN_FORCE, || {
        Ok(!scene.tcp("shop/frontend", database, DROPPED)?)
    })?;
    server.kubectl(&["delete", "networkpolicy", "database", "-n", "shop"])?;
    eventually("and no longer", IN_FORCE, || scene.tcp("shop/frontend", database, DROPPED))?;

    // A change of one field, of a label, and of the namespace.
    let patch =
        r#"[{"op": "replace", "path": "/spec/ingress/0/rules/http/0/path/value", "value": "/admin"}]"#;
    server.kubectl(&["patch", "l7np", "cart", "-n", "shop", "--type=json", "-p", patch])?;
    eventually("the new path is the one that is allowed", IN_FORCE, || {
        Ok(asks("shop/frontend", "GET", "/admin")? == Some(200)
            && asks("shop/frontend", "GET", "/items/1")? == Some(403))
    })?;
    server.kubectl(&["label", "pod", "intruder", "-n", "shop", "app=frontend", "--overwrite"])?;
    eventually("a pod is who its labels say", IN_FORCE, || {
        Ok(scene.status("shop/intruder", cart, Ask::new("GET", "/admin"), DROPPED)? == Some(200))
    })?;
    server.kubectl(&["label", "namespace", "shop", "sluice.dev/enforcement=audit"])?;
    eventually("nothing is refused in a namespace that is audited", IN_FORCE, || {
        Ok(asks("shop/frontend", "DELETE", "/items/1")? == Some(200))
    })?;
    Ok(())
}
