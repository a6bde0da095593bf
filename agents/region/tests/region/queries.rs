//! What people ask of a node, by way of its region.

use std::time::Duration;

use crate::support::{Node, World, goal_key, hello};
use longshore_schemas::{
    events::{LogRead, NodeAnswer, NotAnswered, Request},
    stream::{Answer, FromNode, FromRegion},
};
use longshore_signing::query;

const BEAT: Duration = Duration::from_secs(10);

async fn answer(world: &World, query: &str) -> Result<String, String> {
    let see = |request: Request<NodeAnswer>| {
        assert!(request.report.expect("answers have an order").sender.starts_with("region/eu/"));
        match request.event {
            NodeAnswer::LogRead(LogRead { query: of, text, .. }) => (of.as_str() == query).then_some(Ok(text)),
            NodeAnswer::NotAnswered(NotAnswered { query: of, reason, .. }) => {
                (of.as_str() == query).then_some(Err(reason))
            }
        }
    };
    world.until(see).await
}

/// The next query that the node hears.
async fn heard(node: &mut Node) -> String {
    let Some(FromRegion::Query(envelope)) = node.hear().await else { panic!("no query") };
    let request = query::verify(&envelope, &(*goal_key(1).public()).into()).expect("signed");
    request.id.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_goes_to_its_node_and_the_answer_to_the_log() {
    let world = World::new().await;
    let (region, shutdown) = world.region(BEAT).await;
    let mut node = Node::join(&world, &region, "n1", &[]).await;
    let mut other = Node::join(&world, &region, "n2", &[]).await;
    // What nobody signed, or somebody else, is not asked; nor what is for another region.
    world.query("unsigned", "eu", "n1", None).await;
    world.query("foreign", "eu", "n1", Some(&goal_key(2))).await;
    world.query("elsewhere", "us", "n1", Some(&goal_key(1))).await;
    world.query("q-1", "eu", "n1", Some(&goal_key(1))).await;
    assert_eq!(heard(&mut node).await, "q-1");
    let said = |query: &str, answer| FromNode::Answer { query: query.parse().expect("valid"), answer };
    // Another node's word is not taken, and neither is an answer to what was not asked.
    other.say(said("q-1", Answer::Log("lies".to_owned()))).await;
    node.say(said("q-0", Answer::Log("unasked".to_owned()))).await;
    world.query("q-2", "eu", "n2", Some(&goal_key(1))).await;
    assert_eq!(heard(&mut other).await, "q-2");
    other.say(said("q-2", Answer::None("no such service".to_owned()))).await;
    assert_eq!(answer(&world, "q-2").await, Err("no such service".to_owned()));
    node.say(said("q-1", Answer::Log("listening\n".to_owned()))).await;
    assert_eq!(answer(&world, "q-1").await, Ok("listening\n".to_owned()));

    world.query("q-3", "eu", "n3", Some(&goal_key(1))).await;
    let reason = answer(&world, "q-3").await.expect_err("it is not there");
    assert!(reason.contains("n3 is not connected"), "{reason}");
    shutdown.cancel();
    region.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_checked_before_anybody_hears_of_them() {
    let world = World::new().await;
    let (region, shutdown) = world.region(BEAT).await;
    let tls = Node::enrol(&world, &region, "n1").await;
    let mut node = Node::known(&region, &tls).await;
    let mut bad = hello("n1", &[]);
    bad.labels.insert("gpu".to_owned(), "a b".to_owned());
    node.say(FromNode::Hello(bad)).await;
    let refused = node.hear().await;
    let Some(FromRegion::Refused { reason, retry_seconds: None }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("label gpu"), "{reason}");
    shutdown.cancel();
    region.stopped().await;
}
