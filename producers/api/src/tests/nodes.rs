//! One node, and what a service says there: the test plays the regions.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, http::Method};
use longshore_log::{Log, ReadLimit, Reader, Record, TopicPartition, local::LocalLog};
use longshore_schemas::{
    RegionName,
    auth::{AUTH, Signed},
    codec,
    events::{Event, LogRead, NodeAnswer, NodeQuery, NotAnswered, ReportOrder, Request},
    http::{NodeHistoryView, Role},
    topics,
};
use longshore_signing::{
    query::{self, QUERY},
    record,
};

use super::{
    toy::LONG_AGO,
    world::{Answered, PATIENCE, World, goal_key, request, request_keys},
};
use crate::Limits;

const PATH: &str = "/v1/nodes/n1/services/web/log";

fn node(region: &str) -> NodeHistoryView {
    let version = serde_json::json!({ "revision": 1, "step": 1 });
    let view = serde_json::json!({
        "node": "n1", "region": region, "zone": "a", "rack": "r", "host": "h", "agent_version": "1", "labels": {},
        "lost": false, "seen_at": "1970-01-01T00:00:00Z",
        "services": [{ "service": "web", "version": version, "artifact": null, "status": "Healthy", "port": null, "message": null }],
        "history": [{ "at": "1970-01-01T00:00:00Z", "event": "returned" }], "has_more": false, "remembered_since": null,
    });
    serde_json::from_value(view).expect("a node")
}

/// Answers queries as a region does, with what the test makes of them.
struct Region {
    log: Arc<LocalLog>,
    reader: Box<dyn Reader>,
}

impl Region {
    fn new(world: &World) -> Self {
        let of = (0..topics::NODE_QUERIES.partitions).map(|n| (TopicPartition::new(topics::NODE_QUERIES.name, n), 0));
        Self { log: world.log.clone(), reader: world.log.reader(of.collect()).expect("a reader") }
    }

    /// The next query, which a node would believe.
    async fn next(&mut self) -> Request<NodeQuery> {
        let read = tokio::time::timeout(PATIENCE, self.reader.read(ReadLimit { records: 1, ..ReadLimit::default() }));
        let stored = read.await.expect("in time").expect("read").pop().expect("one");
        let value = stored.record.value.clone().expect("a value");
        let header = stored.record.headers_named(record::SIGNATURE).next();
        let envelope = record::envelope(&QUERY, &value, header).expect("signed");
        query::verify(&envelope, &(*goal_key().public()).into()).expect("by the key for goals")
    }

    /// In the name of a region, signed by a region.
    async fn answer(&self, query: &Request<NodeQuery>, by: &str, event: impl Into<NodeAnswer>) {
        let event: NodeAnswer = event.into();
        let region: RegionName = by.parse().expect("valid");
        let (key, topic) = (event.key(), topics::NODE_ANSWERS.name);
        let report = Some(ReportOrder { sender: format!("region/{region}"), boot: 1, sequence: 1 });
        let request = Request { id: query.id.clone(), at: LONG_AGO, actor: by.to_owned(), trace: None, report, event };
        let value = codec::encode(&request).expect("encoded");
        let keys = request_keys();
        let own = keys.of(&region).expect("a key").first().expect("one");
        let auth = own.sign(Signed { topic, key: key.as_bytes(), value: &value });
        let record = Record::new(key, value).with_header(AUTH, auth);
        self.log.append(topic, vec![record]).await.expect("appended");
    }
}

fn text(query: &Request<NodeQuery>, region: &str, text: &str) -> LogRead {
    LogRead { query: query.id.clone(), region: region.parse().expect("valid"), text: text.to_owned() }
}

async fn ask(world: &World, path: &str) -> Answered {
    let sent = request(Method::GET, path, world.token(Role::Deployer)).body(Body::empty());
    world.send(sent.expect("valid")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_log_comes_through_the_nodes_region_and_from_nobody_else() {
    let world = World::new().await;
    world.toy.state().nodes = vec![node("eu")];
    let mut region = Region::new(&world);
    let answering = async {
        let query = region.next().await;
        let NodeQuery::LogWanted(wanted) = &query.event;
        assert_eq!((wanted.node.as_str(), wanted.service.as_str(), wanted.bytes), ("n1", "web", 100));
        assert_eq!((wanted.region.as_str(), &*query.actor), ("eu", "some-deployer"));
        // Another region, under its own name and under this one's; and an answer to another query.
        region.answer(&query, "us", text(&query, "us", "lies")).await;
        region.answer(&query, "us", text(&query, "eu", "lies")).await;
        let other = Request { id: "other".parse().expect("valid"), ..query.clone() };
        region.answer(&other, "eu", text(&other, "eu", "lies")).await;
        region.answer(&query, "eu", text(&query, "eu", "listening\n")).await;
    };
    let path = format!("{PATH}?bytes=100");
    let (answer, ()) = tokio::join!(ask(&world, &path), answering);
    let answer = answer.expect_status(200);
    assert_eq!(answer.text(), "listening\n");
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");

    let refusing = async {
        let query = region.next().await;
        let (query_id, eu, reason) = (query.id.clone(), "eu".parse().expect("valid"), "it is cut off".to_owned());
        region.answer(&query, "eu", NotAnswered { query: query_id, region: eu, reason }).await;
    };
    let (answer, ()) = tokio::join!(ask(&world, PATH), refusing);
    answer.expect_problem(409, "it is cut off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_says_nothing_is_waited_for_a_while() {
    let world = World::with(Limits { answer_wait: Duration::from_millis(50), ..Limits::default() }).await;
    world.toy.state().nodes = vec![node("eu")];
    let problem = ask(&world, PATH).await.expect_problem(504, "n1");
    assert_eq!(problem.kind, "/problems/no-answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_asked_for() {
    let world = World::new().await;
    ask(&world, "/v1/nodes/n1").await.expect_problem(404, "no node n1");
    world.toy.state().nodes = vec![node("eu"), node("us")];
    ask(&world, "/v1/nodes/n1").await.expect_problem(422, "eu, us");
    ask(&world, PATH).await.expect_problem(422, "region");
    let view: NodeHistoryView = ask(&world, "/v1/nodes/n1?region=us").await.expect_status(200).json();
    assert_eq!(view, node("us"));
    for (query, status, says) in [("region=de", 404, "in region de"), ("limit=0", 422, "limit"), ("x=1", 422, "x")] {
        ask(&world, &format!("/v1/nodes/n1?{query}")).await.expect_problem(status, says);
    }
    for (path, status, says) in [
        ("/v1/nodes/n1/services/mail/log?region=us", 404, "but on web"),
        ("/v1/nodes/n1/services/web/log?region=us&bytes=0", 422, "131072"),
        ("/v1/nodes/n1/services/web/log?region=us&bytes=131073", 422, "131072"),
    ] {
        ask(&world, path).await.expect_problem(status, says);
    }
    assert_eq!(world.records().await, 0, "nobody was asked");
}
