//! The demo's world: two nodes, five pods, the product's processes, and the examples with the pods' addresses.
//!
//! The policies are copied as they are; only what an API server would have written (nodes, addresses) is filled
//! in. Called by the demo.

use crate::cluster::Cluster;
use crate::demo::{Options, say, step};
use crate::engine::Engine;
use crate::manifests;
use crate::world::{NodeSpec, PodSpec, Process, World};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// The pods, with their nodes: the frontend reaches the cart across nodes, billing on the same one.
const PODS: [(&str, &str); 5] = [
    ("node-a", "shop/frontend"),
    ("node-b", "shop/cart"),
    ("node-b", "shop/billing"),
    ("node-a", "shop/intruder"),
    ("node-a", "outside/legacy"),
];

/// Who is where, for people.
const MAP: [(&str, &str); 2] = [
    ("node-a", "frontend · intruder · legacy (outside the dataplane)"),
    ("node-b", "cart (HTTP on 8080, gRPC on 9090) · billing"),
];

/// The stage, set.
#[derive(Debug)]
pub struct Stage {
    _peers: Vec<Process>,
    /// The cluster.
    pub cluster: Cluster,
}

impl Stage {
    /// Sets it.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn build(options: &Options) -> Result<Self> {
        let style = options.style;
        say("Setting up, in network namespaces of its own:");
        let world = step(style, "two nodes and five pods", || {
            let nodes = [NodeSpec::routed("node-a"), NodeSpec::routed("node-b")];
            let builder = nodes.into_iter().fold(World::builder(), crate::WorldBuilder::node);
            PODS.iter().fold(builder, |builder, (node, pod)| builder.pod(PodSpec::new(*node, *pod))).build()
        })?;
        let peers = step(style, "the shop's servers: HTTP/1.1, HTTP/2 and gRPC", || {
            PODS.iter().map(|(_, pod)| serve(&world, pod)).collect::<Result<Vec<Process>>>()
        })?;
        let mut cluster =
            step(style, "sluice-control, and a sluice-proxy on each node", || Cluster::start(world, &[]))?;
        let what = format!("policies of {} in force on both nodes", options.examples.display());
        step(style, &what, || {
            copy(&options.examples, &cluster)?;
            cluster.wait_in_force("L7NetworkPolicy")
        })?;
        say("");
        for (node, pods) in MAP {
            say(&format!("  {}  {pods}", style.dim(node)));
        }
        say("");
        Ok(Self { _peers: peers, cluster })
    }

    /// The engine over what is in the directory now.
    ///
    /// # Errors
    /// When the manifests have errors.
    pub fn engine(&self) -> Result<Engine> {
        Engine::of_directory(&self.cluster.manifests())
    }

    /// Changes a policy's file as an editor would. Each replacement must be found.
    ///
    /// # Errors
    /// When the file does not have the text.
    pub fn edit(&self, file: &str, from: &str, to: &str) -> Result<()> {
        let path = self.cluster.manifests().join(file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        ensure!(text.contains(from), "{} has no line with {from:?}: the demo cannot edit it", path.display());
        manifests::replace(&path, &text.replace(from, to))
    }
}

fn serve(world: &World, pod: &str) -> Result<Process> {
    world.serve(pod, &["--http", "[::]:8080", "--http", "[::]:9090", "--udp", "[::]:5353"])
}

/// Copies the examples; pods get the nodes and addresses that they really have.
fn copy(examples: &Path, cluster: &Cluster) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(examples)
        .with_context(|| format!("{} is not there: run the demo in a checkout", examples.display()))?
        .collect::<std::io::Result<_>>()?;
    // As control reads a directory: a README beside the manifests is none.
    entries.retain(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let manifest = [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending));
        manifest && !name.starts_with('.')
    });
    entries.sort_by_key(fs::DirEntry::file_name);
    let nodes: Vec<Value> = cluster.world.nodes.iter().map(manifests::node).collect();
    let directory = cluster.manifests();
    manifests::write(&directory.join("nodes.yaml"), &nodes)?;
    for entry in entries {
        let text = fs::read_to_string(entry.path()).with_context(|| entry.path().display().to_string())?;
        let target = directory.join(entry.file_name());
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).with_context(|| entry.path().display().to_string())?;
        if documents.iter().any(|document| document["kind"] == "Pod") {
            let placed =
                documents.into_iter().map(|document| place(document, cluster)).collect::<Result<Vec<_>>>()?;
            manifests::write(&target, &placed)?;
        } else {
            manifests::replace(&target, &text)?;
        }
    }
    Ok(())
}

/// A pod's manifest with its real node and addresses.
fn place(mut document: Value, cluster: &Cluster) -> Result<Value> {
    if document["kind"] != "Pod" {
        return Ok(document);
    }
    let text = |value: &Value| value.as_str().unwrap_or("default").to_owned();
    let name =
        format!("{}/{}", text(&document["metadata"]["namespace"]), text(&document["metadata"]["name"]));
    let pod = cluster.world.pods.iter().find(|pod| pod.name == name);
    let pod = pod.with_context(|| format!("the examples have a pod {name}, and the demo's world has not"))?;
    document["spec"]["nodeName"] = pod.node.clone().into();
    document["status"] = manifests::status(pod.v4, pod.v6);
    Ok(document)
}
