//! What a node hears from its region, and what the log hears of the node.

use std::time::Duration;

use crate::support::{Node, PATIENCE, World, goal_key, request_key};
use longshore_artifact::pack_key;
use longshore_schemas::{
    PackId,
    events::{ArtifactRequest, FleetReport, GoalVersion, NodeStatus, RegionReported, ReplicaStatus, Request},
    stream::{FromNode, FromRegion, NodeReport, Ticket},
};
use longshore_signing::goal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const BEAT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// The first report of the region that has this.
async fn reported<T>(world: &World, see: impl Fn(&RegionReported) -> Option<T>) -> T {
    let see = |request: Request<FleetReport>| {
        assert!(
            request.report.expect("reports have an order").sender.starts_with("region/eu/"),
            "it is a process of eu"
        );
        match request.event {
            FleetReport::RegionReported(report) => see(&report),
            FleetReport::CohortAnnounced(_) => None,
        }
    };
    world.until(see).await
}

#[tokio::test(flavor = "multi_thread")]
async fn goals_come_newest_only_and_never_lower() {
    let world = World::new().await;
    for revision in 1..=5 {
        world.goal("web", revision).await;
    }
    world.goal("api", 3).await;
    let (region, shutdown) = world.region(BEAT).await;
    let mut node = Node::join(&world, &region, "n1", &[("api", 3)]).await;
    let mut versions = Vec::new();
    for revision in [6, 7] {
        if let Some(FromRegion::Goal(envelope)) = node.hear().await {
            let goal = goal::verify(&envelope, &(*goal_key(1).public()).into()).expect("signed");
            versions.push(format!("{} {}", goal.service, goal.version));
        }
        world.goal("web", 5).await;
        world.goal("web", revision).await;
    }
    assert_eq!(versions, ["web 5.1", "web 6.1"], "the api's goal is one that the node has");
    shutdown.cancel();
    region.stopped().await;
}

/// Whoever else can write to the topic keeps no node from its goal.
#[tokio::test(flavor = "multi_thread")]
async fn goals_that_nobody_trusted_signed_are_not_passed_on() {
    let world = World::new().await;
    world.goal_by("web", 9, None).await;
    world.goal_by("web", 8, Some(&goal_key(2))).await;
    world.goal("web", 1).await;
    let (region, shutdown) = world.region(BEAT).await;
    let mut node = Node::join(&world, &region, "n1", &[]).await;
    let mut heard = Vec::new();
    for forger in [None, Some(goal_key(2))] {
        let Some(FromRegion::Goal(envelope)) = node.hear().await else { panic!("a goal") };
        heard.push(goal::read(&envelope).expect("a goal").version.revision);
        world.goal_by("web", 10, forger.as_ref()).await;
        world.goal("web", 1 + heard.len() as u64).await;
    }
    assert_eq!(heard, [1, 2]);
    shutdown.cancel();
    region.stopped().await;
}

/// Only a process of the region can say that a node has gone to it.
#[tokio::test(flavor = "multi_thread")]
async fn reports_of_other_processes_are_believed_if_they_are_signed() {
    let world = World::new().await;
    let (region, shutdown) = world.region(BEAT).await;
    let mut node = Node::join(&world, &region, "n1", &[]).await;
    // What comes after this process's own word is later.
    let shard = reported(&world, |report| report.seen.first().map(|_| report.shard)).await;
    for forged in [None, Some(request_key("eu", 8)), Some(request_key("us", 7))] {
        world.seen_by_another("n1", (shard, 1), forged.as_ref()).await;
    }
    let counted = async |reason: &str, count: u64| {
        let line = format!("longshore_region_untrusted_reports_total{{reason=\"{reason}\"}} {count}");
        let see = async {
            while !longshore_service::metrics::text().contains(&line) {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(PATIENCE, see).await.unwrap_or_else(|_| panic!("{line} never came"));
    };
    counted("missing", 1).await;
    counted("unknown-key", 2).await;
    assert_eq!(region.connected(), 1);
    node.say(FromNode::Beat).await;
    world.seen_by_another("n1", (shard, 1), Some(&request_key("eu", 7))).await;
    assert!(node.hear().await.is_none(), "it has gone to another");
    shutdown.cancel();
    region.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn levels_reach_the_log_and_silence_is_loss() {
    let world = World::new().await;
    let (region, shutdown) = world.region(Duration::from_millis(200)).await;
    let mut node = Node::join(&world, &region, "n1", &[]).await;
    let report = |status, message: Option<&str>| {
        FromNode::Report(NodeReport {
            service: "web".parse().expect("valid"),
            version: GoalVersion { revision: 1, step: 1 },
            artifact: None,
            status,
            port: Some(20_000),
            message: message.map(str::to_owned),
        })
    };
    node.say(report(NodeStatus::Fetching, None)).await;
    node.say(report(NodeStatus::Failed, Some("exit status 1"))).await;
    let zone = reported(&world, |report| Some(report.seen.first()?.zone.clone())).await;
    assert_eq!(zone.as_str(), "a");
    let failed =
        reported(&world, |report| report.statuses.iter().find(|status| status.status == NodeStatus::Failed).cloned());
    let failed = failed.await;
    assert_eq!((failed.port, failed.message.as_deref()), (20_000, Some("exit status 1")));
    let lost = reported(&world, |report| report.lost.first().cloned()).await;
    assert_eq!(lost.as_str(), "n1", "it is silent");
    assert!(node.hear().await.is_none(), "a silent node is disconnected");
    let mut again = Node::join(&world, &region, "n1", &[]).await;
    let returned = reported(&world, |report| {
        report.returned.iter().any(|node| node.as_str() == "n1" && report.seen.is_empty()).then_some(())
    });
    let beats = async {
        let mut beats = tokio::time::interval(Duration::from_millis(50));
        loop {
            beats.tick().await;
            again.say(FromNode::Beat).await;
        }
    };
    tokio::select! {
        () = returned => {}
        () = beats => {}
    }
    shutdown.cancel();
    region.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_come_by_ticket_first_and_from_peers_then() {
    let world = World::new().await;
    let root = world.publish(3).await;
    let artifact = root.artifact;
    world.start_replication(&root).await;
    let (region, shutdown) = world.region(BEAT).await;
    let mut first = Node::join(&world, &region, "n1", &[]).await;
    let stored = |request: Request<ArtifactRequest>| match request.event {
        ArtifactRequest::ReplicaReported(reported) if reported.status == ReplicaStatus::Stored => Some(()),
        _ => None,
    };
    world.until(stored).await;
    first.say(FromNode::RootWanted { artifact }).await;
    let Some(FromRegion::Root { root: Some(json), .. }) = first.hear().await else { panic!("no root") };
    assert_eq!(json, serde_json::from_slice::<serde_json::Value>(&root.to_json()).expect("JSON"));
    let packs: Vec<PackId> = root.all_packs().iter().map(|pack| pack.pack).collect();
    let foreign = PackId::of(b"of no artifact");
    let wanted = packs.iter().copied().chain([foreign]).collect();
    first.say(FromNode::SourcesWanted { artifact, packs: wanted }).await;
    let mut tickets = Vec::new();
    while tickets.len() < packs.len() {
        let Some(FromRegion::Sources { tickets: lent, peers, .. }) = first.hear().await else { panic!("no sources") };
        assert!(peers.is_empty());
        tickets.extend(lent);
    }
    for ticket in &tickets {
        assert!(packs.contains(&ticket.pack), "{ticket:?}");
        assert_eq!(PackId::of(&get(&world, ticket).await), ticket.pack);
        first.say(FromNode::TicketDone { artifact, pack: ticket.pack, ok: true }).await;
    }
    first.say(FromNode::HaveMore { artifact, packs: packs.clone() }).await;

    let mut second = Node::join(&world, &region, "n2", &[]).await;
    second.say(FromNode::SourcesWanted { artifact, packs: packs.clone() }).await;
    let mut told = Vec::new();
    while told.len() < packs.len() {
        let Some(FromRegion::Sources { tickets, peers, .. }) = second.hear().await else { panic!("no sources") };
        assert!(tickets.is_empty(), "a peer has it all");
        for peer in peers {
            assert_eq!((peer.node.as_str(), peer.address.as_str()), ("n1", "127.0.0.1:4000"));
            told.extend(peer.packs);
        }
    }
    let reads = world.s3.counters().of("longshore-eu", "packs/").gets;
    assert_eq!(reads, packs.len() as u64, "the bucket gave each pack once");
    shutdown.cancel();
    region.stopped().await;
}

/// Redeems a ticket the way anything that speaks HTTP can.
async fn get(world: &World, ticket: &Ticket) -> Vec<u8> {
    assert!(ticket.url.contains(&pack_key(&ticket.pack)), "{}", ticket.url);
    let path = ticket.url.strip_prefix(world.s3.endpoint()).expect("the region's own bucket");
    let host = world.s3.endpoint().trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).await.expect("the server listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("answered");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a header");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..end]));
    assert_eq!((answer.len() - end - 4) as u64, ticket.bytes, "not chunked");
    answer[end + 4..].to_vec()
}
